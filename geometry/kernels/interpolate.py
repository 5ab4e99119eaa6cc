"""Compiled loops that interpolate the attributes of vertices at fragments."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING


@njit(nogil=True, cache=True)
def interpolate_rows(
    face: np.ndarray,
    bary: np.ndarray,
    faces: np.ndarray,
    attributes: np.ndarray,
    out: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Vertex attributes at fragments, rows `first:last` of face [rows, w], bary [rows, w, 2] -> out [rows, w, c]."""
    channels = attributes.shape[1]
    for row in range(first, last):
        for column in range(face.shape[1]):
            f = face[row, column]
            if f < 0:
                for channel in range(channels):
                    out[row, column, channel] = 0.0
                continue
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            b0, b1 = bary[row, column, 0], bary[row, column, 1]
            b2 = np.float32(1.0) - b0 - b1
            for channel in range(channels):
                out[row, column, channel] = (
                    b0 * attributes[i, channel] + b1 * attributes[j, channel] + b2 * attributes[k, channel]
                )


@njit(**BORROWING)
def surface_rows(
    face: np.ndarray, bary: np.ndarray, faces: np.ndarray, vertices: np.ndarray, normals: np.ndarray, shortest: float,
    position: np.ndarray, normal: np.ndarray, lost: np.ndarray,
) -> None:  # fmt: skip
    """Position and unit normal at fragments: face [h, w], bary [h, w, 2], vertices and normals [v, 3] -> position and
    normal [h, w, 3], 0 where nothing is. Normals below `shortest` (and NaN) become 0 and are marked in lost [h, w]."""
    height, width = face.shape
    for row in range(height):
        for column in range(width):
            f = face[row, column]
            lost[row, column] = False
            if f < 0:
                for axis in range(3):
                    position[row, column, axis] = normal[row, column, axis] = 0.0
                continue
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            b0, b1 = bary[row, column, 0], bary[row, column, 1]
            b2 = np.float32(1.0) - b0 - b1
            for axis in range(3):
                position[row, column, axis] = b0 * vertices[i, axis] + b1 * vertices[j, axis] + b2 * vertices[k, axis]
            x = b0 * normals[i, 0] + b1 * normals[j, 0] + b2 * normals[k, 0]
            y = b0 * normals[i, 1] + b1 * normals[j, 1] + b2 * normals[k, 1]
            z = b0 * normals[i, 2] + b1 * normals[j, 2] + b2 * normals[k, 2]
            length = np.sqrt(x * x + y * y + z * z)
            if length >= shortest:
                scale = np.float32(1.0) / length
                normal[row, column, 0], normal[row, column, 1] = x * scale, y * scale
                normal[row, column, 2] = z * scale
            else:
                normal[row, column, 0] = normal[row, column, 1] = normal[row, column, 2] = 0.0
                lost[row, column] = True
