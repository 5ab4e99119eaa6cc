"""Surface colour as a function of position and normal in the normalised frame, plus a palette.

A model that sees one view can know the rest: every family is smooth, follows from geometry alone, and shows its colours
from each side. Transitions are wide (`SOFT`), so that a texture survives 8 x 8 blocks with few coefficients.
"""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

COLORS = {
    "red": (0.86, 0.12, 0.14),
    "orange": (0.98, 0.50, 0.06),
    "yellow": (0.98, 0.84, 0.12),
    "lime": (0.62, 0.86, 0.14),
    "green": (0.08, 0.56, 0.20),
    "teal": (0.04, 0.58, 0.56),
    "cyan": (0.16, 0.80, 0.94),
    "blue": (0.10, 0.28, 0.86),
    "navy": (0.07, 0.10, 0.38),
    "purple": (0.44, 0.10, 0.66),
    "magenta": (0.88, 0.12, 0.60),
    "pink": (0.98, 0.62, 0.74),
    "cream": (0.97, 0.92, 0.78),
    "charcoal": (0.11, 0.11, 0.13),
}
"""Named sRGB colours."""

MIN_SEPARATION = 0.40
"""Least root-mean-square difference over channels between two colours of a palette."""
SOFT = 0.26
"""Width of a transition between two colours, in units of the normalised frame (largest side 2)."""

MAX_SAMPLES = 2_000
"""Surface points that a pattern's contrast is judged on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """A way to divide a surface."""

    name: str
    words: tuple[str, ...]
    """For the caption."""
    min_colors: int
    max_colors: int


FAMILIES = (
    Family(name="bands", words=("striped", "banded", "ringed"), min_colors=2, max_colors=3),
    Family(name="gradient", words=("gradient", "fading"), min_colors=2, max_colors=3),
    Family(name="slanted", words=("diagonally striped", "slanted"), min_colors=2, max_colors=3),
    Family(name="halves", words=("two-sided", "split"), min_colors=2, max_colors=2),
    Family(name="quarters", words=("quartered", "four-sided"), min_colors=2, max_colors=2),
    Family(name="checker", words=("chequered", "patchwork"), min_colors=2, max_colors=2),
    Family(name="lids", words=("capped", "frosted"), min_colors=2, max_colors=2),
    Family(name="core", words=("haloed", "rimmed"), min_colors=2, max_colors=3),
)
_WEIGHTS = (0.22, 0.12, 0.14, 0.12, 0.10, 0.10, 0.10, 0.10)
"""Probability of each family, in the order of `FAMILIES`; ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Palette:
    """Colours of one asset, sRGB, with their names."""

    names: tuple[str, ...]
    rgb: Float[np.ndarray, "k 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pattern:
    """A family with its parameters; call it with positions and unit normals in the normalised frame."""

    family: Family
    word: str
    palette: Palette
    direction: tuple[float, float, float]
    """Unit; along which position counts (bands, gradient, slanted, halves)."""
    start: float
    """Lowest value of the measure on the asset, or the one where the first colour begins."""
    stop: float
    bands: int

    def __call__(
        self, positions: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
    ) -> Float[np.ndarray, "n 3"]:
        """sRGB in [0, 1]."""
        return self._ramp(measure(self.family.name, self.direction, positions, normals))

    def _ramp(self, value: Float[np.ndarray, " n"]) -> Float[np.ndarray, "n 3"]:
        """Colours in turn over `bands` equal intervals of [start, stop], with soft steps between them."""
        width = (self.stop - self.start) / self.bands
        soft = 1.6 * width if self.family.name == "gradient" else SOFT
        palette = self.palette.rgb
        rgb = np.broadcast_to(palette[0], (len(value), 3)).copy()
        for step in range(1, self.bands):
            share = np.clip((value - self.start - step * width) / soft + 0.5, 0.0, 1.0)
            share = share * share * (3.0 - 2.0 * share)
            rgb += share[:, None] * (palette[step % len(palette)] - palette[(step - 1) % len(palette)])
        return np.clip(rgb, 0.0, 1.0)

    def swapped(self) -> "Pattern":
        """The same division with the colours in reverse: for a second material of the same asset."""
        palette = Palette(names=self.palette.names[::-1], rgb=self.palette.rgb[::-1].copy())
        return replace(self, palette=palette)


def measure(
    family: str,
    direction: tuple[float, float, float],
    positions: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
) -> Float[np.ndarray, " n"]:
    """The scalar that a family divides the surface by, in about the unit of position."""
    x, y, z = positions.T
    if family == "quarters":
        return (x * x - y * y) / np.sqrt(4.0 * (x * x + y * y) + 0.1)
    if family == "checker":
        return 0.3 * np.tanh(x / 0.3) * np.tanh(y / 0.3) * np.tanh(z / 0.3)
    if family == "lids":
        return 0.5 * normals[:, 2]
    if family == "core":
        return np.sqrt(x * x + y * y + 0.01)
    return positions @ np.asarray(direction)


def draw_palette(rng: np.random.Generator, count: int) -> Palette:
    """`count` different named colours, slightly varied, no two of them close."""
    names = list(COLORS)
    chosen: list[str] = []
    rgb: list[np.ndarray] = []
    while len(chosen) < count:
        name = names[int(rng.integers(len(names)))]
        color = np.clip(np.asarray(COLORS[name]) + rng.uniform(-0.04, 0.04, 3), 0.0, 1.0)
        if all(np.sqrt(np.mean((color - other) ** 2)) >= MIN_SEPARATION for other in rgb):
            chosen.append(name)
            rgb.append(color)
        elif rng.random() < 0.05:
            chosen, rgb = [], []
    return Palette(names=tuple(chosen), rgb=np.asarray(rgb))


def _draw(
    rng: np.random.Generator, family: Family, positions: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]
) -> Pattern:
    colors = int(rng.integers(family.min_colors, family.max_colors + 1))
    palette = draw_palette(rng, colors)
    word = family.words[int(rng.integers(len(family.words)))]
    azimuth = np.pi / 4 * (2 * int(rng.integers(4)) + 1)
    slope = {"slanted": 0.9, "halves": 0.0}.get(family.name, np.pi / 2)
    sign = float(rng.choice((-1.0, 1.0)))
    level = np.cos(slope)
    direction = (float(level * np.cos(azimuth)), float(level * np.sin(azimuth)), float(sign * np.sin(slope)))
    values = measure(family.name, direction, positions, normals)
    low, high = float(values.min()), float(values.max())
    bands = colors
    if family.name in ("bands", "slanted", "core"):
        bands = max(colors, min(int(rng.integers(colors, 6)), int((high - low) / (1.5 * SOFT))))
    if family.name in ("quarters", "checker", "halves"):
        reach = max(abs(low), abs(high))
        low, high = -reach, reach
    else:
        shift = float(rng.uniform(-0.08, 0.08)) * (high - low)
        low, high = low + shift, high + shift
    return Pattern(family=family, word=word, palette=palette, direction=direction, start=low, stop=high, bands=bands)


