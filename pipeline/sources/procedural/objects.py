"""Things to texture: each builder draws proportions and returns patches, Z up, in any scale.

Parts of an object may pass through each other, as in most real assets; the hidden texels get colours like all others.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline.sources.procedural.patches import (
    Patch,
    cap,
    curve,
    lathe,
    prism,
    rotation_z,
    superellipsoid,
    sweep,
    tube,
)

Rng = np.random.Generator


@dataclass(frozen=True, slots=True)
class Detail:
    """Multiplies the number of segments in each direction; 1 gives 500 to 6000 faces."""

    factor: float = 1.0

    def __call__(self, segments: int) -> int:
        return max(4, round(segments * self.factor))


def _disc(radius: float, z: float, detail: Detail, *, up: bool) -> Patch:
    angle = np.arange(4 * detail(6)) * (2 * np.pi / (4 * detail(6))) * (1 if up else -1)
    return cap(np.column_stack([radius * np.cos(angle), radius * np.sin(angle), np.full(len(angle), z)]))


def _block(rng: Rng, detail: Detail) -> list[Patch]:
    sizes = rng.uniform(0.55, 1.0, 3)
    return [superellipsoid(sizes, rng.uniform(0.2, 0.5), rng.uniform(0.2, 0.5), detail(40), detail(24))]


def _ball(rng: Rng, detail: Detail) -> list[Patch]:
    sizes = rng.uniform(0.65, 1.0, 3)
    return [superellipsoid(sizes, rng.uniform(0.75, 1.1), rng.uniform(0.75, 1.1), detail(36), detail(22))]


def _ring(rng: Rng, detail: Detail) -> list[Patch]:
    angle = np.linspace(0.0, 2 * np.pi, detail(20) + 1)
    angle[-1] = 0.0
    thick, tall = rng.uniform(0.25, 0.45), rng.uniform(0.25, 0.65)
    profile = np.column_stack([1.0 + thick * np.cos(angle - np.pi), tall * np.sin(angle - np.pi)])
    return [lathe([profile], detail(40), closed=True)]


def _vase(rng: Rng, detail: Detail) -> list[Patch]:
    foot, belly, neck, lip = rng.uniform((0.35, 0.7, 0.2, 0.35), (0.55, 1.0, 0.4, 0.65))
    height, low = rng.uniform(2.0, 2.8), rng.uniform(0.3, 0.5)
    base = np.array([[0.0, 0.0], [foot / 2, 0.0], [foot, 0.0]])
    wall = curve([[foot, 0], [belly, low * height], [neck, 0.8 * height], [lip, height]], detail(20))
    inside = curve([[lip, height], [lip - 0.07, height], [neck - 0.06, 0.8 * height], [0.0, 0.7 * height]], detail(8))
    return [lathe([base, wall, inside], detail(32))]


def _bottle(rng: Rng, detail: Detail) -> list[Patch]:
    body, neck = rng.uniform(0.45, 0.75), rng.uniform(0.16, 0.26)
    height, shoulder = rng.uniform(2.2, 2.8), rng.uniform(0.5, 0.65)
    wall = curve(
        [
            [0, 0],
            [0.9 * body, 0],
            [body, 0.1],
            [body, shoulder * height],
            [neck, (shoulder + 0.22) * height],
            [neck, height],
        ],
        detail(26),
    )
    cork = curve(
        [[neck, height], [neck * 1.3, height + 0.02], [neck * 1.3, height + 0.2], [0, height + 0.24]], detail(6)
    )
    return [lathe([wall, cork], detail(32))]


def _bowl(rng: Rng, detail: Detail) -> list[Patch]:
    foot, depth = rng.uniform(0.3, 0.5), rng.uniform(0.7, 1.1)
    outside = curve([[0, 0], [foot, 0], [0.8, 0.35 * depth], [1.0, depth]], detail(14))
    inside = curve([[1.0, depth], [0.92, depth], [0.7, 0.42 * depth], [0, 0.12 * depth]], detail(12))
    return [lathe([outside, inside], detail(36))]


def _goblet(rng: Rng, detail: Detail) -> list[Patch]:
    foot, stem, cup = rng.uniform((0.5, 0.1, 0.6), (0.7, 0.18, 0.85))
    knee = rng.uniform(0.9, 1.2)
    wall = curve(
        [[0, 0], [foot, 0], [foot, 0.08], [stem, 0.3], [stem, knee], [cup, knee + 0.5], [cup * 0.9, knee + 1.2]],
        detail(30),
    )
    inside = curve(
        [[cup * 0.9, knee + 1.2], [cup * 0.85, knee + 1.2], [cup * 0.8, knee + 0.5], [0, knee + 0.15]], detail(10)
    )
    return [lathe([wall, inside], detail(30))]


def _pawn(rng: Rng, detail: Detail) -> list[Patch]:
    foot, waist, head = rng.uniform((0.6, 0.22, 0.36), (0.8, 0.32, 0.46))
    top = rng.uniform(1.5, 1.9)
    base = curve(
        [
            [0, 0],
            [foot, 0],
            [foot, 0.2],
            [0.75 * foot, 0.4],
            [waist, top * 0.8],
            [0.42, top * 0.88],
            [0.25, top * 0.95],
        ],
        detail(22),
    )
    angle = np.linspace(-1.0, np.pi / 2, detail(12))
    ball = np.column_stack([head * np.cos(angle), top + head * 0.75 + head * np.sin(angle)])
    ball[-1, 0] = 0.0
    return [lathe([base, np.concatenate([base[-1:], ball])], detail(28))]


def _column(rng: Rng, detail: Detail) -> list[Patch]:
    sides = int(rng.integers(3, 7))
    angle = np.arange(sides) * 2 * np.pi / sides
    corners = np.column_stack([np.cos(angle), np.sin(angle)]) * rng.uniform(0.5, 0.8)
    twist, taper = rng.uniform(-1.6, 1.6), rng.uniform(0.5, 1.1)
    return prism(corners, rng.uniform(0.8, 1.2), per_edge=detail(8) // 4 * 4, rows=detail(18), twist=twist, taper=taper)


def _star(rng: Rng, detail: Detail) -> list[Patch]:
    points = int(rng.integers(4, 7))
    angle = np.arange(2 * points) * np.pi / points
    radius = np.where(np.arange(2 * points) % 2 == 0, 1.0, rng.uniform(0.5, 0.65))
    corners = np.column_stack([radius * np.cos(angle), radius * np.sin(angle)])
    twist, taper = rng.uniform(-0.7, 0.7), rng.uniform(0.6, 1.0)
    return prism(corners, rng.uniform(0.5, 1.0), per_edge=detail(4) // 2 * 2, rows=detail(12), twist=twist, taper=taper)


def _horn(rng: Rng, detail: Detail) -> list[Patch]:
    bend = rng.uniform(0.5, 1.0)
    path = [[0, 0, 0], [0.1, 0.1, 0.7], [bend * 0.5, -0.1, 1.3], [bend, 0.1, 1.8]]
    return [tube(path, rng.uniform(0.35, 0.5), rng.uniform(0.1, 0.2), detail(24), detail(26))]


def _arch(rng: Rng, detail: Detail) -> list[Patch]:
    angle = np.linspace(0.0, np.pi, 9)
    height = rng.uniform(0.8, 1.3)
    path = np.column_stack([np.cos(angle), rng.uniform(-0.3, 0.3) * np.sin(2 * angle), height * np.sin(angle)])
    return [tube(path, rng.uniform(0.2, 0.35), rng.uniform(0.2, 0.35), detail(20), detail(36))]


def _spring(rng: Rng, detail: Detail) -> list[Patch]:
    turns, height = rng.uniform(1.5, 2.2), rng.uniform(1.5, 2.0)
    angle = np.linspace(0.0, 2 * np.pi * turns, 40)
    path = np.column_stack([0.7 * np.cos(angle), 0.7 * np.sin(angle), height * angle / angle[-1]])
    radius = rng.uniform(0.18, 0.24)
    return [tube(path, radius, radius, detail(14), detail(72))]


def _mug(rng: Rng, detail: Detail) -> list[Patch]:
    foot, lip = rng.uniform(0.5, 0.65), rng.uniform(0.55, 0.75)
    height = rng.uniform(1.2, 1.7)
    base = np.array([[0.0, 0.0], [foot / 2, 0.0], [foot, 0.0]])
    wall = curve([[foot, 0], [(foot + lip) / 2, height / 2], [lip, height]], detail(12))
    rim = np.array([[lip, height], [lip - 0.08, height]])
    inside = curve([[lip - 0.08, height], [foot - 0.08, 0.15 * height], [0, 0.12 * height]], detail(12))
    reach = rng.uniform(0.45, 0.6)
    x = (foot + lip) / 2 - 0.04
    handle = curve(
        [[x, 0, 0.2 * height], [x + reach, 0, 0.3 * height], [x + reach, 0, 0.7 * height], [x, 0, 0.8 * height]],
        detail(18),
    )
    return [lathe([base, wall, rim, inside], detail(32)), sweep(handle, np.full(len(handle), 0.1), detail(10))]


def _teapot(rng: Rng, detail: Detail) -> list[Patch]:
    tall = rng.uniform(0.6, 0.9)
    body = curve(
        [
            [0, -tall],
            [0.5, -tall],
            [1.0, -0.1 * tall],
            [0.55, 0.85 * tall],
            [0.14, tall],
            [0.2, tall + 0.15],
            [0, tall + 0.28],
        ],
        detail(28),
    )
    spout = tube([[0.75, 0, -0.3 * tall], [1.25, 0, 0.0], [1.5, 0, 0.7 * tall]], 0.24, 0.1, detail(14), detail(12))
    handle = curve(
        [[-0.8, 0, -0.4 * tall], [-1.5, 0, -0.3 * tall], [-1.5, 0, 0.5 * tall], [-0.65, 0, 0.65 * tall]], detail(18)
    )
    return [lathe([body], detail(34)), spout, sweep(handle, np.full(len(handle), 0.11), detail(10))]


def _mushroom(rng: Rng, detail: Detail) -> list[Patch]:
    stem, height, tall = rng.uniform((0.25, 0.7, 0.6), (0.4, 1.1, 0.9))
    trunk = curve([[0, 0], [stem * 1.2, 0], [stem, 0.3], [stem * 0.8, height + 0.1]], detail(12))
    gills = curve([[0, height + 0.08], [0.5, height], [1.0, height - 0.08]], detail(8))
    hat = curve(
        [[1.0, height - 0.08], [0.92, height + 0.3 * tall], [0.55, height + 0.8 * tall], [0, height + tall]], detail(14)
    )
    return [lathe([gills, hat], detail(36)), lathe([trunk], detail(24))]


def _lamp(rng: Rng, detail: Detail) -> list[Patch]:
    foot, height, wide, narrow = rng.uniform((0.4, 1.1, 0.7, 0.3), (0.65, 1.5, 1.0, 0.5))
    base = curve(
        [
            [0, 0],
            [foot, 0],
            [foot, 0.12],
            [0.1, 0.25],
            [0.3, 0.45 * height],
            [0.08, 0.8 * height],
            [0.07, height + 0.3],
        ],
        detail(24),
    )
    shade = [
        np.array([[wide - 0.04, height], [wide, height]]),
        np.linspace((wide, height), (narrow, height + 0.9), detail(12)),
    ]
    inner = np.linspace((narrow, height + 0.9), (wide - 0.04, height), detail(8))
    return [lathe([*shade, inner], detail(36)), lathe([base], detail(22))]


def _table(rng: Rng, detail: Detail) -> list[Patch]:
    width, depth, height = rng.uniform((0.8, 0.6, 0.9), (1.1, 0.9, 1.4))
    top = superellipsoid((width, depth, 0.16), 0.3, 0.4, detail(36), detail(12)).moved((0, 0, height))
    leg = curve([[0, 0], [0.09, 0], [0.17, height]], detail(10))
    places = [(x * 0.78 * width, y * 0.72 * depth, 0.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return [top] + [lathe([leg], detail(12)).moved(place) for place in places]


def _stool(rng: Rng, detail: Detail) -> list[Patch]:
    height, radius = rng.uniform(1.0, 1.5), rng.uniform(0.6, 0.8)
    seat = superellipsoid((radius, radius, 0.24), 1.0, 0.5, detail(32), detail(12)).moved((0, 0, height))
    spread = rng.uniform(0.9, 1.2) * radius
    legs = [
        tube(
            [[0.5 * radius * np.cos(a), 0.5 * radius * np.sin(a), height], [spread * np.cos(a), spread * np.sin(a), 0]],
            0.13,
            0.09,
            detail(10),
            detail(10),
        )
        for a in np.arange(3) * 2 * np.pi / 3
    ]
    return [seat, *legs]


def _chair(rng: Rng, detail: Detail) -> list[Patch]:
    width, height, back = rng.uniform((0.55, 0.8, 0.9), (0.75, 1.1, 1.3))
    seat = superellipsoid((width, width, 0.15), 0.3, 0.4, detail(32), detail(10)).moved((0, 0, height))
    rest = superellipsoid((width, 0.12, back / 2), 0.35, 0.35, detail(28), detail(18)).moved(
        (0, 0.85 * width, height + back / 2)
    )
    leg = curve([[0, 0], [0.08, 0], [0.13, height]], detail(8))
    places = [(x * 0.75 * width, y * 0.75 * width, 0.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    return [seat, rest] + [lathe([leg], detail(10)).moved(place) for place in places]


def _rocket(rng: Rng, detail: Detail) -> list[Patch]:
    radius, height = rng.uniform(0.35, 0.5), rng.uniform(1.6, 2.2)
    tail = np.array([[0.0, 0.1], [radius * 0.4, 0.05], [radius * 0.7, 0.0]])
    hull = curve(
        [[radius * 0.7, 0], [radius, 0.35 * height], [radius * 0.9, 0.65 * height], [0, 1.15 * height]], detail(26)
    )
    count = int(rng.integers(3, 5))
    fin = superellipsoid((0.3, 0.06, 0.4), 0.6, 0.7, detail(18), detail(12)).moved((radius + 0.1, 0, 0.15))
    shear = np.array([[1.0, 0, 0], [0, 1, 0], [-0.6, 0, 1]])
    fin = Patch(positions=fin.positions @ shear.T, normals=fin.normals)
    fin = fin.moved((0, 0, 0.3))
    return [lathe([tail, hull], detail(32))] + [fin.turned(rotation_z(2 * np.pi * k / count)) for k in range(count)]


def _house(rng: Rng, detail: Detail) -> list[Patch]:
    width, depth, height, rise = rng.uniform((0.6, 0.7, 0.4, 0.5), (0.9, 1.1, 0.6, 0.9))
    square = np.array([[1.0, -1], [1, 1], [-1, 1], [-1, -1]]) * (width, depth)
    walls = [p.moved((0, 0, height)) for p in prism(square, height, per_edge=detail(6), rows=detail(6))]
    gable = np.array([[-1.25, -0.35 * rise], [1.25, -0.35 * rise], [0.0, 0.65 * rise]]) * (width, 1.0)
    to_y = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    roof = prism(gable, 1.15 * depth, per_edge=detail(4) // 4 * 4, rows=detail(10))
    roof = [p.turned(to_y).moved((0, 0, 2 * height + 0.35 * rise)) for p in roof]
    stack = superellipsoid((0.14, 0.14, 0.4), 0.25, 0.25, detail(16), detail(10))
    return [walls[0], *roof, stack.moved((0.5 * width, 0.4 * depth, 2 * height + 0.7 * rise))]


def _tree(rng: Rng, detail: Detail) -> list[Patch]:
    trunk = curve([[0, 0], [0.26, 0], [0.18, 0.3], [0.15, 1.0]], detail(10))
    height, lean = rng.uniform(1.3, 1.6), rng.uniform(0.2, 0.4)
    crown = superellipsoid(rng.uniform(0.65, 0.85, 3), 1.0, 1.0, detail(30), detail(18)).moved((0, 0, height))
    sides = [
        superellipsoid([rng.uniform(0.4, 0.55)] * 3, 1.0, 1.0, detail(22), detail(12)).moved(
            (s * 0.6, s * lean, height - 0.25)
        )
        for s in (-1, 1)
    ]
    return [crown, *sides, lathe([trunk], detail(16))]


def _pine(rng: Rng, detail: Detail) -> list[Patch]:
    trunk = curve([[0, 0], [0.22, 0], [0.16, 0.7]], detail(8))
    tiers = []
    for level in range(int(rng.integers(2, 4))):
        radius, z = 0.95 - 0.24 * level, 0.5 + 0.6 * level
        under = np.linspace((0.0, z + 0.1), (radius, z), detail(5))
        cone = np.linspace((radius, z), (0.0, z + 1.0 + rng.uniform(0.0, 0.2)), detail(10))
        tiers.append(lathe([under, cone], detail(28)))
    return [*tiers, lathe([trunk], detail(14))]


def _snowman(rng: Rng, detail: Detail) -> list[Patch]:
    low, middle, head = rng.uniform((0.65, 0.45, 0.3), (0.8, 0.58, 0.4))
    z = np.cumsum([low, 0.8 * (low + middle), 0.8 * (middle + head)])
    balls = [
        superellipsoid([r] * 3, 1.0, 1.0, detail(28), detail(16)).moved((0, 0, h))
        for r, h in zip((low, middle, head), z, strict=True)
    ]
    brim = z[2] + 0.6 * head
    hat = [
        np.linspace((0.0, brim), (head * 1.3, brim), detail(4)),
        np.array([[head * 1.3, brim], [head * 1.3, brim + 0.06]]),
        curve([[head * 1.3, brim + 0.06], [head * 0.8, brim + 0.08], [head * 0.75, brim + 0.5]], detail(8)),
        np.array([[head * 0.75, brim + 0.5], [0.0, brim + 0.5]]),
    ]
    return [*balls, lathe(hat, detail(24))]


def _cactus(rng: Rng, detail: Detail) -> list[Patch]:
    tall, thick = rng.uniform(1.6, 2.1), rng.uniform(0.26, 0.36)
    trunk = tube([[0, 0, 0], [0, 0, tall]], thick, 0.85 * thick, detail(24), detail(20))
    arms = []
    for side, z in ((-1, rng.uniform(0.5, 0.8)), (1, rng.uniform(0.7, 1.1))):
        reach = rng.uniform(0.6, 0.75)
        path = [[0, 0, z], [side * 0.8 * reach, 0, z + 0.05], [side * reach, 0, z + 0.3], [side * reach, 0, z + 0.8]]
        arms.append(tube(path, 0.19, 0.17, detail(16), detail(20)))
    return [trunk, *arms]


def _planet(rng: Rng, detail: Detail) -> list[Patch]:
    radius = rng.uniform(0.6, 0.75)
    angle = np.linspace(0.0, 2 * np.pi, detail(12) + 1)
    angle[-1] = 0.0
    band = lathe([np.column_stack([1.1 - 0.22 * np.cos(angle), -0.07 * np.sin(angle)])], detail(44), closed=True)
    tilt = rng.uniform(0.2, 0.5)
    c, s = np.cos(tilt), np.sin(tilt)
    ring = band.turned(np.array([[c, 0, -s], [0.0, 1, 0], [s, 0, c]]))
    return [superellipsoid([radius] * 3, 1.0, 1.0, detail(32), detail(18)), ring]


def _drum(rng: Rng, detail: Detail) -> list[Patch]:
    radius, half, waist = rng.uniform((0.6, 0.5, 0.75), (0.9, 0.9, 1.15))
    side = curve([[radius, -half], [radius * waist, 0], [radius, half]], detail(20))
    discs = [_disc(radius, -half, detail, up=False), _disc(radius, half, detail, up=True)]
    return [lathe([side], 4 * detail(6)), *discs]


def _lighthouse(rng: Rng, detail: Detail) -> list[Patch]:
    foot, top, height = rng.uniform((0.5, 0.28, 1.8), (0.65, 0.38, 2.3))
    wall = curve([[0, 0], [foot, 0], [0.7 * foot + 0.1, 0.4 * height], [top, height]], detail(18))
    deck = [
        np.array([[top, height], [top * 1.5, height]]),
        np.array([[top * 1.5, height], [top * 1.5, height + 0.1]]),
        np.array([[top * 1.5, height + 0.1], [top * 0.8, height + 0.1]]),
        np.linspace((top * 0.8, height + 0.1), (top * 0.8, height + 0.5), detail(5)),
        np.array([[top * 0.8, height + 0.5], [top * 1.2, height + 0.5]]),
        np.linspace((top * 1.2, height + 0.5), (0.0, height + 0.9), detail(6)),
    ]
    return [lathe([wall, *deck], detail(30))]


BUILDERS: dict[str, Callable[[Rng, Detail], list[Patch]]] = {
    "block": _block,
    "ball": _ball,
    "ring": _ring,
    "vase": _vase,
    "bottle": _bottle,
    "bowl": _bowl,
    "goblet": _goblet,
    "pawn": _pawn,
    "column": _column,
    "star": _star,
    "horn": _horn,
    "arch": _arch,
    "spring": _spring,
    "mug": _mug,
    "teapot": _teapot,
    "mushroom": _mushroom,
    "lamp": _lamp,
    "table": _table,
    "stool": _stool,
    "chair": _chair,
    "rocket": _rocket,
    "house": _house,
    "tree": _tree,
    "pine": _pine,
    "snowman": _snowman,
    "cactus": _cactus,
    "planet": _planet,
    "drum": _drum,
    "lighthouse": _lighthouse,
}
"""Noun -> builder."""
