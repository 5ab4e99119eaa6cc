"""Compiled loops that find where fragments lie on their faces, and interpolate the attributes of vertices there."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.clip import clamped_weights
from geometry.kernels.jit import BORROWING

RUN = 256
"""Pixels that are resolved together: their lanes stay in a processor's innermost cache."""


@njit(nogil=True, cache=True)
def resolve_rows(
    side: np.ndarray, clip: np.ndarray, faces: np.ndarray, first: int, last: int,
    face: np.ndarray, bary: np.ndarray, depth: np.ndarray,
) -> None:  # fmt: skip
    """Face, weights of its corners 0 and 1, and depth at the pixels of rows `first:last`: side [h, w] -> face [h, w],
    which may be the same array, bary [h, w, 2], depth [h, w]."""
    height, width = side.shape
    step_x, step_y = 2.0 / width, 2.0 / height
    columns, lanes = np.empty(RUN, np.uint32), np.empty(13 * RUN, np.float32)
    for row in range(first, last):
        for start in range(0, width, RUN):
            count = load_sides(
                side, row, start, min(width, start + RUN), clip, faces, face, bary, depth, columns, lanes
            )
            weigh_sides(columns, lanes, count, step_x, (row + 0.5) * step_y - 1.0)
            for lane in range(count):
                column = columns[lane]
                bary[row, column, 0], bary[row, column, 1] = lanes[lane], lanes[lane + RUN]
                depth[row, column] = lanes[lane + 2 * RUN]


@njit(**BORROWING)
def load_sides(
    side: np.ndarray, row: int, first: int, last: int, clip: np.ndarray, faces: np.ndarray, face: np.ndarray,
    bary: np.ndarray, depth: np.ndarray, columns: np.ndarray, lanes: np.ndarray,
) -> int:  # fmt: skip
    """Collect the pixels in columns `first:last` of a row that show something: their columns, and x, y, z and w of the
    three corners and the sign of their faces in the lanes [13 RUN]. Return how many there are. Written are all faces,
    and weights and depth of the others."""
    loaded, count = np.int32(-1), np.int64(0)
    x0, y0, z0, w0 = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    x1, y1, z1, w1, x2, y2, z2, w2 = x0, x0, x0, x0, x0, x0, x0, x0
    for column in range(first, last):
        s = side[row, column]
        face[row, column] = s >> 1
        if s < 0:
            bary[row, column, 0] = bary[row, column, 1] = 0.0
            depth[row, column] = np.inf
            continue
        if s != loaded:
            shown = np.uint32(s >> 1)  # without a sign, which numba would look at each time
            i, j, k = faces[shown, 0], faces[shown, 1], faces[shown, 2]
            x0, y0, z0, w0 = clip[i, 0], clip[i, 1], clip[i, 2], clip[i, 3]
            x1, y1, z1, w1 = clip[j, 0], clip[j, 1], clip[j, 2], clip[j, 3]
            x2, y2, z2, w2 = clip[k, 0], clip[k, 1], clip[k, 2], clip[k, 3]
            loaded = s
        lane = np.uint32(count)
        columns[lane] = column
        lanes[lane], lanes[lane + RUN], lanes[lane + 2 * RUN], lanes[lane + 3 * RUN] = x0, y0, z0, w0
        lanes[lane + 4 * RUN], lanes[lane + 5 * RUN], lanes[lane + 6 * RUN], lanes[lane + 7 * RUN] = x1, y1, z1, w1
        lanes[lane + 8 * RUN], lanes[lane + 9 * RUN], lanes[lane + 10 * RUN], lanes[lane + 11 * RUN] = x2, y2, z2, w2
        lanes[lane + 12 * RUN] = 1 - 2 * (s & 1)
        count += 1
    return count


@njit(**BORROWING)
def weigh_sides(columns: np.ndarray, lanes: np.ndarray, count: int, step_x: float, ndc_y: float) -> None:
    """Replace rows 0, 1 and 2 of what `load_sides` leaves of `count` pixels by the weights of corners 0 and 1 and by
    depth: without branches and in place, for vector instructions."""
    for lane in range(count):
        z0, w0 = np.float64(lanes[lane + 2 * RUN]), np.float64(lanes[lane + 3 * RUN])
        z1, w1 = np.float64(lanes[lane + 6 * RUN]), np.float64(lanes[lane + 7 * RUN])
        z2, w2 = np.float64(lanes[lane + 10 * RUN]), np.float64(lanes[lane + 11 * RUN])
        weight0, weight1, weight2 = clamped_weights(
            np.float64(lanes[lane]), np.float64(lanes[lane + RUN]), w0,
            np.float64(lanes[lane + 4 * RUN]), np.float64(lanes[lane + 5 * RUN]), w1,
            np.float64(lanes[lane + 8 * RUN]), np.float64(lanes[lane + 9 * RUN]), w2,
            (columns[lane] + 0.5) * step_x - 1.0, ndc_y, np.float64(lanes[lane + 12 * RUN]),
        )  # fmt: skip
        scale = 1.0 / (weight0 + weight1 + weight2)
        lanes[lane], lanes[lane + RUN] = weight0 * scale, weight1 * scale
        lanes[lane + 2 * RUN] = (weight0 * z0 + weight1 * z1 + weight2 * z2) / (
            weight0 * w0 + weight1 * w1 + weight2 * w2
        )


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
