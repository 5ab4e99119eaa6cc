"""Compiled loops over charts in the plane: how faces are stretched, turned over or put in one place."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

WITHIN = np.nextafter(1e-9, 1.0)
"""Least cross product with each side of a face of a point strictly within it."""


@njit(nogil=True, cache=True)
def face_stretch(corners: np.ndarray, rest: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measure each face: signed area in the layout, and the largest and smallest factor by which lengths grow from
    layout to surface (Sander et al. 2001; infinite where the layout leaves no area)."""
    signed, largest, smallest = np.empty(len(corners)), np.empty(len(corners)), np.empty(len(corners))
    for f in range(len(corners)):
        a, b, c = uv[corners[f, 0]], uv[corners[f, 1]], uv[corners[f, 2]]
        x1, y1, x2, y2 = b[0] - a[0], b[1] - a[1], c[0] - a[0], c[1] - a[1]
        doubled = x1 * y2 - x2 * y1
        signed[f] = doubled / 2
        if not abs(doubled) > 1e-30:
            largest[f], smallest[f] = np.inf, 0.0
            continue
        # the map from (u, v) to the face laid flat: its columns are the images of the axes
        ux, uy = (rest[f, 0] * y2 - rest[f, 1] * y1) / doubled, -rest[f, 2] * y1 / doubled
        vx, vy = (rest[f, 1] * x1 - rest[f, 0] * x2) / doubled, rest[f, 2] * x1 / doubled
        total, product = ux * ux + uy * uy + vx * vx + vy * vy, abs(ux * vy - uy * vx)
        root = np.sqrt(max(0.0, total * total - 4 * product * product))
        largest[f], smallest[f] = np.sqrt((total + root) / 2), np.sqrt(max(0.0, (total - root) / 2))
    return signed, largest, smallest


@njit(nogil=True, cache=True)
def count_shared(corners: np.ndarray, uv: np.ndarray, texel: float) -> int:
    """Points of a grid of step `texel` (coarser where a chart spans more than 2048 steps) that lie strictly within two
    faces of a chart."""
    low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
    for v in range(len(uv)):
        low_x, high_x = min(low_x, uv[v, 0]), max(high_x, uv[v, 0])
        low_y, high_y = min(low_y, uv[v, 1]), max(high_y, uv[v, 1])
    step = max(texel, max(high_x - low_x, high_y - low_y) / 2048)
    width, height = int((high_x - low_x) / step) + 2, int((high_y - low_y) / step) + 2
    seen = np.zeros((height, width), np.bool_)
    shared = 0
    for f in range(len(corners)):
        ax, ay = (uv[corners[f, 0], 0] - low_x) / step, (uv[corners[f, 0], 1] - low_y) / step
        bx, by = (uv[corners[f, 1], 0] - low_x) / step, (uv[corners[f, 1], 1] - low_y) / step
        cx, cy = (uv[corners[f, 2], 0] - low_x) / step, (uv[corners[f, 2], 1] - low_y) / step
        left, right = int(np.ceil(min(ax, bx, cx) - 0.5)), int(np.floor(max(ax, bx, cx) - 0.5))
        doubled = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        for turned in (1.0, -1.0):
            if turned * doubled < -1e-6:
                continue  # no point has all sides on its other hand
            abx, aby, bcx, bcy = turned * (bx - ax), turned * (by - ay), turned * (cx - bx), turned * (cy - by)
            cax, cay = turned * (ax - cx), turned * (ay - cy)
            one, two, three = inverse(aby), inverse(bcy), inverse(cay)
            for row in range(int(np.ceil(min(ay, by, cy) - 0.5)), int(np.floor(max(ay, by, cy) - 0.5)) + 1):
                y = row + 0.5
                first_one, last_one = left_of_edge(abx, aby, one, ax, y - ay, WITHIN, left, right)
                first_two, last_two = left_of_edge(bcx, bcy, two, bx, y - by, WITHIN, left, right)
                first_three, last_three = left_of_edge(cax, cay, three, cx, y - cy, WITHIN, left, right)
                for column in range(max(first_one, first_two, first_three), min(last_one, last_two, last_three) + 1):
                    shared += seen[row, np.uint64(column)]
                    seen[row, np.uint64(column)] = True
    return shared


@njit(nogil=True, cache=True, forceinline=True)
def inverse(value: float) -> float:
    return 1.0 / value if value != 0.0 else 0.0


@njit(nogil=True, cache=True, forceinline=True)
def left_of_edge(
    ex: float, ey: float, step: float, x: float, y: float, least: float, first: int, last: int
) -> tuple[int, int]:
    """Columns from `first` to `last` of a row whose centres, y above a point at x, have a cross product with the edge
    (ex, ey) from that point of at least `least`; `step` is `inverse(ey)`. Along a row the product only rises or only
    falls, rounding included, so that the end of the columns is found by division and put right by looking."""
    product = ex * y
    end = (product - least) * step + x - 0.5
    if ey > 0.0:
        at = int(min(max(end, first - 1.0), float(last)))
        while at < last and product - ey * (at + 1.5 - x) >= least:
            at += 1
        while at >= first and product - ey * (at + 0.5 - x) < least:
            at -= 1
        return first, at
    at = int(max(min(end, last + 1.0), float(first)))
    while at > first and product - ey * (at - 0.5 - x) >= least:
        at -= 1
    while at <= last and product - ey * (at + 0.5 - x) < least:
        at += 1
    return at, last


@njit(nogil=True, cache=True)
def sound_charts(
    order: np.ndarray, first_face: np.ndarray, first_vertex: np.ndarray, corners: np.ndarray, uv: np.ndarray,
    texel: float,
) -> np.ndarray:  # fmt: skip
    """Charts [c] in which every face lies face up in a place of its own."""
    sound = np.ones(len(first_face) - 1, np.bool_)
    for chart in range(len(sound)):
        faces = corners[order[first_face[chart] : first_face[chart + 1]]]
        for f in range(len(faces)):
            a, b, c = uv[faces[f, 0]], uv[faces[f, 1]], uv[faces[f, 2]]
            if not (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1]) > 0.0:
                sound[chart] = False
        if sound[chart]:
            start = first_vertex[chart]
            sound[chart] = count_shared(faces - start, uv[start : first_vertex[chart + 1]], texel) == 0
    return sound


@njit(nogil=True, cache=True)
def box_sides(uv: np.ndarray) -> tuple[float, float]:
    """Return the sides of the bounding box along the axes of inertia."""
    mx, my, xx, xy, yy = 0.0, 0.0, 0.0, 0.0, 0.0
    for v in range(len(uv)):
        mx, my = mx + uv[v, 0], my + uv[v, 1]
    mx, my = mx / len(uv), my / len(uv)
    for v in range(len(uv)):
        x, y = uv[v, 0] - mx, uv[v, 1] - my
        xx += x * x
        xy += x * y
        yy += y * y
    angle = 0.5 * np.arctan2(2 * xy, xx - yy)
    c, s = np.cos(angle), np.sin(angle)
    low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
    for v in range(len(uv)):
        along, across = c * uv[v, 0] + s * uv[v, 1], c * uv[v, 1] - s * uv[v, 0]
        low_x, high_x, low_y, high_y = min(low_x, along), max(high_x, along), min(low_y, across), max(high_y, across)
    return high_x - low_x, high_y - low_y