def contrast(rgb: Float[np.ndarray, "n 3"], weights: Float[np.ndarray, " n"]) -> float:
    """Root-mean-square difference to the weighted mean colour, over channels: the error of a fill with one colour."""
    share = (weights / weights.sum())[:, None]
    mean = (share * rgb).sum(axis=0)
    return float(np.sqrt((share * (rgb - mean) ** 2).sum() / 3.0))


def _facing(normals: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "4 n"]:
    """Cosine towards each of the four views (10 degrees up), 0 where turned away."""
    up, out = np.sin(np.radians(10.0)), np.cos(np.radians(10.0))
    views = np.array([[0, -out, up], [out, 0, up], [0, out, up], [-out, 0, up]])
    return np.clip(views @ normals.T, 0.0, None)


def draw_pattern(
    rng: np.random.Generator,
    positions: Float[np.ndarray, "n 3"],
    normals: Float[np.ndarray, "n 3"],
    areas: Float[np.ndarray, " n"],
    *,
    smooth: bool,
) -> Pattern:
    """A pattern with strong contrast over the whole surface (sampled with `areas`) and in each of the four views: the
    first such of a few draws, else the best. `smooth`: normals vary smoothly, so that colour may follow them."""
    stride = -(-len(areas) // MAX_SAMPLES)
    positions, normals, areas = positions[::stride], normals[::stride], areas[::stride]
    visible = _facing(normals) * areas + 1e-9
    weights = np.asarray(_WEIGHTS) * [smooth or family.name != "lids" for family in FAMILIES]
    best, best_score = None, -1.0
    for attempt in range(16):
        if attempt % 4 == 0:
            family = FAMILIES[int(rng.choice(len(FAMILIES), p=weights / weights.sum()))]
        pattern = _draw(rng, family, positions, normals)
        rgb = pattern(positions, normals)
        score = min(contrast(rgb, areas) / 0.28, min(contrast(rgb, view) for view in visible) / 0.22)
        if score > best_score:
            best, best_score = pattern, score
        if score >= 1.0:
            break
    assert best is not None
    return best
