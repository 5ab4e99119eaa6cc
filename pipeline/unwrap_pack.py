"""Charts side by side in a square: each goes to the lowest free place, largest first, by the texels it touches."""

import numpy as np
from jaxtyping import Float64, Int64

from geometry.pack_kernels import pack_at, place_vertices, turn_charts

FIRST_FILL = 0.72
"""Share of the map that the first attempt hopes to fill."""
MAX_ATTEMPTS = 7
CLOSE_ENOUGH = 1.01
"""Ratio of a scale that is known not to fit and one that does at which the search ends."""


def pack(
    corners: Int64[np.ndarray, "f 3"],
    first_vertex: Int64[np.ndarray, " c1"],
    order: Int64[np.ndarray, " f"],
    first_face: Int64[np.ndarray, " c1"],
    uv: Float64[np.ndarray, "n 2"],
    resolution: int,
    padding: int,
) -> Float64[np.ndarray, "n 2"] | None:
    """Chart coordinates turned, scaled by one factor for all and moved into the unit square, so that no two charts
    touch texels less than `padding` empty texels apart. None where even small charts do not fit: there are too many."""
    turned, sides = turn_charts(first_vertex, uv)
    area = float(np.maximum(np.prod(sides, axis=1), 1e-300).sum())
    flat = uv[corners]
    edges = flat[:, 1:] - flat[:, :1]
    solid = float(np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]).sum() / 2)
    scale = min(np.sqrt(FIRST_FILL / max(solid, 0.2 * area)) * resolution, (resolution - 2) / float(sides.max()))
    fits, too_large, best = 0.0, np.inf, None
    sequence = np.lexsort((np.arange(len(sides)), -np.prod(sides, axis=1), -sides.max(axis=1)))
    for _ in range(MAX_ATTEMPTS):
        places, turns, size, height = pack_at(
            sequence, turned * scale, corners, order, first_face, first_vertex, resolution, padding
        )
        if height <= resolution:
            fits, best = scale, (turned * scale, places, turns, size)
        else:
            too_large = scale
        if too_large / max(fits, 1e-300) < CLOSE_ENOUGH:
            break
        guess = scale * np.sqrt(resolution / max(height, 1)) * (0.995 if height > resolution else 1.0)
        if fits > 0 and not fits * 1.003 < guess < too_large * 0.997:
            guess = np.sqrt(fits * too_large) if np.isfinite(too_large) else fits * 1.03
        scale = min(guess, (resolution - 2) / float(sides.max()))
        if scale == fits:
            break
    if best is None:
        return None
    return place_vertices(first_vertex, *best) / resolution
