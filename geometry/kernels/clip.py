"""Compiled arithmetic between vertices and pixels: projection, snapping, clipping, weights of a face's corners, small
faces."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING

SUBPIXEL = 256
"""Fixed-point steps per pixel (8 bits)."""
GUARD_PIXELS = 1 << 20
"""Vertices further than this from the image centre are clipped: 2^28 steps, so edge functions stay below 2^60."""

FAR_AWAY = 1 << 30
"""Fixed-point position of a vertex with an outcode: a face with such a corner is longer than any other."""

QUEUE = 512
"""Faces that are worked on together: their lanes stay in a processor's innermost cache."""
LONG = 1 << 14
"""Length of a face, in fixed-point steps, from which on 32 bits may not hold its edge functions."""

OUT_NEAR, OUT_LEFT, OUT_RIGHT, OUT_TOP, OUT_BOTTOM, NOT_FINITE = 1, 2, 4, 8, 16, 32
MAX_CORNERS = 9
"""Most corners of a triangle clipped by five planes (one more than can occur)."""


@njit(nogil=True, cache=True)
def project_points(points: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> None:
    """points [3 n], matrices [views, 4, 4] float64 -> out [views, 4 n]: row . (x, y, z, 1). Flat, since only so does
    the compiler know how far points lie apart, which vector instructions need."""
    for view in range(matrices.shape[0]):
        for point in range(points.shape[0] // 3):
            x, y, z = (
                np.float64(points[3 * point]),
                np.float64(points[3 * point + 1]),
                np.float64(points[3 * point + 2]),
            )
            for row in range(4):
                out[view, 4 * point + row] = (
                    matrices[view, row, 0] * x + matrices[view, row, 1] * y + matrices[view, row, 2] * z
                    + matrices[view, row, 3]
                )  # fmt: skip


@njit(forceinline=True, **BORROWING)
def snap(coordinate: float, w: float, size: int) -> int:
    """Clip coordinate to fixed-point pixels: pixel i spans [256 i, 256 i + 256], its centre is 256 i + 128."""
    return np.int64(np.rint((coordinate / w * 0.5 + 0.5) * size * SUBPIXEL))


@njit(nogil=True, cache=True)
def plane_distance(plane: int, polygon: np.ndarray, corner: int, guard_x: float, guard_y: float) -> float:
    """Homogeneous distance to a clip plane, positive inside: near, then left, right, top, bottom of the guard band."""
    x, y, w = polygon[corner, 0], polygon[corner, 1], polygon[corner, 3]
    if plane == 0:
        return polygon[corner, 2] + w
    if plane == 1:
        return guard_x * w + x
    if plane == 2:
        return guard_x * w - x
    if plane == 3:
        return guard_y * w + y
    return guard_y * w - y


@njit(**BORROWING)
def snap_vertices(
    clip: np.ndarray, height: int, width: int, snapped: np.ndarray, depths: np.ndarray, outcode: np.ndarray
) -> None:
    """Fixed-point position, depth and outcode of vertices: clip [4 v] -> snapped [2 v], depths [v], outcode [v]; the
    depth of what is clipped away is that of the nearest. Flat and without branches, for vector instructions."""
    guard_x, guard_y = 2.0 * GUARD_PIXELS / width, 2.0 * GUARD_PIXELS / height
    for vertex in range(depths.shape[0]):
        x, y = np.float64(clip[4 * vertex]), np.float64(clip[4 * vertex + 1])
        z, w = np.float64(clip[4 * vertex + 2]), np.float64(clip[4 * vertex + 3])
        code = OUT_NEAR * np.int32((z + w < 0.0) | (w <= 0.0))
        code |= OUT_LEFT * np.int32(guard_x * w + x < 0.0) | OUT_RIGHT * np.int32(guard_x * w - x < 0.0)
        code |= OUT_TOP * np.int32(guard_y * w + y < 0.0) | OUT_BOTTOM * np.int32(guard_y * w - y < 0.0)
        code = code if np.isfinite(x + y + z + w) else NOT_FINITE
        column, row, depth = np.int32(snap(x, w, width)), np.int32(snap(y, w, height)), np.float32(z / w)
        outcode[vertex] = code
        snapped[2 * vertex] = column if code == 0 else np.int32(FAR_AWAY)
        snapped[2 * vertex + 1] = row if code == 0 else np.int32(FAR_AWAY)
        depths[vertex] = depth if code == 0 else np.float32(-np.inf)


@njit(nogil=True, cache=True)
def clip_face(
    clip: np.ndarray, i: int, j: int, k: int, height: int, width: int,
    polygon: np.ndarray, spare: np.ndarray, fixed: np.ndarray,
) -> int:  # fmt: skip
    """Cut a face by the near plane and the guard band (Sutherland-Hodgman on homogeneous points).

    Returns the number of corners of the convex rest and writes them to `fixed`, snapped. A new point is always computed
    from the inner end of an edge to the outer one, so that the faces on both sides of the edge get the same bits.
    """
    guard_x, guard_y = 2.0 * GUARD_PIXELS / width, 2.0 * GUARD_PIXELS / height
    count = 3
    for axis in range(4):
        polygon[0, axis], polygon[1, axis], polygon[2, axis] = clip[i, axis], clip[j, axis], clip[k, axis]
    for plane in range(5):
        kept = 0
        for here in range(count):
            there = here + 1 if here + 1 < count else 0
            d_here = plane_distance(plane, polygon, here, guard_x, guard_y)
            d_there = plane_distance(plane, polygon, there, guard_x, guard_y)
            if d_here >= 0.0:
                for axis in range(4):
                    spare[kept, axis] = polygon[here, axis]
                kept += 1
            if (d_here >= 0.0) != (d_there >= 0.0):
                inner, outer = (here, there) if d_here >= 0.0 else (there, here)
                d_inner, d_outer = max(d_here, d_there), min(d_here, d_there)
                for axis in range(4):
                    step = polygon[outer, axis] - polygon[inner, axis]
                    spare[kept, axis] = polygon[inner, axis] + d_inner / (d_inner - d_outer) * step
                kept += 1
        count = kept
        for corner in range(count):
            for axis in range(4):
                polygon[corner, axis] = spare[corner, axis]
    for corner in range(count):
        if polygon[corner, 3] <= 0.0:  # only with a matrix that is no projection
            return 0
        fixed[corner, 0] = snap(polygon[corner, 0], polygon[corner, 3], width)
        fixed[corner, 1] = snap(polygon[corner, 1], polygon[corner, 3], height)
    return count


@njit(forceinline=True, **BORROWING)
def clamped_weights(
    x0: float, y0: float, w0: float, x1: float, y1: float, w1: float, x2: float, y2: float, w2: float,
    ndc_x: float, ndc_y: float, sign: float,
) -> tuple[float, float, float]:  # fmt: skip
    """Weights of a face's corners under a pixel's centre, up to a factor: that of a corner is the volume spanned by the
    pixel's ray and the two others. The sign is that of the face's area as drawn."""
    rx0, ry0 = x0 - ndc_x * w0, y0 - ndc_y * w0
    rx1, ry1 = x1 - ndc_x * w1, y1 - ndc_y * w1
    rx2, ry2 = x2 - ndc_x * w2, y2 - ndc_y * w2
    # The centre may lie outside the unsnapped face by 1/512 pixel: the nearest point of the face then.
    weight0 = max(sign * (rx1 * ry2 - rx2 * ry1), 0.0)
    weight1 = max(sign * (rx2 * ry0 - rx0 * ry2), 0.0)
    weight2 = max(sign * (rx0 * ry1 - rx1 * ry0), 0.0)
    if not weight0 + weight1 + weight2 > 0.0:  # seen edge-on: any point of the face will do
        return 1.0, 1.0, 1.0
    return weight0, weight1, weight2


@njit(forceinline=True, **BORROWING)
def owns_points(x: int, y: int) -> int:
    """0 for a left edge (goes up) or a top edge (goes right), which own their points; the others lose one unit: -1."""
    return np.int64((y < 0) | ((y == 0) & (x > 0))) - 1


@njit(**BORROWING)
def load_corners(faces: np.ndarray, first: int, last: int, snapped: np.ndarray, lanes: np.ndarray) -> None:
    """Write the fixed-point corners of faces `first:last` to the lanes."""
    for face in range(first, last):
        for corner in range(3):
            entry, vertex = np.uint64(face - first + corner * QUEUE), faces[face, corner]
            lanes[entry], lanes[entry + np.uint64(3 * QUEUE)] = snapped[vertex, 0], snapped[vertex, 1]


@njit(forceinline=True, **BORROWING)
def outside_bits(e_ab: int, e_bc: int, e_ca: int, ab: int, bc: int, ca: int) -> int:
    """Bits 0 to 3 of the pixels of a row that lie outside: edge functions at the first one, and what they lose a
    pixel."""
    bits = ((e_ab | e_bc | e_ca) >> 31) & 1
    bits |= (np.int32(np.int32(e_ab - ab) | np.int32(e_bc - bc) | np.int32(e_ca - ca)) >> 31) & 2
    bits |= (np.int32(np.int32(e_ab - 2 * ab) | np.int32(e_bc - 2 * bc) | np.int32(e_ca - 2 * ca)) >> 31) & 4
    bits |= (np.int32(np.int32(e_ab - 3 * ab) | np.int32(e_bc - 3 * bc) | np.int32(e_ca - 3 * ca)) >> 31) & 8
    return np.int32(bits)


@njit(**BORROWING)
def cover_small(
    lanes: np.ndarray, count: int, single_sided: np.ndarray, width: int, row_first: int, row_last: int
) -> None:
    """Work out which pixels small faces cover, with 32 bits and without branches, for vector instructions.

    Row r of the lanes [10, QUEUE] starts at r x QUEUE: x of corners 0, 1 and 2, then y (`load_corners`). Written are 6:
    bit 4 y + x for each covered pixel of a box of 4 x 4, or -1 for faces that may not fit into it; 7 and 8: the first
    column and row of the box; 9: 1 where the corners run clockwise."""
    last_column, last_row = np.int32(width - 1), np.int32(row_last - 1)
    top = np.int32(row_first)
    for face in range(count):
        ax, bx, cx = lanes[face], lanes[face + QUEUE], lanes[face + 2 * QUEUE]
        ay, by, cy = lanes[face + 3 * QUEUE], lanes[face + 4 * QUEUE], lanes[face + 5 * QUEUE]
        low_x, high_x, low_y, high_y = min(ax, bx, cx), max(ax, bx, cx), min(ay, by, cy), max(ay, by, cy)
        column, row = max(np.int32((low_x + 127) >> 8), np.int32(0)), max(np.int32((low_y + 127) >> 8), top)
        columns = np.int32(min(np.int32((high_x - 128) >> 8), last_column) - column + 1)
        rows = np.int32(min(np.int32((high_y - 128) >> 8), last_row) - row + 1)
        abx, aby, bcx, bcy = np.int32(bx - ax), np.int32(by - ay), np.int32(cx - bx), np.int32(cy - by)
        cax, cay = np.int32(ax - cx), np.int32(ay - cy)
        area = np.int32(np.int32(cax * aby) - np.int32(abx * cay))
        turned = np.int32(area < 0)
        sign = np.int32(1 - 2 * turned)
        abx, aby, bcx, bcy = np.int32(abx * sign), np.int32(aby * sign), np.int32(bcx * sign), np.int32(bcy * sign)
        cax, cay = np.int32(cax * sign), np.int32(cay * sign)
        px, py = np.int32((column << 8) + 128), np.int32((row << 8) + 128)
        e_ab = np.int32(np.int32(abx * np.int32(py - ay)) - np.int32(aby * np.int32(px - ax)))
        e_bc = np.int32(np.int32(bcx * np.int32(py - by)) - np.int32(bcy * np.int32(px - bx)))
        e_ca = np.int32(np.int32(cax * np.int32(py - cy)) - np.int32(cay * np.int32(px - cx)))
        e_ab = np.int32(e_ab + owns_points(abx, aby))
        e_bc = np.int32(e_bc + owns_points(bcx, bcy))
        e_ca = np.int32(e_ca + owns_points(cax, cay))
        abx, aby, bcx, bcy = np.int32(abx << 8), np.int32(aby << 8), np.int32(bcx << 8), np.int32(bcy << 8)
        cax, cay = np.int32(cax << 8), np.int32(cay << 8)
        bits = outside_bits(e_ab, e_bc, e_ca, aby, bcy, cay)
        e_ab, e_bc, e_ca = np.int32(e_ab + abx), np.int32(e_bc + bcx), np.int32(e_ca + cax)
        bits |= np.int32(outside_bits(e_ab, e_bc, e_ca, aby, bcy, cay) << 4)
        e_ab, e_bc, e_ca = np.int32(e_ab + abx), np.int32(e_bc + bcx), np.int32(e_ca + cax)
        bits |= np.int32(outside_bits(e_ab, e_bc, e_ca, aby, bcy, cay) << 8)
        e_ab, e_bc, e_ca = np.int32(e_ab + abx), np.int32(e_bc + bcx), np.int32(e_ca + cax)
        bits |= np.int32(outside_bits(e_ab, e_bc, e_ca, aby, bcy, cay) << 12)
        is_long = (np.int32(high_x - low_x) >= LONG) | (np.int32(high_y - low_y) >= LONG) | (high_x == FAR_AWAY)
        too_large = is_long | (((columns > 4) | (rows > 4)) & (columns > 0) & (rows > 0))
        box = np.int32((0xF >> (4 - min(max(columns, np.int32(0)), np.int32(4)))) * 0x1111)
        box = np.int32(box & (0xFFFF >> (16 - 4 * min(max(rows, np.int32(0)), np.int32(4)))))
        drawn = (area != 0) & ((turned != 0) | (not single_sided[face]))
        covered = np.int32(~bits & box) if drawn else np.int32(0)
        lanes[face + 6 * QUEUE] = np.int32(-1) if too_large else covered
        lanes[face + 7 * QUEUE], lanes[face + 8 * QUEUE], lanes[face + 9 * QUEUE] = column, row, turned
