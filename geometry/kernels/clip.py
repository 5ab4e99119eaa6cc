"""Compiled arithmetic between vertices and pixels: projection, snapping, clipping, weights of a face's corners."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING

SUBPIXEL = 256
"""Fixed-point steps per pixel (8 bits)."""
GUARD_PIXELS = 1 << 20
"""Vertices further than this from the image centre are clipped: 2^28 steps, so edge functions stay below 2^60."""

OUT_NEAR, OUT_LEFT, OUT_RIGHT, OUT_TOP, OUT_BOTTOM, NOT_FINITE = 1, 2, 4, 8, 16, 32
MAX_CORNERS = 9
"""Most corners of a triangle clipped by five planes (one more than can occur)."""


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
    clip: np.ndarray, height: int, width: int, snapped: np.ndarray, depths: np.ndarray, outcode: np.ndarray,
    first: int, last: int,
) -> None:  # fmt: skip
    """Fixed-point position, depth and outcode of vertices `first:last`: clip [v, 4] -> snapped [v, 2], depths [v],
    outcode [v]; the depth of what is clipped away is that of the nearest."""
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
        depths[vertex] = z / w if code == 0 else -np.inf


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
