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
    diagonal = np.zeros(len(uv))
    for f in range(len(corners)):
        for k in range(3):
            diagonal[corners[f, k]] += weights[f, k]
            diagonal[corners[f, (k + 1) % 3]] += weights[f, k]
    wanted = np.empty_like(uv)
    scratch = np.empty((4, len(uv), 2))
    for _ in range(turns):
        turn_faces(corners, rest, weights, uv, wanted)
        moved = solve(corners, weights, diagonal, uv, wanted, scratch, steps)
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
def apply_laplacian(corners: np.ndarray, weights: np.ndarray, values: np.ndarray, out: np.ndarray) -> None:
    out[:] = 0.0
    for f in range(len(corners)):
        for k in range(3):
            i, j = corners[f, k], corners[f, (k + 1) % 3]
            x = weights[f, k] * (values[j, 0] - values[i, 0])
            y = weights[f, k] * (values[j, 1] - values[i, 1])
            out[i, 0] -= x
            out[i, 1] -= y
            out[j, 0] += x
            out[j, 1] += y


@njit(nogil=True, cache=True)
def solve(
    corners: np.ndarray, weights: np.ndarray, diagonal: np.ndarray, uv: np.ndarray, wanted: np.ndarray,
    scratch: np.ndarray, steps: int,
) -> float:  # fmt: skip
    """Global step: conjugate gradients on L uv = wanted, both axes together; the system leaves a shift open, and so
    does the solution. Returns the first residual's energy over the solution's."""
    residual, direction, image, scaled = scratch[0], scratch[1], scratch[2], scratch[3]
    apply_laplacian(corners, weights, uv, image)
    energy, size = 0.0, 0.0
    for v in range(len(uv)):
        for k in range(2):
            residual[v, k] = wanted[v, k] - image[v, k]
            scaled[v, k] = residual[v, k] / diagonal[v]
            direction[v, k] = scaled[v, k]
            energy += residual[v, k] * scaled[v, k]
            size += uv[v, k] * image[v, k]
    first = energy
    for _ in range(steps):
        if not energy > SOLVED * SOLVED * first or not energy > 1e-24:
            break
        apply_laplacian(corners, weights, direction, image)
        curvature = 0.0
        for v in range(len(uv)):
            for k in range(2):
                curvature += direction[v, k] * image[v, k]
        if not curvature > 0.0:
            break
        length = energy / curvature
        before, energy = energy, 0.0
        for v in range(len(uv)):
            for k in range(2):
                uv[v, k] += length * direction[v, k]
                residual[v, k] -= length * image[v, k]
                scaled[v, k] = residual[v, k] / diagonal[v]
                energy += residual[v, k] * scaled[v, k]
        for v in range(len(uv)):
            for k in range(2):
                direction[v, k] = scaled[v, k] + energy / before * direction[v, k]
    return np.sqrt(first / size) if size > 0.0 else 0.0
