"""Cutting a surface into charts: neighbours are merged, the best pair first, as long as a plane can be found that all
faces of the chart look to."""

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.unwrap.half_edges import Surface
from pipeline.unwrap.kernels.chart import merge_round

MAX_CONE_DEG = 62.0
"""Largest angle between a face and the mean normal of its chart."""
MAX_BEND = 0.16
"""Largest 1 - |sum of area vectors| / area of a chart: 0.16 is a dome of 66 degrees half angle or half a cylinder's
quarter on each side."""
RAGGED_WEIGHT = 0.08
"""Cost, against bend, of a merge that leaves most of the smaller border open."""
MAX_ROUNDS = 200


def chart_faces(labels: Int64[np.ndarray, " f"]) -> list[Int64[np.ndarray, " m"]]:
    """Faces of each chart, in order."""
    return np.split(np.argsort(labels, kind="stable"), np.cumsum(np.bincount(labels))[:-1])


def grow_charts(surface: Surface) -> Int64[np.ndarray, " f"]:
    """Chart of every face, numbered without gaps."""
    labels = np.arange(len(surface.faces))
    vectors = surface.normals * surface.areas[:, None]
    areas, borders = surface.areas.copy(), surface.lengths.sum(axis=1)
    following, ends = np.full(len(labels), -1), labels.copy()  # faces of a chart as a linked list from its number
    lower = np.flatnonzero(surface.mates.reshape(-1) > np.arange(surface.mates.size))
    one, other = lower // 3, surface.mates.reshape(-1)[lower] // 3
    shared, cosine = surface.lengths.reshape(-1)[lower], float(np.cos(np.deg2rad(MAX_CONE_DEG)))
    for _ in range(MAX_ROUNDS):
        one, other, shared = sum_pairs(labels[one], labels[other], shared)
        cost = _costs(vectors, areas, borders, one, other, shared)
        # a merge beyond the limit can become one within it, later: such pairs wait
        open_pairs = np.flatnonzero(cost[0] <= MAX_BEND)
        order = open_pairs[np.argsort(cost[1][open_pairs], kind="stable")]
        merged = merge_round(
            order, one, other, shared, surface.normals, cosine, labels, vectors, areas, borders, following, ends
        )
        if not merged:
            break
        labels = labels[labels]
    return np.unique(labels, return_inverse=True)[1]


def sum_pairs(
    one: Int64[np.ndarray, " e"], other: Int64[np.ndarray, " e"], shared: Float64[np.ndarray, " e"]
) -> tuple[Int64[np.ndarray, " p"], Int64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """Pairs of different charts once each, with the length of border that they share."""
    low, high = np.minimum(one, other), np.maximum(one, other)
    apart = low != high
    size = int(high.max(initial=0)) + 1
    keys, place = np.unique(low[apart] * size + high[apart], return_inverse=True)
    return *np.divmod(keys, size), np.bincount(place, shared[apart], len(keys)).astype(np.float64)


def _costs(
    vectors: Float64[np.ndarray, "f 3"],
    areas: Float64[np.ndarray, " f"],
    borders: Float64[np.ndarray, " f"],
    one: Int64[np.ndarray, " p"],
    other: Int64[np.ndarray, " p"],
    shared: Float64[np.ndarray, " p"],
) -> tuple[Float64[np.ndarray, " p"], Float64[np.ndarray, " p"]]:
    """Bend of each merged pair, and what the merge costs."""
    area = areas[one] + areas[other]
    bend = 1 - np.linalg.norm(vectors[one] + vectors[other], axis=1) / area
    open_share = 1 - shared / np.minimum(borders[one], borders[other])
    return bend, bend + RAGGED_WEIGHT * open_share
