"""Compiled loops that pack charts into a square by the texels they touch."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from pipeline.unwrap.kernels.stretch import inverse, left_of_edge

ROWS_PER_STEP = 24
"""Height of a chart from which on every second row is tried, and so on: slopes make each row slow."""
TURNS = 18
"""Angles tried, over a quarter turn, for the smallest bounding box of a chart."""


@njit(nogil=True, cache=True)
def turn_charts(first_vertex: np.ndarray, uv: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Charts turned to their smallest bounding box, corner at the origin, and its sides."""
    out = np.empty_like(uv)
    sides = np.empty((len(first_vertex) - 1, 2))
    for chart in range(len(first_vertex) - 1):
        points = uv[first_vertex[chart] : first_vertex[chart + 1]]
        best, angle = np.inf, 0.0
        for step in range(TURNS):
            c, s = np.cos(step * np.pi / 2 / TURNS), np.sin(step * np.pi / 2 / TURNS)
            low_x, low_y, high_x, high_y = np.inf, np.inf, -np.inf, -np.inf
            for v in range(len(points)):
                x, y = c * points[v, 0] - s * points[v, 1], s * points[v, 0] + c * points[v, 1]
                low_x, high_x, low_y, high_y = min(low_x, x), max(high_x, x), min(low_y, y), max(high_y, y)
            area = (high_x - low_x) * (high_y - low_y)
            if area < best:
                best, angle = area, step * np.pi / 2 / TURNS
        c, s = np.cos(angle), np.sin(angle)
        own = out[first_vertex[chart] : first_vertex[chart + 1]]
        for v in range(len(points)):
            own[v, 0], own[v, 1] = c * points[v, 0] - s * points[v, 1], s * points[v, 0] + c * points[v, 1]
        for k in range(2):
            low, high = np.inf, -np.inf
            for v in range(len(points)):
                low, high = min(low, own[v, k]), max(high, own[v, k])
            for v in range(len(points)):
                own[v, k] -= low
            sides[chart, k] = high - low
    return out, sides


