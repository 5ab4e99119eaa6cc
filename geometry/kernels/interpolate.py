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


@njit(forceinline=True, **BORROWING)
def corners_of(faces: np.ndarray, f: int) -> tuple[int, int, int]:
    """Vertices of a face, unsigned: numba looks at the sign of an index each time."""
    face = np.uint32(f)
    return np.uint32(faces[face, 0]), np.uint32(faces[face, 1]), np.uint32(faces[face, 2])


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
            i, j, k = corners_of(faces, f)
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


@njit(forceinline=True, **BORROWING)
def corner_frame(
    faces: np.ndarray, normals: np.ndarray, tangents: np.ndarray, f: int, b0: float, b1: float, frame: np.ndarray
) -> None:
    """Tangent, bitangent and normal at a point of a face, interpolated and not normalised, as MikkTSpace asks ->
    frame [3, 3]."""
    i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
    b2 = 1.0 - b0 - b1
    for axis in range(3):
        frame[0, axis] = b0 * tangents[f, 0, axis] + b1 * tangents[f, 1, axis] + b2 * tangents[f, 2, axis]
        frame[2, axis] = b0 * normals[i, axis] + b1 * normals[j, axis] + b2 * normals[k, axis]
    sign = b0 * tangents[f, 0, 3] + b1 * tangents[f, 1, 3] + b2 * tangents[f, 2, 3]
    side = -1.0 if sign < 0.0 else 1.0
    frame[1, 0] = side * (frame[2, 1] * frame[0, 2] - frame[2, 2] * frame[0, 1])
    frame[1, 1] = side * (frame[2, 2] * frame[0, 0] - frame[2, 0] * frame[0, 2])
    frame[1, 2] = side * (frame[2, 0] * frame[0, 1] - frame[2, 1] * frame[0, 0])


@njit(**BORROWING)
def bend_rows(
    face: np.ndarray, bary: np.ndarray, mapped: np.ndarray, faces: np.ndarray, normals: np.ndarray,
    tangents: np.ndarray, face_material: np.ndarray, scale: np.ndarray, shortest: float, frame: np.ndarray,
    normal: np.ndarray,
) -> None:  # fmt: skip
    """Bend unit normals [h, w, 3], in place, by a normal map: face [h, w], bary [h, w, 2], mapped [h, w, c] with x, y
    and z as 0..1, scale [m] of x and y. Normals stay where the map leaves no direction; `frame` [3, 3] is scratch."""
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            f = face[row, column]
            if f < 0 or tangents[f, 0, 3] == 0.0:
                continue
            corner_frame(
                faces, normals, tangents, f, np.float64(bary[row, column, 0]), np.float64(bary[row, column, 1]), frame
            )
            bump = np.float64(scale[face_material[f]])
            x, y = bump * (2.0 * mapped[row, column, 0] - 1.0), bump * (2.0 * mapped[row, column, 1] - 1.0)
            z = 2.0 * mapped[row, column, 2] - 1.0
            to_x = x * frame[0, 0] + y * frame[1, 0] + z * frame[2, 0]
            to_y = x * frame[0, 1] + y * frame[1, 1] + z * frame[2, 1]
            to_z = x * frame[0, 2] + y * frame[1, 2] + z * frame[2, 2]
            length = np.sqrt(to_x * to_x + to_y * to_y + to_z * to_z)
            if length >= shortest:
                normal[row, column, 0], normal[row, column, 1] = to_x / length, to_y / length
                normal[row, column, 2] = to_z / length


@njit(**BORROWING)
def tangent_rows(
    face: np.ndarray, bary: np.ndarray, normal: np.ndarray, faces: np.ndarray, normals: np.ndarray,
    tangents: np.ndarray, frame: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Bring unit normals [h, w, 3] into the tangent space of their fragments: face [h, w], bary [h, w, 2] -> unit out
    [h, w, 3]; (0, 0, 1) where nothing is, or a frame has collapsed. The inverse of `bend_rows` at scale 1."""
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            out[row, column, 0] = out[row, column, 1] = 0.0
            out[row, column, 2] = 1.0
            f = face[row, column]
            if f < 0:
                continue
            corner_frame(
                faces, normals, tangents, f, np.float64(bary[row, column, 0]), np.float64(bary[row, column, 1]), frame
            )
            tt, tn, nn, bb, pt, pb, pn = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
            for axis in range(3):
                value, tangent, upright = np.float64(normal[row, column, axis]), frame[0, axis], frame[2, axis]
                tt, tn, nn = tt + tangent * tangent, tn + tangent * upright, nn + upright * upright
                bb += frame[1, axis] * frame[1, axis]
                pt, pn, pb = pt + value * tangent, pn + value * upright, pb + value * frame[1, axis]
            if not bb > 1e-12:
                continue
            # the bitangent is at right angles to both others, which need not be to each other; bb = tt nn - tn tn
            x, y, z = (pt * nn - pn * tn) / bb, pb / bb, (pn * tt - pt * tn) / bb
            length = np.sqrt(x * x + y * y + z * z)
            if length > 0.0:
                out[row, column, 0], out[row, column, 1] = x / length, y / length
                out[row, column, 2] = z / length


@njit(**BORROWING)
def unit_rows(vectors: np.ndarray, known: np.ndarray, shortest: float) -> None:
    """Scale vectors float32 [h, w, 3] to unit length, in place, where they are not known [h, w]; (0, 0, 1) for those
    no longer than `shortest`."""
    for row in range(known.shape[0]):
        for column in range(known.shape[1]):
            if known[row, column]:
                continue
            x, y, z = vectors[row, column, 0], vectors[row, column, 1], vectors[row, column, 2]
            length = np.sqrt(x * x + y * y + z * z)
            found = length > np.float32(shortest)
            vectors[row, column, 0] = x / length if found else np.float32(0.0)
            vectors[row, column, 1] = y / length if found else np.float32(0.0)
            vectors[row, column, 2] = z / length if found else np.float32(1.0)
