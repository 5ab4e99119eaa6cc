"""Charts sewn to a neighbour where both fit in the plane together: a tube cut into strips becomes one again."""

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.unwrap.charts import chart_faces, sum_pairs
from pipeline.unwrap.half_edges import Surface
from pipeline.unwrap.kernels.stitch import sew

MIN_SHARED = 0.12
"""Smallest share of the shorter border that a seam must take up."""
MAX_GAP = 0.3
"""Largest root mean square distance, over the length of the seam, between its sides after the best fit."""
MAX_SHARE = 0.12
"""Largest share of the surface on one sewn chart: few large pieces fill a square badly."""
MAX_SIDE = 0.8
"""Largest side of a sewn chart, over the side of a square as large as the surface: the longest chart must fit."""
WORK_PER_FACE = 12
"""Faces that are relaxed in trials, over the faces there are: bounds the time."""


def stitch_charts(
    surface: Surface,
    labels: Int64[np.ndarray, " f"],
    places: Float64[np.ndarray, "f 3 2"],
    rest: Float64[np.ndarray, "f 3"],
    weights: Float64[np.ndarray, "f 3"],
    texel: float,
) -> tuple[Int64[np.ndarray, " f"], Float64[np.ndarray, "f 3 2"]]:
    """New charts and corner coordinates. `texel` is the side of a texel in units of the surface, at which overlap is
    looked for."""
    labels, places = labels.copy(), places.copy()
    members = chart_faces(labels)
    mates = surface.mates.reshape(-1)
    lower = np.flatnonzero(mates > np.arange(len(mates)))
    lengths, borders = surface.lengths.reshape(-1)[lower], _borders(surface, labels, len(members))
    local = np.full(int(surface.fans.max()) + 1, -1)
    sizes = np.bincount(labels, surface.areas)
    largest, longest = MAX_SHARE * float(sizes.sum()), MAX_SIDE * float(np.sqrt(sizes.sum()))
    versions, failed = np.zeros(len(members), np.int64), set()
    work = WORK_PER_FACE * len(labels)
    progress = True
    while progress and work > 0:
        progress = False
        one, other, shared = sum_pairs(labels[lower // 3], labels[mates[lower] // 3], lengths)
        gain = shared / np.minimum(borders[one], borders[other])
        touched = np.zeros(len(members), bool)
        for pair in np.argsort(-gain, kind="stable"):
            a, b = int(one[pair]), int(other[pair])
            trial = (a, b, int(versions[a]), int(versions[b]))
            if gain[pair] < MIN_SHARED or work <= 0:
                break
            if touched[a] or touched[b] or trial in failed or sizes[a] + sizes[b] > largest:
                continue
            first, second = (a, b) if len(members[a]) >= len(members[b]) else (b, a)
            done, sewn = sew(
                members[first], members[second], labels, surface.mates, surface.fans, places, rest, weights,
                surface.areas, local, texel, MAX_GAP * float(shared[pair]), longest,
            )  # fmt: skip
            work -= done
            if not len(sewn):
                failed.add(trial)
                continue
            both = np.concatenate([members[first], members[second]])
            places[both], labels[both] = sewn, a
            members[a], members[b] = both, both[:0]
            sizes[a] += sizes[b]
            borders[a] += borders[b] - 2 * shared[pair]
            versions[a] += 1
            touched[a] = touched[b] = progress = True
    return np.unique(labels, return_inverse=True)[1], places


def _borders(surface: Surface, labels: Int64[np.ndarray, " f"], charts: int) -> Float64[np.ndarray, " c"]:
    """Length of each chart's border."""
    across = np.where(surface.mates >= 0, labels[surface.mates // 3], -1)
    open_length = (surface.lengths * (across != labels[:, None])).sum(axis=1)
    return np.bincount(labels, weights=open_length, minlength=charts)
