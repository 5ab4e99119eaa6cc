"""Compiled loops that lay two charts flat as one."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from pipeline.unwrap.kernels.flatten import relax
from pipeline.unwrap.kernels.stretch import box_sides, count_shared, face_stretch

MAX_STRETCH = 1.06
"""Largest L2 stretch of a sewn chart (1: none)."""
MAX_FACE_STRETCH = 2.5
"""Largest stretch of any face of a sewn chart along any direction."""
MIN_BOX_FILL = 0.35
"""Least share of its bounding box that a sewn chart must fill: rings and crosses waste the map."""
TRIAL_TURNS, TRIAL_STEPS = 8, 16


@njit(nogil=True, cache=True)
def fit_seam(
    faces: np.ndarray, onto: int, labels: np.ndarray, mates: np.ndarray, places: np.ndarray
) -> tuple[float, float, float, float, float]:
    """Rotation (cosine, sine) and shift that take a chart's side of its seams with chart `onto` to the other side, and
    the root mean square distance that is left."""
    count, mean = 0, np.zeros(4)
    pairs = np.empty((6 * len(faces), 4))
    for face in faces:
        for k in range(3):
            mate = mates[face, k]
            if mate < 0 or labels[mate // 3] != onto:
                continue
            f, j = mate // 3, mate % 3
            for own, there in ((k, (j + 1) % 3), ((k + 1) % 3, j)):
                pairs[count, 0], pairs[count, 1] = places[face, own, 0], places[face, own, 1]
                pairs[count, 2], pairs[count, 3] = places[f, there, 0], places[f, there, 1]
                mean += pairs[count]
                count += 1
    mean /= count
    along, across = 0.0, 0.0
    for i in range(count):
        p = pairs[i] - mean
        along += p[0] * p[2] + p[1] * p[3]
        across += p[0] * p[3] - p[1] * p[2]
    length = np.sqrt(along * along + across * across)
    cosine, sine = (along / length, across / length) if length > 0.0 else (1.0, 0.0)
    x = mean[2] - (cosine * mean[0] - sine * mean[1])
    y = mean[3] - (sine * mean[0] + cosine * mean[1])
    left = 0.0
    for i in range(count):
        dx = cosine * pairs[i, 0] - sine * pairs[i, 1] + x - pairs[i, 2]
        dy = sine * pairs[i, 0] + cosine * pairs[i, 1] + y - pairs[i, 3]
        left += dx * dx + dy * dy
    return cosine, sine, x, y, np.sqrt(left / count)


@njit(nogil=True, cache=True)
def sew(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, mates: np.ndarray, fans: np.ndarray, places: np.ndarray,
    rest: np.ndarray, weights: np.ndarray, areas: np.ndarray, local: np.ndarray, texel: float, max_gap: float,
    longest: float,
) -> tuple[int, np.ndarray]:  # fmt: skip
    """Chart `second` moved to `first` and both relaxed: the faces that had to be relaxed, and corner coordinates
    [f, 3, 2] of both, none where they do not fit. `local` is scratch, -1 for every point, and is left so."""
    nothing = np.empty((0, 3, 2))
    cosine, sine, x, y, gap = fit_seam(second, labels[first[0]], labels, mates, places)
    if gap > max_gap:
        return len(second), nothing
    faces = np.concatenate((first, second))
    corners, uv, hits, count = (
        np.empty((len(faces), 3), np.int64),
        np.zeros((3 * len(faces), 2)),
        np.zeros(3 * len(faces)),
        0,
    )
    for i in range(len(faces)):
        for k in range(3):
            fan = fans[faces[i], k]
            if local[fan] < 0:
                local[fan] = count
                count += 1
            v = local[fan]
            corners[i, k] = v
            px, py = places[faces[i], k, 0], places[faces[i], k, 1]
            if i >= len(first):
                px, py = cosine * px - sine * py + x, sine * px + cosine * py + y
            uv[v, 0] += px
            uv[v, 1] += py
            hits[v] += 1.0
    for face in faces:
        for k in range(3):
            local[fans[face, k]] = -1
    uv = uv[:count] / hits[:count].reshape(-1, 1)
    shapes = rest[faces]
    relax(corners, shapes, weights[faces], uv, np.int64(TRIAL_TURNS), np.int64(TRIAL_STEPS))
    if not lies_well(corners, shapes, areas[faces], uv, texel, longest):
        return len(faces), nothing
    sewn = np.empty((len(faces), 3, 2))
    for i in range(len(faces)):
        for k in range(3):
            sewn[i, k, 0], sewn[i, k, 1] = uv[corners[i, k], 0], uv[corners[i, k], 1]
    return len(faces), sewn


@njit(nogil=True, cache=True)
def lies_well(
    corners: np.ndarray, rest: np.ndarray, areas: np.ndarray, uv: np.ndarray, texel: float, longest: float
) -> bool:
    """Return whether a chart has no face turned over, little stretch, a compact shape and no two faces in one place."""
    signed, largest, smallest = face_stretch(corners, rest, uv)
    total, energy, surface_area = 0.0, 0.0, 0.0
    for f in range(len(corners)):
        if not signed[f] > 0.0 or largest[f] > MAX_FACE_STRETCH:
            return False
        total += signed[f]
        surface_area += areas[f]
        energy += areas[f] * (largest[f] ** 2 + smallest[f] ** 2) / 2
    if energy / surface_area * (total / surface_area) > MAX_STRETCH**2:
        return False
    along, across = box_sides(uv)
    if total < MIN_BOX_FILL * along * across or max(along, across) > longest:
        return False
    return count_shared(corners, uv, texel) == 0
