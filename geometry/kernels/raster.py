"""Compiled loops of the CPU rasteriser. All write disjoint rows, hold no lock and allocate nothing per face."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit
from numba.cpython.unsafe.numbers import trailing_zeros

from geometry.kernels.clip import (
    MAX_CORNERS,
    NOT_FINITE,
    QUEUE,
    clamped_weights,
    clip_face,
    cover_small,
    load_corners,
    owns_points,
)
from geometry.kernels.jit import BORROWING

WIDE = 9
"""Columns from which on it is quicker to reckon where an edge crosses a row than to try every pixel."""
FAR_NDC, FAR_NDEPTH = 16.0, 4.0
"""Coordinates and depths of corners up to which the rounding errors of a plane stay below 1e-8 wherever it is used."""
DEPTH_SLACK = 2e-6
"""Depths that differ by more are distinguished by planes; a float32 step at depth 4 is a quarter of it."""
HIDDEN_SLACK = np.float32(4e-6)
"""A face lies behind a pixel whose depth is less than its nearest corner's by more than this."""


@njit(nogil=True, cache=True)
def first_centre(a: int, b: int, c: int, first: int) -> int:
    """First pixel from `first` on whose centre 256 i + 128 lies in the span of three coordinates (>> 8 rounds down)."""
    return max((min(a, b, c) + 127) >> 8, first)


@njit(nogil=True, cache=True)
def last_centre(a: int, b: int, c: int, last: int) -> int:
    """Last such pixel, `last` at most."""
    return min((max(a, b, c) - 128) >> 8, last)


@njit(forceinline=True, **BORROWING)
def depth_at(
    x0: float, y0: float, z0: float, w0: float, x1: float, y1: float, z1: float, w1: float,
    x2: float, y2: float, z2: float, w2: float, ndc_x: float, ndc_y: float, sign: float,
) -> float:  # fmt: skip
    """z / w of a face under a pixel's centre, as float32."""
    weight0, weight1, weight2 = clamped_weights(x0, y0, w0, x1, y1, w1, x2, y2, w2, ndc_x, ndc_y, sign)
    return np.float32((weight0 * z0 + weight1 * z1 + weight2 * z2) / (weight0 * w0 + weight1 * w1 + weight2 * w2))


@njit(**BORROWING)
def exact_depth(clip: np.ndarray, faces: np.ndarray, side: int, ndc_x: float, ndc_y: float) -> float:
    """`depth_at` for a side of a mesh."""
    i, j, k = faces[side >> 1, 0], faces[side >> 1, 1], faces[side >> 1, 2]
    return depth_at(
        np.float64(clip[i, 0]), np.float64(clip[i, 1]), np.float64(clip[i, 2]), np.float64(clip[i, 3]),
        np.float64(clip[j, 0]), np.float64(clip[j, 1]), np.float64(clip[j, 2]), np.float64(clip[j, 3]),
        np.float64(clip[k, 0]), np.float64(clip[k, 1]), np.float64(clip[k, 2]), np.float64(clip[k, 3]),
        ndc_x, ndc_y, 1.0 - 2.0 * (side & 1),
    )  # fmt: skip


@njit(forceinline=True, **BORROWING)
def depth_plane(
    x0: float, y0: float, z0: float, w0: float, x1: float, y1: float, z1: float, w1: float,
    x2: float, y2: float, z2: float, w2: float, ndc_x: float, ndc_y: float,
) -> tuple[bool, float, float, float]:  # fmt: skip
    """z / w of a face as a plane over the image: whether it is well conditioned, its value at (ndc_x, ndc_y), and its
    slopes."""
    if not (w0 > 0.0 and w1 > 0.0 and w2 > 0.0):
        return False, 0.0, 0.0, 0.0
    scale0, scale1, scale2 = 1.0 / w0, 1.0 / w1, 1.0 / w2
    x0, y0, z0 = x0 * scale0, y0 * scale0, z0 * scale0
    x1, y1, z1 = x1 * scale1 - x0, y1 * scale1 - y0, z1 * scale1 - z0
    x2, y2, z2 = x2 * scale2 - x0, y2 * scale2 - y0, z2 * scale2 - z0
    near = max(abs(x0), abs(y0), abs(x1), abs(y1), abs(x2), abs(y2)) < FAR_NDC
    shallow = max(abs(z0), abs(z1), abs(z2)) < FAR_NDEPTH
    scale = 1.0 / (x1 * y2 - x2 * y1)
    slope_x, slope_y = (z1 * y2 - z2 * y1) * scale, (z2 * x1 - z1 * x2) * scale
    return near and shallow, z0 + slope_x * (ndc_x - x0) + slope_y * (ndc_y - y0), slope_x, slope_y


