"""Colours of the source, sampled evenly over the area of its surface."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, UInt8

from geometry.raster import Fragments
from geometry.texture import encode_srgb8, surface_color
from schemas.mesh import TexturedMesh

NUM_SAMPLES = 1 << 16
"""Points on the surface at which colour is looked up."""
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
    """Not looked through by rendering: masked below the cutoff, blended below one half."""

    @property
    def srgb(self) -> UInt8[np.ndarray, "m 3"]:
        """Colours of the opaque ones."""
        return encode_srgb8(self.linear[self.opaque])


def sample_surface(mesh: TexturedMesh, areas: Float64[np.ndarray, " f"]) -> SurfaceSamples:
    """Evenly spaced in cumulated area, so that every face of 1/n of the area or more is met; random only within a face
    (the same in every run)."""
    total = np.cumsum(areas)
    if not (len(total) and total[-1] > 0):
        nothing = np.zeros((0, 3), np.float32)
        return SurfaceSamples(face=np.zeros(0, np.int32), bary=nothing[:, :2], linear=nothing, opaque=np.zeros(0, bool))
    marks = (np.arange(NUM_SAMPLES) + 0.5) / NUM_SAMPLES * total[-1]
    face = np.minimum(np.searchsorted(total, marks), len(areas) - 1).astype(np.int32)
    bary = np.random.default_rng(0).random((NUM_SAMPLES, 2)).astype(np.float32)
    bary = np.where(bary.sum(axis=1, keepdims=True) > 1, 1 - bary, bary)
    points = Fragments(face=face[None, None], bary=bary[None, None], depth=np.zeros((1, 1, NUM_SAMPLES), np.float32))
    color = surface_color(mesh, points)[0, 0]
    return SurfaceSamples(face=face, bary=bary, linear=color[:, :3], opaque=color[:, 3] > 0)


def color_shares(srgb: UInt8[np.ndarray, "m 3"]) -> Float64[np.ndarray, " colors"]:
    """Share of every colour that occurs, at 5 bits a channel."""
    counts = np.bincount((srgb >> 3).astype(np.int64) @ np.array([1024, 32, 1]))
    return counts[counts > 0] / max(1, len(srgb))


def num_colors(shares: Float64[np.ndarray, " colors"]) -> int:
    """Count the colours that cover a visible share."""
    return int((shares >= MIN_COLOR_SHARE).sum())


def grey_share(srgb: UInt8[np.ndarray, "m 3"]) -> float:
    return float((np.ptp(srgb, axis=1) < GREY_LEVELS).mean()) if len(srgb) else 0.0


def hsv_entropy(srgb: UInt8[np.ndarray, "m 3"]) -> float:
    """Bits: mean of the entropies of hue, saturation and value, 256 bins each (MV-Painter); 0 for one colour. Hue has
    180 values (OpenCV's 8-bit HSV), so that the figure compares."""
    if not len(srgb):
        return 0.0
    rgb = srgb.astype(np.float32)
    value, chroma = rgb.max(axis=1), np.ptp(rgb, axis=1)
    safe = np.where(chroma > 0, chroma, np.float32(1))
    red, green, blue = rgb.T
    sector = np.where(
        value == red, (green - blue) / safe, np.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe)
    )
    hue = np.rint(30 * sector) % 180
    saturation = np.rint(255 * chroma / np.maximum(value, 1))
    return float(np.mean([entropy(channel.astype(np.int64)) for channel in (hue, saturation, value)]))


def entropy(levels: np.ndarray) -> float:
    """Bits of the distribution of small non-negative integers."""
    counts = np.bincount(levels)
    shares = counts[counts > 0] / len(levels)
    return float(-(shares * np.log2(shares)).sum())
