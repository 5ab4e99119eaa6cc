"""Colours of the source, sampled evenly over the area of its surface."""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64, UInt8

from geometry.kernels.samples import COLOR_BITS, HUES, LEVELS, column_sums, count_colors
from geometry.raster import Fragments
from geometry.texture import PackedSurface, encode_srgb8, surface_color
from schemas.mesh import TexturedMesh

NUM_SAMPLES = 1 << 16
"""Points on the surface at which colour is looked up."""
GOLDEN = np.array([0.7548776662466927, 0.5698402909980532])
"""Inverse powers of the root of x^3 = x + 1."""
MIN_COLOR_SHARE = 1e-3
"""A colour counts from this share of the area on."""
GREY_LEVELS = 8
"""Channels of 8 bits that differ by less are grey to the eye."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceSamples:
    """Points spread evenly over a surface; none where it has no area."""

    face: Int32[np.ndarray, " n"]
    bary: Float32[np.ndarray, "n 2"]
    """Weights of corners 0 and 1."""
    linear: Float32[np.ndarray, "n 3"]
    """Linear colour."""
    opaque: Bool[np.ndarray, " n"]
    """True where rendering does not look through: masked below the cutoff, blended below one half."""

    @property
    def srgb(self) -> UInt8[np.ndarray, "m 3"]:
        """Colours of the opaque ones."""
        return encode_srgb8(self.linear[self.opaque])


def sample_surface(
    mesh: TexturedMesh, areas: Float64[np.ndarray, " f"], surface: PackedSurface | None = None
) -> SurfaceSamples:
    """Evenly spaced in cumulated area, so that every face of 1/n of the area or more is met; within a face by the
    two-dimensional golden ratio sequence (Roberts 2018), whose runs of any length lie evenly. `surface`: the mesh,
    packed already."""
    total = np.cumsum(areas)
    if not (len(total) and total[-1] > 0):
        nothing = np.zeros((0, 3), np.float32)
        return SurfaceSamples(face=np.zeros(0, np.int32), bary=nothing[:, :2], linear=nothing, opaque=np.zeros(0, bool))
    marks = (np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES * total[-1]
    face = np.minimum(np.searchsorted(total, marks), len(areas) - 1).astype(np.int32)
    bary = weights_within()
    points = Fragments(face=face[None, None], bary=bary[None, None], depth=np.zeros((1, 1, NUM_SAMPLES), np.float32))
    color = surface_color(surface or mesh, points)[0, 0]
    return SurfaceSamples(face=face, bary=bary, linear=color[:, :3], opaque=color[:, 3] > 0)


@cache
def weights_within() -> Float32[np.ndarray, "n 2"]:
    """Weights of corners 0 and 1 of every sample's face: the same for all surfaces."""
    bary = ((0.5 + GOLDEN * np.arange(NUM_SAMPLES)[:, None]) % 1).astype(np.float32)
    return np.where(bary.sum(axis=1, keepdims=True) > 1, 1 - bary, bary)


@dataclass(frozen=True, slots=True, kw_only=True)
class Colors:
    """The colours of a surface by what they have in common. Shares are of the colours' number."""

    shares: Float64[np.ndarray, " colors"]
    """Share of every colour that occurs, at 5 bits a channel."""
    grey_share: float
    std: float
    """Mean standard deviation of the channels, in [0, 1]."""
    entropy: float
    """Bits: mean of the entropies of hue, saturation and value, 256 bins each (MV-Painter); 0 for one colour. Hue has
    180 values (OpenCV's 8-bit HSV), so that the figure compares."""

    def count(self) -> int:
        """Count the colours that cover a visible share."""
        return int((self.shares >= MIN_COLOR_SHARE).sum())


def count_by_color(srgb: UInt8[np.ndarray, "m 3"]) -> Colors:
    """Sum up colours in one pass."""
    colors, hues = np.zeros(1 << 3 * COLOR_BITS, np.int64), np.zeros(HUES, np.int64)
    saturations, values = np.zeros((2, LEVELS), np.int64)
    greys = count_colors(srgb, GREY_LEVELS, colors, hues, saturations, values)
    if not len(srgb):
        return Colors(shares=np.zeros(0), grey_share=0.0, std=0.0, entropy=0.0)
    return Colors(
        shares=colors[colors > 0] / len(srgb),
        grey_share=greys / len(srgb),
        std=float(column_std(srgb.astype(np.float64) / 255).mean()),
        entropy=float(np.mean([entropy(counts) for counts in (hues, saturations, values)])),
    )


def column_mean(values: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    """Return `values.mean(axis=0)` bit for bit, in a tenth of numpy's time."""
    sums = np.empty(3)
    column_sums(values, sums)
    return sums / len(values)


def column_std(values: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "3"]:
    """Return `values.std(axis=0)` bit for bit, in a fraction of numpy's time."""
    off = values - column_mean(values)
    return np.sqrt(column_mean(off * off))


def entropy(counts: Int64[np.ndarray, " levels"]) -> float:
    """Bits of a distribution."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())