@njit(**BORROWING)
def is_in_front(
    clip: np.ndarray, faces: np.ndarray, side: int, other: int, ndc_x: float, ndc_y: float,
    peel: bool, peel_face: int, peel_depth: float,
) -> bool:  # fmt: skip
    """Return whether a side hides the other one (-1: none) at a pixel, and lies behind the layer that is peeled off: on
    equal depth the lower face is in front."""
    depth = exact_depth(clip, faces, side, ndc_x, ndc_y)
    nearest = np.float32(np.inf) if other < 0 else exact_depth(clip, faces, other, ndc_x, ndc_y)
    if not (depth < nearest or (depth == nearest and side >> 1 < other >> 1)):
        return False
    return not peel or depth > peel_depth or (depth == peel_depth and side >> 1 > peel_face)


@njit(forceinline=True, **BORROWING)
def keep_nearer(
    side: int, row: int, column: int, here: float, clip: np.ndarray, faces: np.ndarray, out_side: np.ndarray,
    near: np.ndarray, peel: bool, peel_face: np.ndarray, peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """Write a side of depth `here` to a pixel of out_side and near [h, w] where it is in front of the one there."""
    nearest = near[row, column]
    if here > nearest + DEPTH_SLACK:
        return
    if (here < nearest - DEPTH_SLACK and not peel) or is_in_front(
        clip, faces, side, out_side[row, column], (column + 0.5) * (2.0 / out_side.shape[1]) - 1.0,
        (row + 0.5) * (2.0 / out_side.shape[0]) - 1.0, peel, peel_face[row, column], peel_depth[row, column],
    ):  # fmt: skip
        near[row, column] = here
        out_side[row, column] = side


@njit(forceinline=True, **BORROWING)
def lowest_depth(depths: np.ndarray, faces: np.ndarray, side: int) -> float:
    """Depth of the nearest corner of a side."""
    i, j, k = faces[side >> 1, 0], faces[side >> 1, 1], faces[side >> 1, 2]
    return min(depths[i], depths[j], depths[k])


@njit(**BORROWING)
def draw_fragments(
    fragments: np.ndarray, count: int, here: np.ndarray, clip: np.ndarray, faces: np.ndarray, out_side: np.ndarray,
    near: np.ndarray, peel: bool, peel_face: np.ndarray, peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """Sides at single pixels (side, row, column), as `draw_covered` collects them; `here` [n] is scratch for depths."""
    step_x, step_y = 2.0 / out_side.shape[1], 2.0 / out_side.shape[0]
    for entry in range(count):
        side, row, column = np.int64(fragments[entry, 0]), fragments[entry, 1], fragments[entry, 2]
        here[entry] = exact_depth(clip, faces, side, (column + 0.5) * step_x - 1.0, (row + 0.5) * step_y - 1.0)
    for entry in range(count):
        side, row, column = np.int64(fragments[entry, 0]), fragments[entry, 1], fragments[entry, 2]
        keep_nearer(
            side, row, column, np.float64(here[entry]), clip, faces, out_side, near, peel, peel_face, peel_depth
        )


@njit(forceinline=True, **BORROWING)
def edge_bound(edge: float, scale: float, goes_up: bool) -> tuple[float, float]:
    """First and last column, counted from where the edge function is 256 (edge - 0.5), on the inner side of an edge of
    height 1 / scale: half a unit keeps quotients of integers away from where rounding would tip them."""
    last = np.floor(edge * scale)
    return (-last if goes_up else -np.inf), (np.inf if goes_up else last)


@njit(forceinline=True, **BORROWING)
def edge_scale(rise: int) -> float:
    """1 / height of an edge, in steps; 2^20 for a level one, which bounds no row, or all of it."""
    return 1.0 / np.float64(abs(rise)) if rise != 0 else 1048576.0


@njit(forceinline=True, **BORROWING)
def draw_large(
    side: int, x_first: int, x_last: int, y_first: int, y_last: int, edge_ab: int, edge_bc: int, edge_ca: int,
    abx: int, aby: int, bcx: int, bcy: int, cax: int, cay: int, clip: np.ndarray, faces: np.ndarray,
    depths: np.ndarray, out_side: np.ndarray, near: np.ndarray, flat: bool, peel: bool, peel_face: np.ndarray,
    peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """A side whose edge functions at pixel (x_first, y_first) are given, row by row of its box."""
    step_x, step_y = 2.0 / out_side.shape[1], 2.0 / out_side.shape[0]
    lowest = np.float32(0.0) if flat else lowest_depth(depths, faces, side) - HIDDEN_SLACK
    planar, level, slope_x, slope_y = False, 0.0, 0.0, 0.0
    if not (peel or flat):
        i, j, k = faces[side >> 1, 0], faces[side >> 1, 1], faces[side >> 1, 2]
        planar, level, slope_x, slope_y = depth_plane(
            np.float64(clip[i, 0]), np.float64(clip[i, 1]), np.float64(clip[i, 2]), np.float64(clip[i, 3]),
            np.float64(clip[j, 0]), np.float64(clip[j, 1]), np.float64(clip[j, 2]), np.float64(clip[j, 3]),
            np.float64(clip[k, 0]), np.float64(clip[k, 1]), np.float64(clip[k, 2]), np.float64(clip[k, 3]),
            (x_first + 0.5) * step_x - 1.0, (y_first + 0.5) * step_y - 1.0,
        )  # fmt: skip
        slope_x, slope_y = slope_x * step_x, slope_y * step_y
    columns, scale_ab, scale_bc, scale_ca = np.float64(x_last - x_first), 0.0, 0.0, 0.0
    if columns >= WIDE:
        scale_ab, scale_bc, scale_ca = edge_scale(aby), edge_scale(bcy), edge_scale(cay)
    along_ab, along_bc, along_ca = (edge_ab >> 8) + 0.5, (edge_bc >> 8) + 0.5, (edge_ca >> 8) + 0.5
    # Snapping moves an edge by less than a step, so that far within the unsnapped face is inside, too.
    rim_ab, rim_bc, rim_ca = abs(abx) + abs(aby), abs(bcx) + abs(bcy), abs(cax) + abs(cay)
    for row in range(y_first, y_last + 1):
        left, right = x_first, x_last
        if columns >= WIDE:
            first_ab, last_ab = edge_bound(along_ab, scale_ab, aby < 0)
            first_bc, last_bc = edge_bound(along_bc, scale_bc, bcy < 0)
            first_ca, last_ca = edge_bound(along_ca, scale_ca, cay < 0)
            left = x_first + np.int64(min(max(first_ab, first_bc, first_ca, 0.0), columns + 1.0))
            right = x_first + np.int64(max(min(last_ab, last_bc, last_ca, columns), -1.0))
            along_ab, along_bc, along_ca = along_ab + abx, along_bc + bcx, along_ca + cax
        if flat and columns >= WIDE:
            for column in range(left, right + 1):
                out_side[row, column] = side if out_side[row, column] < 0 else out_side[row, column]
        else:
            skipped = (left - x_first) << 8
            e_ab, e_bc, e_ca = edge_ab - skipped * aby, edge_bc - skipped * bcy, edge_ca - skipped * cay
            depth = level + np.float64(left - x_first) * slope_x
            entered = False
            for column in range(left, right + 1):
                if (e_ab | e_bc | e_ca) >= 0:
                    entered = True
                    if flat:
                        out_side[row, column] = side if out_side[row, column] < 0 else out_side[row, column]
                    elif not lowest > near[row, column]:
                        here = depth
                        if not (planar and ((e_ab - rim_ab) | (e_bc - rim_bc) | (e_ca - rim_ca)) >= 0):
                            here = np.float64(
                                exact_depth(
                                    clip, faces, side, (column + 0.5) * step_x - 1.0, (row + 0.5) * step_y - 1.0
                                )
                            )
                        keep_nearer(side, row, column, here, clip, faces, out_side, near, peel, peel_face, peel_depth)
                elif entered:
                    break
                e_ab, e_bc, e_ca = e_ab - (aby << 8), e_bc - (bcy << 8), e_ca - (cay << 8)
                depth += slope_x
        edge_ab, edge_bc, edge_ca = edge_ab + (abx << 8), edge_bc + (bcx << 8), edge_ca + (cax << 8)
        level += slope_y


@njit(forceinline=True, **BORROWING)
def draw_face(
    face: int, fixed: np.ndarray, polygon: np.ndarray, spare: np.ndarray, clip: np.ndarray, faces: np.ndarray,
    single_sided: np.ndarray, snapped: np.ndarray, depths: np.ndarray, outcode: np.ndarray, row_first: int,
    row_last: int, out_side: np.ndarray, near: np.ndarray, flat: bool, peel: bool, peel_face: np.ndarray,
    peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """A face of any size, clipped where need be, in 64-bit arithmetic; `fixed`, `polygon` and `spare` are scratch."""
    height, width = out_side.shape
    i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
    corners, outside = np.int64(3), outcode[i] | outcode[j] | outcode[k]
    if outside == 0:
        fixed[0, 0], fixed[0, 1] = snapped[i, 0], snapped[i, 1]
        fixed[1, 0], fixed[1, 1] = snapped[j, 0], snapped[j, 1]
        fixed[2, 0], fixed[2, 1] = snapped[k, 0], snapped[k, 1]
    elif outside & NOT_FINITE or outcode[i] & outcode[j] & outcode[k]:
        return
    else:
        corners = clip_face(clip, i, j, k, height, width, polygon, spare, fixed)
    for piece in range(1, corners - 1):
        ax, ay, bx, by = fixed[0, 0], fixed[0, 1], fixed[piece, 0], fixed[piece, 1]
        cx, cy = fixed[piece + 1, 0], fixed[piece + 1, 1]
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        x_first, x_last = first_centre(ax, bx, cx, 0), last_centre(ax, bx, cx, width - 1)
        y_first, y_last = first_centre(ay, by, cy, row_first), last_centre(ay, by, cy, row_last - 1)
        if area == 0 or (area > 0 and single_sided[face]) or x_first > x_last or y_first > y_last:
            continue
        side = 2 * np.int64(face) + np.int64(area < 0)
        turn = 1 - 2 * np.int64(area < 0)  # the edges of a triangle that is drawn from behind run the other way
        px, py = (x_first << 8) + 128, (y_first << 8) + 128
        abx, aby, bcx, bcy = turn * (bx - ax), turn * (by - ay), turn * (cx - bx), turn * (cy - by)
        cax, cay = turn * (ax - cx), turn * (ay - cy)
        draw_large(
            side, x_first, x_last, y_first, y_last,
            abx * (py - ay) - aby * (px - ax) + owns_points(abx, aby),
            bcx * (py - by) - bcy * (px - bx) + owns_points(bcx, bcy),
            cax * (py - cy) - cay * (px - cx) + owns_points(cax, cay),
            abx, aby, bcx, bcy, cax, cay, clip, faces, depths, out_side, near, flat, peel, peel_face, peel_depth,
        )  # fmt: skip


@njit(**BORROWING)
def draw_covered(
    lanes: np.ndarray, start: int, count: int, fixed: np.ndarray, polygon: np.ndarray, spare: np.ndarray,
    fragments: np.ndarray, here: np.ndarray, clip: np.ndarray, faces: np.ndarray, single_sided: np.ndarray,
    snapped: np.ndarray, depths: np.ndarray, outcode: np.ndarray, row_first: int, row_last: int, out_side: np.ndarray,
    near: np.ndarray, flat: bool, peel: bool, peel_face: np.ndarray, peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """Faces from `start` on, as `cover_small` leaves them, into rows `row_first:row_last` of out_side [h, w].

    Coverage is exact integer arithmetic with the top-left rule. Depth is that of `exact_depth`, from the unsnapped clip
    coordinates of the *face*: a piece of a clipped face needs nothing else. It is worked out only where it decides:
    surely inside the unsnapped face a plane gives depth to within `DEPTH_SLACK`, and so does `near` [h, w]. In a flat
    image all depths are equal: who comes first stays. The pixels of small faces are collected in fragments [n, 3].
    """
    shown, collected = np.int64(0), np.int64(0)
    for entry in range(count):
        lanes[np.uint32(shown)] = entry
        shown += np.int64(lanes[entry + 6 * QUEUE] != 0)
    for which in range(shown):
        entry = np.uint32(lanes[which])
        covered, side = lanes[entry + 6 * QUEUE], np.int64(2 * (start + entry) + lanes[entry + 9 * QUEUE])
        if covered < 0:
            draw_face(
                start + entry, fixed, polygon, spare, clip, faces, single_sided, snapped, depths, outcode, row_first,
                row_last, out_side, near, flat, peel, peel_face, peel_depth,
            )  # fmt: skip
            continue
        left, top = np.uint32(lanes[entry + 7 * QUEUE]), np.uint32(lanes[entry + 8 * QUEUE])
        lowest = np.float32(0.0) if flat else lowest_depth(depths, faces, side)
        while covered != 0:
            bit = trailing_zeros(covered)  # type: ignore[call-arg, var-annotated]
            row, column = np.uint32(top + (bit >> 2)), np.uint32(left + (bit & 3))
            covered &= covered - 1
            if flat:
                out_side[row, column] = side if out_side[row, column] < 0 else out_side[row, column]
            else:
                fragments[collected, 0], fragments[collected, 1], fragments[collected, 2] = side, row, column
                collected += np.int64(not lowest > near[row, column] + HIDDEN_SLACK)
        if collected > QUEUE - 16:
            draw_fragments(fragments, collected, here, clip, faces, out_side, near, peel, peel_face, peel_depth)
            collected = np.int64(0)
    draw_fragments(fragments, collected, here, clip, faces, out_side, near, peel, peel_face, peel_depth)


@njit(nogil=True, cache=True)
def rasterize_rows(
    clip: np.ndarray, faces: np.ndarray, single_sided: np.ndarray, snapped: np.ndarray, depths: np.ndarray,
    outcode: np.ndarray, row_first: int, row_last: int, out_side: np.ndarray, near: np.ndarray, peel: bool,
    peel_face: np.ndarray, peel_depth: np.ndarray,
) -> None:  # fmt: skip
    """All faces of one image into rows `row_first:row_last`: the side in front at every pixel -> out_side [h, w], its
    rough depth -> near [h, w]. Of single-sided faces [f] the side whose corners run clockwise, y up, alone counts."""
    out_side[row_first:row_last] = -1
    flat = not peel and not clip[:, 2].any()
    if not flat:
        near[row_first:row_last] = np.inf
    polygon, spare = np.empty((MAX_CORNERS, 4), np.float64), np.empty((MAX_CORNERS, 4), np.float64)
    fixed = np.empty((MAX_CORNERS, 2), np.int64)
    lanes, fragments, here = np.empty(10 * QUEUE, np.int32), np.empty((QUEUE, 3), np.int32), np.empty(QUEUE, np.float32)
    for start in range(0, faces.shape[0], QUEUE):
        count = min(QUEUE, faces.shape[0] - start)
        load_corners(faces, start, start + count, snapped, lanes)
        cover_small(lanes, count, single_sided[start : start + count], out_side.shape[1], row_first, row_last)
        draw_covered(
            lanes, start, count, fixed, polygon, spare, fragments, here, clip, faces, single_sided, snapped, depths,
            outcode, row_first, row_last, out_side, near, flat, peel, peel_face, peel_depth,
        )  # fmt: skip