@njit(nogil=True, cache=True)
def chart_runs(
    uv: np.ndarray, corners: np.ndarray, order: np.ndarray, first_face: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Texels that each chart (corner at the origin) touches: width and height [c, 2]; `runs_of` them, upright and then
    after a quarter turn, of all charts [r, 3]; and where those of chart i begin, [2 i] and [2 i + 1]."""
    charts = len(first_face) - 1
    sizes, begins, runs = (
        np.empty((charts, 2), np.int64),
        np.zeros(2 * charts + 1, np.int64),
        np.empty((1024, 3), np.int64),
    )
    for chart in range(charts):
        touched = touched_texels(corners, order[first_face[chart] : first_face[chart + 1]], uv)
        sizes[chart, 0], sizes[chart, 1] = touched.shape[1], touched.shape[0]
        for turn in range(2):
            own = runs_of(quarter_turned(touched) if turn else touched)
            begin = begins[2 * chart + turn]
            end = begin + len(own)
            if end > len(runs):
                longer = np.empty((2 * end, 3), np.int64)
                longer[:begin] = runs[:begin]
                runs = longer
            runs[begin:end], begins[2 * chart + turn + 1] = own, end
    return sizes, runs, begins


@njit(nogil=True, cache=True)
def pack_at(
    sequence: np.ndarray, sizes: np.ndarray, runs: np.ndarray, begins: np.ndarray, next_taken: np.ndarray,
    next_free: np.ndarray, padding: int, limit: int,
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """One attempt in texels, for `chart_runs`: lower left corner and quarter turns of each chart, and the height that
    all take; charts that would need more than `limit`, or the rows of the tables, end the attempt. `next_taken` and
    `next_free` [rows, width + 1] are scratch: from every texel on, the next one of its row that is taken, or free."""
    rows, width = next_taken.shape[0], next_taken.shape[1] - 1
    places, turns = np.zeros((len(sizes), 2), np.int64), np.zeros(len(sizes), np.int64)
    next_taken[:] = width
    for row in range(rows):
        for column in range(width + 1):
            next_free[row, column] = column
    hints = np.zeros((width // 2 + 1, width // 2 + 1), np.uint16)
    top = 0
    for chart in sequence:
        best, best_x, best_y, best_turn = rows + 1, np.int64(-1), np.int64(-1), np.int64(0)
        best_runs = runs[:0]
        for turn in range(4):
            w, h = sizes[chart, turn % 2], sizes[chart, 1 - turn % 2]
            if w > width:
                continue
            own = runs[begins[2 * chart + turn % 2] : begins[2 * chart + turn % 2 + 1]]
            if turn >= 2:
                own = upside_down(own, h, w)
            start = np.int64(hints[min(w // 2, width // 2), min(h // 2, width // 2)])
            x, y = lowest_place(next_taken, next_free, own, w, h, width, start, best - h)
            if y >= 0:
                best, best_x, best_y, best_turn, best_runs = y + h, x, y, turn, own
                hints[min(w // 2, width // 2), min(h // 2, width // 2)] = max(start, y)
        if best_y < 0 or best > limit:
            return places, turns, 2 * width
        places[chart, 0], places[chart, 1], turns[chart] = best_x, best_y, best_turn
        occupy(next_taken, next_free, best_runs, best_x, best_y, padding)
        top = max(top, best)
    return places, turns, top


@njit(nogil=True, cache=True)
def touched_texels(corners: np.ndarray, faces: np.ndarray, uv: np.ndarray) -> np.ndarray:
    """Mask [h, w] of the texels in which a chart (corner at the origin) has any part."""
    high_x, high_y = 0.0, 0.0
    for f in faces:
        for k in range(3):
            high_x, high_y = max(high_x, uv[corners[f, k], 0]), max(high_y, uv[corners[f, k], 1])
    mask = np.zeros((int(high_y) + 1, int(high_x) + 1), np.bool_)
    for f in faces:
        ax, ay = uv[corners[f, 0], 0], uv[corners[f, 0], 1]
        bx, by = uv[corners[f, 1], 0], uv[corners[f, 1], 1]
        cx, cy = uv[corners[f, 2], 0], uv[corners[f, 2], 1]
        left, right = int(min(ax, bx, cx)), int(max(ax, bx, cx))
        abx, aby, bcx, bcy, cax, cay = bx - ax, by - ay, cx - bx, cy - by, ax - cx, ay - cy
        one, two, three = inverse(aby), inverse(bcy), inverse(cay)
        for row in range(int(min(ay, by, cy)), int(max(ay, by, cy)) + 1):
            y = row + 0.5
            first_one, last_one = left_of_edge(abx, aby, one, ax, y - ay, reach(abx, aby), left, right)
            first_two, last_two = left_of_edge(bcx, bcy, two, bx, y - by, reach(bcx, bcy), left, right)
            first_three, last_three = left_of_edge(cax, cay, three, cx, y - cy, reach(cax, cay), left, right)
            for column in range(max(first_one, first_two, first_three), min(last_one, last_two, last_three) + 1):
                mask[row, np.uint64(column)] = True  # unsigned: no number counts from the end
    return mask


@njit(nogil=True, cache=True, forceinline=True)
def reach(ex: float, ey: float) -> float:
    """Least cross product with an edge of the middle of a square of side 1 that reaches to the edge's left."""
    return -0.5 * (abs(ex) + abs(ey)) - 1e-9


@njit(nogil=True, cache=True)
def quarter_turned(mask: np.ndarray) -> np.ndarray:
    """A mask after a quarter turn counter-clockwise (x right, y up)."""
    h, w = mask.shape
    out = np.empty((w, h), np.bool_)
    for y in range(h):
        for x in range(w):
            out[x, h - 1 - y] = mask[y, x]
    return out


@njit(nogil=True, cache=True)
def runs_of(mask: np.ndarray) -> np.ndarray:
    """Runs of a mask as [row, first column, column behind the last]."""
    count = 0
    for y in range(mask.shape[0]):
        count += mask[y, 0]
        for x in range(1, mask.shape[1]):
            count += mask[y, x] > mask[y, x - 1]
    runs = np.empty((count, 3), np.int64)
    count = 0
    for y in range(mask.shape[0]):
        x = 0
        while x < mask.shape[1]:
            if not mask[y, x]:
                x += 1
                continue
            runs[count, 0], runs[count, 1] = y, x
            while x < mask.shape[1] and mask[y, x]:
                x += 1
            runs[count, 2] = x
            count += 1
    return runs


@njit(nogil=True, cache=True)
def stride_over(count: int) -> int:
    """Step by which to go around runs so that those that follow each other lie far apart: where one is free its
    neighbours mostly are, too, so that collisions are found sooner."""
    stride = int(0.618 * count) + 1
    while np.gcd(stride, count) > 1:
        stride += 1
    return stride % count


@njit(nogil=True, cache=True)
def upside_down(runs: np.ndarray, h: int, w: int) -> np.ndarray:
    """`runs_of` a mask [h, w] after half a turn, from those before."""
    out = np.empty_like(runs)
    for run in range(len(runs)):
        row, first, behind = runs[len(runs) - 1 - run]
        out[run, 0], out[run, 1], out[run, 2] = h - 1 - row, w - behind, w - first
    return out


@njit(nogil=True, cache=True)
def lowest_place(
    next_taken: np.ndarray, next_free: np.ndarray, runs: np.ndarray, w: int, h: int, width: int, start: int, below: int
) -> tuple[int, int]:
    """Leftmost of the lowest places (x, y) for runs in a box of w by h, from row `start` on and below row `below`;
    (-1, -1) for none. Tall ones are tried on every few rows and then let down."""
    step, stride = 1 + h // ROWS_PER_STEP, stride_over(len(runs))
    run = 0
    for y in range(start, min(below, len(next_taken) - h + 1), step):
        x, clear = np.int64(0), 0  # `clear` runs passed since the last collision; the one that collided is tried first
        while x <= width - w:
            row, first = np.uint64(y + runs[run, 0]), runs[run, 1]
            hit = np.int64(next_taken[row, np.uint64(x + first)])
            if hit < x + runs[run, 2]:
                # the run meets taken texels until it starts behind them
                x, clear = np.int64(next_free[row, np.uint64(hit)]) - first, 0
                continue
            clear += 1
            if clear == len(runs):
                return x, lowered(next_taken, runs, x, y)
            run = run + stride if run + stride < len(runs) else run + stride - len(runs)
    return -1, -1


@njit(nogil=True, cache=True)
def lowered(next_taken: np.ndarray, runs: np.ndarray, x: int, y: int) -> int:
    """The row to which runs that lie free at (x, y) fall."""
    while y > 0:
        for run in range(len(runs)):
            if next_taken[y - 1 + runs[run, 0], x + runs[run, 1]] < x + runs[run, 2]:
                return y
        y -= 1
    return y


@njit(nogil=True, cache=True)
def occupy(next_taken: np.ndarray, next_free: np.ndarray, runs: np.ndarray, x: int, y: int, padding: int) -> None:
    """Mark the texels of runs, sorted by row, at (x, y) and `padding` more around, and renew the rows' tables."""
    width, begin = next_taken.shape[1] - 1, 0
    for row in range(max(0, y - padding), min(len(next_taken), y + runs[-1, 0] + padding + 1)):
        while y + runs[begin, 0] < row - padding:
            begin += 1
        first, behind, run = 0, 0, begin
        while run < len(runs) and y + runs[run, 0] <= row + padding:
            left, right = max(0, x + runs[run, 1] - padding), min(width, x + runs[run, 2] + padding)
            if left <= behind and right >= first:
                first, behind = min(first, left), max(behind, right)
            else:
                take(next_taken[row], next_free[row], first, behind)
                first, behind = left, right
            run += 1
        take(next_taken[row], next_free[row], first, behind)


@njit(nogil=True, cache=True)
def take(next_taken: np.ndarray, next_free: np.ndarray, first: int, behind: int) -> None:
    """Mark a span of a row. To the left, the tables change as far as the texels go that are alike."""
    free, was_free = np.int64(next_free[behind]), np.int64(next_free[first])
    if was_free >= behind:
        return
    for at in range(first_above(next_free, was_free, first), first):
        next_free[np.uint64(at)] = free
    for at in range(first_above(next_taken, first + 1, first), first):
        next_taken[np.uint64(at)] = first
    for at in range(first, behind):
        next_taken[np.uint64(at)], next_free[np.uint64(at)] = at, free


@njit(nogil=True, cache=True)
def first_above(table: np.ndarray, value: int, end: int) -> int:
    """First place before `end` in a table, whose numbers never fall, with at least a value; `end` where there is
    none."""
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        if table[np.uint64(middle)] < value:
            low = middle + 1
        else:
            high = middle
    return low


@njit(nogil=True, cache=True)
def place_vertices(
    first_vertex: np.ndarray, uv: np.ndarray, places: np.ndarray, turns: np.ndarray, sizes: np.ndarray
) -> np.ndarray:
    """Chart coordinates in texels at their places."""
    out = np.empty_like(uv)
    for chart in range(len(first_vertex) - 1):
        w, h = sizes[chart, 0], sizes[chart, 1]
        for v in range(first_vertex[chart], first_vertex[chart + 1]):
            x, y = uv[v, 0], uv[v, 1]
            if turns[chart] == 1:
                x, y = h - y, x
            elif turns[chart] == 2:
                x, y = w - x, h - y
            elif turns[chart] == 3:
                x, y = y, w - x
            out[v, 0], out[v, 1] = x + places[chart, 0], y + places[chart, 1]
    return out
