"""Compiled loops that lay charts flat, each face as close to its own shape as its neighbours allow."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

SOLVED = 1e-3
"""Residual over its first value at which a global step ends."""


@njit(nogil=True, cache=True)
def relax_all(
    order: np.ndarray, first_face: np.ndarray, first_vertex: np.ndarray, corners: np.ndarray, rest: np.ndarray,
    weights: np.ndarray, uv: np.ndarray, turns: int, steps: int,
) -> None:  # fmt: skip
    """`relax` for one chart after the other, on contiguous copies, in place."""
    for chart in range(len(first_face) - 1):
        faces = order[first_face[chart] : first_face[chart + 1]]
        start, end = first_vertex[chart], first_vertex[chart + 1]
        relax(corners[faces] - start, rest[faces], weights[faces], uv[start:end], turns, steps)


@njit(nogil=True, cache=True)
def relax(corners: np.ndarray, rest: np.ndarray, weights: np.ndarray, uv: np.ndarray, turns: int, steps: int) -> None:
    """As-rigid-as-possible coordinates of one chart, in place: corners [f, 3] into uv [n, 2]."""
    if len(corners) == 1:
        uv[corners[0, 0], 0], uv[corners[0, 0], 1] = 0.0, 0.0
        uv[corners[0, 1], 0], uv[corners[0, 1], 1] = rest[0, 0], 0.0
        uv[corners[0, 2], 0], uv[corners[0, 2], 1] = rest[0, 1], rest[0, 2]
        return
    first, others, strengths = neighbours(corners, weights, len(uv))
    wanted = np.empty_like(uv)
    inverse, scratch = np.zeros(len(uv)), np.empty((3, len(uv), 2))
    for v in range(len(uv)):
        for entry in range(first[v], first[v + 1]):
            inverse[v] += strengths[entry]
        inverse[v] = 1.0 / inverse[v]
    for _ in range(turns):
        turn_faces(corners, rest, weights, uv, wanted)
        moved = solve(first, others, strengths, inverse, uv, wanted, scratch, steps)
        if moved < 1e-4:
            break


@njit(nogil=True, cache=True)
def turn_faces(corners: np.ndarray, rest: np.ndarray, weights: np.ndarray, uv: np.ndarray, wanted: np.ndarray) -> None:
    """Local step: each face's best rotation, and the right-hand side [n, 2] that asks for its turned edges."""
    wanted[:] = 0.0
    for f in range(len(corners)):
        x = (0.0, rest[f, 0], rest[f, 1])
        y = (0.0, 0.0, rest[f, 2])
        along, across = 0.0, 0.0
        for k in range(3):
            i, j, n = corners[f, k], corners[f, (k + 1) % 3], (k + 1) % 3
            ex, ey = x[n] - x[k], y[n] - y[k]
            ux, uy = uv[j, 0] - uv[i, 0], uv[j, 1] - uv[i, 1]
            along += weights[f, k] * (ex * ux + ey * uy)
            across += weights[f, k] * (ex * uy - ey * ux)
        length = np.sqrt(along * along + across * across)
        cosine, sine = (along / length, across / length) if length > 0.0 else (1.0, 0.0)
        for k in range(3):
            i, j, n = corners[f, k], corners[f, (k + 1) % 3], (k + 1) % 3
            ex, ey = x[n] - x[k], y[n] - y[k]
            tx, ty = weights[f, k] * (cosine * ex - sine * ey), weights[f, k] * (sine * ex + cosine * ey)
            wanted[i, 0] -= tx
            wanted[i, 1] -= ty
            wanted[j, 0] += tx
            wanted[j, 1] += ty


@njit(nogil=True, cache=True)
def neighbours(corners: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Edges of a chart by vertex, those of two faces once: where the entries of each vertex begin [n + 1], and for each
    entry the other end and the weight, 0 where one is not used."""
    first = np.zeros(count + 1, np.int64)
    for f in range(len(corners)):
        for k in range(3):
            first[corners[f, k] + 1] += 2
    for v in range(count):
        first[v + 1] += first[v]
    others, back = np.empty((2, first[count]), np.uint32)  # unsigned: no number counts from the end
    strengths = np.zeros(first[count])
    ends = first[:count].copy()
    for f in range(len(corners)):
        for k in range(3):
            i, j, weight = np.uint64(corners[f, k]), np.uint64(corners[f, (k + 1) % 3]), weights[f, k]
            entry, end = np.uint64(first[i]), np.uint64(ends[i])
            while entry < end and others[entry] != j:
                entry += np.uint64(1)
            if entry == end:  # and there is none from j to i either
                other = np.uint64(ends[j])
                others[entry], others[other], back[entry], back[other] = j, i, other, entry
                ends[i], ends[j] = ends[i] + 1, ends[j] + 1
            strengths[entry] += weight
            strengths[back[entry]] += weight
    used = 0
    for v in range(count):
        begin, end = first[v], ends[v]
        first[v] = used
        for entry in range(begin, end):
            others[used], strengths[used] = others[entry], strengths[entry]
            used += 1
    first[count] = used
    return first, others[:used], strengths[:used]


@njit(nogil=True, cache=True)
def apply_laplacian(
    first: np.ndarray, others: np.ndarray, strengths: np.ndarray, values: np.ndarray, out: np.ndarray
) -> float:
    """Weighted sum of each vertex's differences to its neighbours -> out [n, 2]; returns its product with the values
    [n, 2]."""
    product = 0.0
    for v in range(len(values)):
        own_x, own_y, x, y = values[v, 0], values[v, 1], 0.0, 0.0
        for entry in range(np.uint64(first[v]), np.uint64(first[v + 1])):
            other, strength = others[entry], strengths[entry]
            x += strength * (own_x - values[other, 0])
            y += strength * (own_y - values[other, 1])
        out[v, 0], out[v, 1] = x, y
        product += own_x * x + own_y * y
    return product


@njit(nogil=True, cache=True)
def solve(
    first: np.ndarray, others: np.ndarray, strengths: np.ndarray, inverse: np.ndarray, uv: np.ndarray,
    wanted: np.ndarray, scratch: np.ndarray, steps: int,
) -> float:  # fmt: skip
    """Global step: conjugate gradients on L uv = wanted, both axes together; `inverse`: of L's diagonal. The system
    leaves a shift open, and so does the solution. Returns the first residual's energy over the solution's."""
    residual, direction, image = scratch[0], scratch[1], scratch[2]
    size = apply_laplacian(first, others, strengths, uv, image)
    energy = 0.0
    for v in range(len(uv)):
        for k in range(2):
            residual[v, k] = wanted[v, k] - image[v, k]
            direction[v, k] = residual[v, k] * inverse[v]
            energy += residual[v, k] * direction[v, k]
    start = energy
    for _ in range(steps):
        if not energy > SOLVED * SOLVED * start or not energy > 1e-24:
            break
        curvature = apply_laplacian(first, others, strengths, direction, image)
        if not curvature > 0.0:
            break
        length = energy / curvature
        before, energy = energy, 0.0
        for v in range(len(uv)):
            for k in range(2):
                uv[v, k] += length * direction[v, k]
                residual[v, k] -= length * image[v, k]
                energy += residual[v, k] * residual[v, k] * inverse[v]
        ratio = energy / before
        for v in range(len(uv)):
            for k in range(2):
                direction[v, k] = residual[v, k] * inverse[v] + ratio * direction[v, k]
    return np.sqrt(start / size) if size > 0.0 else 0.0
