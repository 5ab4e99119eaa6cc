"""Signature of an asset that survives another export: numbers on its shape and on where its colours lie, which do
not change with position, rotation, size, order of faces and vertices, texture layout or image format."""

import numpy as np
from jaxtyping import Float64, UInt16

from geometry.kernels.samples import gather_shells, lengths_between, points_on_faces
from geometry.texture import encode_srgb8
from pipeline.filter.surface_samples import SurfaceSamples, column_mean
from schemas.mesh import TexturedMesh

RADII = 6
"""Parts of the surface by distance from its centroid, each with a sixth of the area."""
SHELLS = np.linspace(0.25, 1.75, 6)
"""Distances from the centroid around which colour is gathered."""
DISTANCES = 8
"""Parts of the distances between points of the surface by size (shape distribution D2, Osada et al. 2002). Means of
parts, since quantiles jump where a distribution has a gap."""
PAIRINGS = 4
"""How many distances are measured for each point."""
STEPS = 8192
"""Stored steps of one unit; 65535 of them reach 8 units, beyond which numbers are cut off."""
COLOR_WEIGHT = 2.0
"""Of a shell's share of sRGB in [0, 1] against lengths in units of the root mean square distance from the centroid."""
NUMBERS = 4 + RADII + DISTANCES + 3 * len(SHELLS)
_HEX_DIGITS = 4
"""Of a number as stored."""


def signature(mesh: TexturedMesh, samples: SurfaceSamples, area: float) -> str | None:
    """Hex text of `NUMBERS` numbers; None where the surface has no extent."""
    if not len(samples.face):
        return None
    points = np.empty((len(samples.face), 3))
    points_on_faces(mesh.vertices, mesh.faces, samples.face, samples.bary, points)
    points -= column_mean(points)
    size = np.sqrt((points**2).sum(axis=1).mean())
    if not (np.isfinite(size) and size > 0):
        return None
    points /= size
    spread = np.linalg.eigvalsh(points.T @ points / len(points))
    numbers = np.concatenate([
        np.sqrt(np.maximum(spread, 0)),
        [np.sqrt(area) / size / 4],
        *_lengths(points),
        COLOR_WEIGHT * _shell_colors(points, samples).reshape(-1),
    ])  # fmt: skip
    return _text(np.rint(np.clip(numbers * STEPS, 0, 65535)).astype(np.uint16))


def _lengths(points: Float64[np.ndarray, "n 3"]) -> list[Float64[np.ndarray, " parts"]]:
    """Mean distances from the centroid, and between points that fixed permutations pair, of parts by size."""
    order = np.random.default_rng(1).permutation(len(points))
    apart = np.empty((PAIRINGS, len(points)))
    for shift in range(PAIRINGS):
        lengths_between(points, order, shift, apart[shift])
    return [_part_means(np.linalg.norm(points, axis=1), RADII), _part_means(apart.reshape(-1), DISTANCES)]


def _part_means(values: Float64[np.ndarray, " n"], parts: int) -> Float64[np.ndarray, " parts"]:
    return np.array([part.mean() for part in np.array_split(np.sort(values), parts)])


def _shell_colors(points: Float64[np.ndarray, "n 3"], samples: SurfaceSamples) -> Float64[np.ndarray, "shells 3"]:
    """sRGB gathered in shells around the centroid, which fade into each other: on a ball no point would have a shell of
    its own for sure. Black where it is looked through."""
    sums = np.zeros((len(SHELLS), 3))
    gather_shells(np.linalg.norm(points, axis=1), encode_srgb8(samples.linear), samples.opaque, SHELLS, sums)
    return sums / len(points)


def _text(numbers: UInt16[np.ndarray, " d"]) -> str:
    return numbers.astype(">u2").tobytes().hex()


def is_signature(text: str) -> bool:
    """Return whether a text may be a signature: `numbers_of` has no other check."""
    return len(text) == _HEX_DIGITS * NUMBERS and not set(text) - set("0123456789abcdef")


def numbers_of(stored: bytes) -> Float64[np.ndarray, " d"]:
    """A signature's bytes as numbers again, or those of many, one after the other."""
    numbers = np.frombuffer(stored, ">u2").astype(np.float64)
    numbers /= STEPS
    return numbers
