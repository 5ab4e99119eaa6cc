"""Charts side by side in a square: each goes to the lowest free place, largest first, by the texels it touches."""

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.unwrap.kernels.pack import chart_runs, pack_at, place_vertices, turn_charts

FIRST_FILL = 0.72
"""Share of the map that the first attempt hopes to fill."""
MAX_ATTEMPTS = 6
SHRINK = 0.93
"""Step by which a scale is lowered where no attempt fitted: first fit is not monotonous, so guesses can go on missing
by a texel."""
GAIN, MAX_GAINS, GAIN_CHARTS = 1.015, 16, 4000
"""Step by which a scale that fits is raised afterwards; how often that is tried, and how many charts that may place."""
CLOSE_ENOUGH = 1.015
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
    if (len(first_vertex) - 1) * (padding + 1) ** 2 > resolution**2:
        return None
    turned, sides = turn_charts(first_vertex, uv)
    largest = (resolution - 2) / float(sides.max())
    boxes = sides.prod(axis=1)
    sequences = [
        np.lexsort((-boxes, -sides.max(axis=1))),
        np.argsort(-boxes, kind="stable"),
        np.argsort(-sides.sum(axis=1), kind="stable"),
    ]

    next_taken, next_free = np.empty((2, resolution + resolution // 2, resolution + 1), np.uint16)
    shapes: dict[float, tuple[Float64[np.ndarray, "n 2"], tuple[np.ndarray, ...]]] = {}

    def attempt(
        sequence: Int64[np.ndarray, " c"], scale: float, limit: int
    ) -> tuple[int, Float64[np.ndarray, "n 2"] | None]:
        """Return the height taken, and the coordinates if they lie in the square."""
        if scale not in shapes:
            shapes.clear()
            shapes[scale] = turned * scale, chart_runs(turned * scale, corners, order, first_face)
        scaled, (sizes, runs, begins) = shapes[scale]
        places, turns, height = pack_at(sequence, sizes, runs, begins, next_taken, next_free, padding, limit)
        if height > resolution:
            return height, None
        return height, place_vertices(first_vertex, scaled, places, turns, sizes) / resolution

    flat = uv[corners]
    edges = flat[:, 1:] - flat[:, :1]
    solid = float(np.abs(edges[:, 0, 0] * edges[:, 1, 1] - edges[:, 0, 1] * edges[:, 1, 0]).sum() / 2)
    scale = min(np.sqrt(FIRST_FILL / max(solid, 0.2 * float(boxes.sum()))) * resolution, largest)
    fits, too_large, best = 0.0, np.inf, None
    for _ in range(MAX_ATTEMPTS):
        height, placed = attempt(sequences[0], scale, 2 * resolution)
        if placed is not None:
            fits, best = scale, placed
        else:
            too_large = scale
        if too_large < fits * CLOSE_ENOUGH or fits >= largest:
            break
        guess = scale * np.sqrt(resolution / max(height, 1)) * (0.995 if height > resolution else 1.0)
        if fits > 0 and not fits * 1.003 < guess < too_large * 0.997:
            guess = np.sqrt(fits * too_large) if np.isfinite(too_large) else fits * 1.03
        scale = min(guess, largest)
    while best is None and scale * float(sides.max()) > 1.0:
        scale *= SHRINK
        height, placed = attempt(sequences[0], scale, resolution)
        if placed is not None:
            fits, best = scale, placed
    # first fit is not monotonous: other sequences and larger scales may do where one did not
    tries = [(sequence, gain) for gain in (GAIN, GAIN**2) for sequence in sequences]
    left = min(MAX_GAINS, GAIN_CHARTS // len(sides)) if best is not None else 0
    while left and tries:
        sequence, gain = tries.pop(0)
        if fits * gain > largest:
            continue
        left -= 1
        height, placed = attempt(sequence, fits * gain, resolution)
        if placed is not None:
            fits, best = fits * gain, placed
            tries = [(sequence, gain) for gain in (GAIN, GAIN**2) for sequence in sequences]
    return best
