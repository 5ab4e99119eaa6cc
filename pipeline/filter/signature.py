"""Signature of an asset that survives another export: numbers on its shape, on its colours and on where they lie.

Shape and amounts of colour do not change with position, rotation, size, order of faces and vertices, texture layout or
image format. Where the colours lie is known twice: by place in the texture, which a turned object keeps, and by
direction from the centroid, which an object with a new texture layout keeps. The nearer of the two counts.
"""

from functools import cache

import numpy as np
from jaxtyping import Float64, UInt8, UInt16

from geometry.kernels.samples import gather_layout, gather_shells, lengths_between, points_on_faces
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
"""Distances measured per point."""
STEPS = 8192
"""Stored steps of one unit; 65535 of them reach 8 units, beyond which numbers are cut off."""
COLOR_WEIGHT = 2.0
"""Weight of a shell's share of sRGB in [0, 1] against lengths in units of the root mean square distance from the
centroid."""
SIDE = 64
"""Cells along a side of the grids in which colours are gathered."""
FINEST, FINEST_DIRECTION = 16, 24
"""Waves across the texture, and radians per radian, up to which layouts of colour are compared."""
WAVES = 600
"""Plane waves of which a pattern by direction is made."""
PATTERNS = 32
"""Random patterns whose products with a layout of colour are its numbers: they keep distances between layouts."""
MIN_CONTRAST = 0.02
"""Standard deviation of sRGB in [0, 1] below which colours count as even."""
PALETTE_CELLS = 16
"""Cells of the texture's grid; where the surface lies in fewer, by its spread over them, they are a palette of colours
and no layout."""
LAYOUT_WEIGHT = 1.0
"""Weight of a layout's numbers, for colours of standard deviation 1, against the lengths."""
ZERO = 4.0
"""Stored in place of 0 for the numbers of a layout, which have a sign."""
GENERAL = 4 + RADII + DISTANCES + 3 * len(SHELLS)
"""Numbers on shape and amounts of colour; those on the two layouts of colour follow."""
NUMBERS = GENERAL + 2 * PATTERNS
_HEX_DIGITS = 4
"""Hexadecimal digits of a number as stored."""


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
    colors = encode_srgb8(samples.linear)
    spread = np.linalg.eigvalsh(points.T @ points / len(points))
    numbers = np.concatenate([
        np.sqrt(np.maximum(spread, 0)),
        [np.sqrt(area) / size / 4],
        *_lengths(points),
        COLOR_WEIGHT * _shell_colors(points, samples, colors).reshape(-1),
        ZERO + _layouts(mesh, points, samples, colors).reshape(-1),
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


def _shell_colors(
    points: Float64[np.ndarray, "n 3"], samples: SurfaceSamples, colors: UInt8[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "shells 3"]:
    """sRGB gathered in shells around the centroid, which fade into each other: on a ball no point would have a shell of
    its own for sure. Black where it is looked through."""
    sums = np.zeros((len(SHELLS), 3))
    gather_shells(np.linalg.norm(points, axis=1), colors, samples.opaque, SHELLS, sums)
    return sums / len(points)


def _layouts(
    mesh: TexturedMesh,
    points: Float64[np.ndarray, "n 3"],
    samples: SurfaceSamples,
    colors: UInt8[np.ndarray, "n 3"],
) -> Float64[np.ndarray, "2 patterns"]:
    """Two patterns of colours, contrast made even: by place in the texture, and by direction from the centroid."""
    apart = np.where(samples.opaque[:, None], colors / 255.0, 0.0)
    apart -= column_mean(apart)
    contrast = max(float(np.sqrt((apart**2).mean())), MIN_CONTRAST)
    values = np.concatenate([apart, np.ones((len(points), 1))], axis=1)
    textured = np.array([material.texture is not None for material in mesh.materials])
    mapped = mesh.face_has_uv & textured[mesh.face_material]
    by_texture, by_direction = np.zeros((2, SIDE, SIDE, 4))

    def gather() -> None:
        args = (points, mesh.vertices, mesh.uv, mesh.faces, mapped, samples.face, samples.bary, values)
        gather_layout(*args, by_texture, by_direction)

    gather()
    surface = by_texture[..., 3]
    if mapped.any() and surface.sum() ** 2 < PALETTE_CELLS * (surface**2).sum():
        by_texture[:], by_direction[:], mapped[:] = 0.0, 0.0, False
        gather()
    scale = LAYOUT_WEIGHT / (contrast * len(points))
    grids = zip(layout_patterns(), (by_texture, by_direction), strict=True)
    return np.stack([scale * (pattern @ grid[..., :3].reshape(-1)) for pattern, grid in grids])


@cache
def layout_patterns() -> tuple[Float64[np.ndarray, "patterns cells_and_channels"], ...]:
    """Random patterns over the texture and over all directions, sums of waves up to the finest."""
    rng = np.random.default_rng(0)
    at = (np.arange(SIDE) + 0.5) / SIDE
    u, v = np.meshgrid(at, at)
    number = np.arange(-FINEST, FINEST + 1)
    over, up = (axis.reshape(-1) for axis in np.meshgrid(number, number))
    half = (over**2 + up**2 <= FINEST**2) & ((up > 0) | ((up == 0) & (over > 0)))
    x, y = 2 * u - 1, 2 * v - 1
    z = 1 - abs(x) - abs(y)
    below = np.maximum(-z, 0.0)
    directions = np.stack([x - np.sign(x) * below, y - np.sign(y) * below, z], axis=-1).reshape(-1, 3)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    waves = rng.normal(size=(WAVES, 3))
    waves *= FINEST_DIRECTION * np.sqrt(rng.random((WAVES, 1))) / np.linalg.norm(waves, axis=1, keepdims=True)
    return (
        _sums_of_waves(np.stack([u, v], axis=-1).reshape(-1, 2), 2 * np.pi * np.stack([over, up], axis=1)[half], rng),
        _sums_of_waves(directions, waves, rng),
    )


def _sums_of_waves(
    places: Float64[np.ndarray, "cells d"], waves: Float64[np.ndarray, "w d"], rng: np.random.Generator
) -> Float64[np.ndarray, "patterns cells_and_channels"]:
    """Patterns with a variance of 1 in every channel."""
    phase = places @ waves.T
    parts = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    amounts = rng.normal(size=(parts.shape[1], PATTERNS * 3)) / np.sqrt(len(waves))
    return (parts @ amounts).reshape(-1, PATTERNS, 3).transpose(1, 0, 2).reshape(PATTERNS, -1)


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


def differences(
    one: Float64[np.ndarray, " numbers"], others: Float64[np.ndarray, "n numbers"]
) -> Float64[np.ndarray, " n"]:
    """Largest difference of a signature from each of the others in any number that counts: of the two layouts of colour
    the nearer."""
    apart = np.abs(others - one)
    general, by_texture, by_direction = np.split(apart, [GENERAL, GENERAL + PATTERNS], axis=1)
    return np.maximum(general.max(axis=1), np.minimum(by_texture.max(axis=1), by_direction.max(axis=1)))
