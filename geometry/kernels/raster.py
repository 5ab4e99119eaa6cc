"""Compiled loops of the CPU rasteriser. All write disjoint rows, hold no lock and allocate nothing per face."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

SUBPIXEL = 256
"""Fixed-point steps per pixel (8 bits)."""
GUARD_PIXELS = 1 << 20
"""Vertices further than this from the image centre are clipped: 2^28 steps, so edge functions stay below 2^60."""

OUT_NEAR, OUT_LEFT, OUT_RIGHT, OUT_TOP, OUT_BOTTOM, NOT_FINITE = 1, 2, 4, 8, 16, 32
QUEUE = 1024
"""Triangles collected before they are drawn together: a call per triangle would cost more than drawing a small one."""
MAX_CORNERS = 9
"""Of a triangle clipped by five planes (one more than can occur)."""


@njit(nogil=True, cache=True, forceinline=True)
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


@njit(nogil=True, cache=True)
def snap_vertices(
    clip: np.ndarray, height: int, width: int, snapped: np.ndarray, outcode: np.ndarray, first: int, last: int
) -> None:
    """Fixed-point position and outcode of vertices `first:last`: clip [v, 4] -> snapped [v, 2], outcode [v]."""
    guard_x, guard_y = 2.0 * GUARD_PIXELS / width, 2.0 * GUARD_PIXELS / height
    for vertex in range(first, last):
        x, y = np.float64(clip[vertex, 0]), np.float64(clip[vertex, 1])
        z, w = np.float64(clip[vertex, 2]), np.float64(clip[vertex, 3])
        if not np.isfinite(x + y + z + w):
            outcode[vertex] = NOT_FINITE
            continue
        code = OUT_NEAR if z + w < 0.0 or w <= 0.0 else 0
        code |= OUT_LEFT if guard_x * w + x < 0.0 else 0
        code |= OUT_RIGHT if guard_x * w - x < 0.0 else 0
        code |= OUT_TOP if guard_y * w + y < 0.0 else 0
        code |= OUT_BOTTOM if guard_y * w - y < 0.0 else 0
        outcode[vertex] = code
        if code == 0:
            snapped[vertex, 0] = snap(x, w, width)
            snapped[vertex, 1] = snap(y, w, height)


@njit(nogil=True, cache=True)
def first_centre(a: int, b: int, c: int, first: int) -> int:
    """First pixel from `first` on whose centre 256 i + 128 lies in the span of three coordinates (>> 8 rounds down)."""
    return max((min(a, b, c) + 127) >> 8, first)


@njit(nogil=True, cache=True)
def last_centre(a: int, b: int, c: int, last: int) -> int:
    """Last such pixel, `last` at most."""
    return min((max(a, b, c) - 128) >> 8, last)


@njit(nogil=True, cache=True, error_model="numpy")
def draw_queue(
    queue: np.ndarray, count: int, clip: np.ndarray, faces: np.ndarray, row_first: int, row_last: int,
    out_face: np.ndarray, out_bary: np.ndarray, out_depth: np.ndarray,
    peel: bool, peel_face: np.ndarray, peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """Queued fixed-point triangles (face, ax, ay, bx, by, cx, cy) into rows `row_first:row_last`.

    Coverage is exact integer arithmetic with the top-left rule. Weights come from the unsnapped clip coordinates of the
    *face*, so a piece of a clipped face needs nothing else: the weight of a corner is the volume spanned by the pixel's
    ray and the two others.
    """
    height, width = out_face.shape
    step_x, step_y = 2.0 / width, 2.0 / height
    for entry in range(count):
        face = queue[entry, 0]
        ax, ay = np.int64(queue[entry, 1]), np.int64(queue[entry, 2])
        bx, by = np.int64(queue[entry, 3]), np.int64(queue[entry, 4])
        cx, cy = np.int64(queue[entry, 5]), np.int64(queue[entry, 6])
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        sign = 1.0
        if area < 0:
            bx, by, cx, cy = cx, cy, bx, by
            sign = -1.0
        x_first, x_last = first_centre(ax, bx, cx, 0), last_centre(ax, bx, cx, width - 1)
        y_first, y_last = first_centre(ay, by, cy, row_first), last_centre(ay, by, cy, row_last - 1)
        px, py = (x_first << 8) + 128, (y_first << 8) + 128
        abx, aby, bcx, bcy, cax, cay = bx - ax, by - ay, cx - bx, cy - by, ax - cx, ay - cy
        # An edge owns its points if it is a left edge (goes up) or a top edge (goes right); the others lose one unit.
        edge_ab = abx * (py - ay) - aby * (px - ax) - (0 if aby < 0 or (aby == 0 and abx > 0) else 1)
        edge_bc = bcx * (py - by) - bcy * (px - bx) - (0 if bcy < 0 or (bcy == 0 and bcx > 0) else 1)
        edge_ca = cax * (py - cy) - cay * (px - cx) - (0 if cay < 0 or (cay == 0 and cax > 0) else 1)
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        x0, y0, z0, w0 = np.float64(clip[i, 0]), np.float64(clip[i, 1]), np.float64(clip[i, 2]), np.float64(clip[i, 3])
        x1, y1, z1, w1 = np.float64(clip[j, 0]), np.float64(clip[j, 1]), np.float64(clip[j, 2]), np.float64(clip[j, 3])
        x2, y2, z2, w2 = np.float64(clip[k, 0]), np.float64(clip[k, 1]), np.float64(clip[k, 2]), np.float64(clip[k, 3])
        for row in range(y_first, y_last + 1):
            e_ab, e_bc, e_ca = edge_ab, edge_bc, edge_ca
            entered = False
            ndc_y = (row + 0.5) * step_y - 1.0
            for column in range(x_first, x_last + 1):
                if (e_ab | e_bc | e_ca) >= 0:
                    entered = True
                    ndc_x = (column + 0.5) * step_x - 1.0
                    rx0, ry0 = x0 - ndc_x * w0, y0 - ndc_y * w0
                    rx1, ry1 = x1 - ndc_x * w1, y1 - ndc_y * w1
                    rx2, ry2 = x2 - ndc_x * w2, y2 - ndc_y * w2
                    # The centre may lie outside the unsnapped face by 1/512 pixel: the nearest point of the face then.
                    weight0 = max(sign * (rx1 * ry2 - rx2 * ry1), 0.0)
                    weight1 = max(sign * (rx2 * ry0 - rx0 * ry2), 0.0)
                    weight2 = max(sign * (rx0 * ry1 - rx1 * ry0), 0.0)
                    total = weight0 + weight1 + weight2
                    if not total > 0.0:  # seen edge-on: any point of the face will do
                        weight0, weight1, weight2, total = 1.0, 1.0, 1.0, 3.0
                    depth = np.float32(
                        (weight0 * z0 + weight1 * z1 + weight2 * z2) / (weight0 * w0 + weight1 * w1 + weight2 * w2)
                    )
                    nearest = out_depth[row, column]
                    in_front = depth < nearest or (depth == nearest and face < out_face[row, column])
                    if peel and in_front:
                        behind = peel_depth[row, column]
                        in_front = depth > behind or (depth == behind and face > peel_face[row, column])
                    if in_front:
                        scale = 1.0 / total
                        out_depth[row, column] = depth
                        out_face[row, column] = face
                        out_bary[row, column, 0] = weight0 * scale
                        out_bary[row, column, 1] = weight1 * scale
                elif entered:
                    break
                e_ab -= aby << 8
                e_bc -= bcy << 8
                e_ca -= cay << 8
            edge_ab += abx << 8
            edge_bc += bcx << 8
            edge_ca += cax << 8


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


@njit(nogil=True, cache=True)
def rasterize_rows(
    clip: np.ndarray, faces: np.ndarray, snapped: np.ndarray, outcode: np.ndarray, row_first: int, row_last: int,
    out_face: np.ndarray, out_bary: np.ndarray, out_depth: np.ndarray,
    peel: bool, peel_face: np.ndarray, peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """All faces of one image into rows `row_first:row_last`."""
    height, width = out_face.shape
    for row in range(row_first, row_last):
        for column in range(width):
            out_face[row, column] = -1
            out_bary[row, column, 0] = out_bary[row, column, 1] = 0.0
            out_depth[row, column] = np.inf
    polygon, spare = np.empty((MAX_CORNERS, 4), np.float64), np.empty((MAX_CORNERS, 4), np.float64)
    fixed = np.empty((MAX_CORNERS, 2), np.int64)
    queue = np.empty((QUEUE, 7), np.int32)
    count = np.int64(0)
    for face in range(faces.shape[0]):
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        outside = outcode[i] | outcode[j] | outcode[k]
        if outside == 0:
            corners = 3
            ax, bx, cx = np.int64(snapped[i, 0]), np.int64(snapped[j, 0]), np.int64(snapped[k, 0])
            ay, by, cy = np.int64(snapped[i, 1]), np.int64(snapped[j, 1]), np.int64(snapped[k, 1])
        elif outside & NOT_FINITE or outcode[i] & outcode[j] & outcode[k]:
            continue
        else:
            corners = clip_face(clip, i, j, k, height, width, polygon, spare, fixed)
            ax, ay = fixed[0, 0], fixed[0, 1]
        for piece in range(1, corners - 1):
            if outside:
                bx, by, cx, cy = fixed[piece, 0], fixed[piece, 1], fixed[piece + 1, 0], fixed[piece + 1, 1]
            # Most faces of a fine mesh lie between pixel centres and end here.
            if first_centre(ax, bx, cx, 0) > last_centre(ax, bx, cx, width - 1):
                continue
            if first_centre(ay, by, cy, row_first) > last_centre(ay, by, cy, row_last - 1):
                continue
            queue[count, 0] = face
            queue[count, 1], queue[count, 2], queue[count, 3] = ax, ay, bx
            queue[count, 4], queue[count, 5], queue[count, 6] = by, cx, cy
            count += 1
            if count == QUEUE:
                draw_queue(
                    queue, count, clip, faces, row_first, row_last, out_face, out_bary, out_depth,
                    peel, peel_face, peel_depth,
                )  # fmt: skip
                count = np.int64(0)
    draw_queue(
        queue, count, clip, faces, row_first, row_last, out_face, out_bary, out_depth, peel, peel_face, peel_depth
    )


@njit(nogil=True, cache=True)
def coverage_rows(face: np.ndarray, centre: np.ndarray, s: int, out: np.ndarray) -> None:
    """Share of covered ones among the s x s samples of each pixel, 0..255: face [h s, w s] -> out [h, w]. A pixel whose
    centre [h, w] is covered, but none of its samples, counts one."""
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            count = 1 if centre[row, column] else 0
            covered = 0
            for y in range(row * s, row * s + s):
                for x in range(column * s, column * s + s):
                    covered += face[y, x] >= 0
            out[row, column] = np.uint8((max(count, covered) * 510 + s * s) // (2 * s * s))


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


@njit(nogil=True, cache=True)
def project_points(points: np.ndarray, matrices: np.ndarray, out: np.ndarray) -> None:
    """points [n, 3], matrices [views, 4, 4] float64 -> out [views, n, 4]: row . (x, y, z, 1)."""
    for view in range(matrices.shape[0]):
        for point in range(points.shape[0]):
            x, y, z = np.float64(points[point, 0]), np.float64(points[point, 1]), np.float64(points[point, 2])
            for row in range(4):
                out[view, point, row] = (
                    matrices[view, row, 0] * x + matrices[view, row, 1] * y + matrices[view, row, 2] * z
                    + matrices[view, row, 3]
                )  # fmt: skip


@njit(nogil=True, cache=True)
def normalise_rows(vectors: np.ndarray, shortest: float, short: np.ndarray) -> None:
    """Unit length in place, vectors [n, 3]; those below `shortest` (and NaN) become 0 and are marked in short [n]."""
    for row in range(vectors.shape[0]):
        x, y, z = vectors[row, 0], vectors[row, 1], vectors[row, 2]
        length = np.sqrt(x * x + y * y + z * z)
        short[row] = not length >= shortest
        scale = np.float32(1.0) / length if length >= shortest else np.float32(0.0)
        for axis in range(3):
            vectors[row, axis] = vectors[row, axis] * scale if length >= shortest else 0.0
