"""Filling what no chart covers, so that neither bilinear look-ups at a border nor mip levels mix in colours from
nowhere."""

import numpy as np
from jaxtyping import Bool, Float32
from numba import njit

from geometry.kernels.jit import BORROWING

RING_TEXELS = 4
"""Width of the rim that repeats the nearest colours around a chart; beyond it colours are only smooth."""


def dilate(
    values: Float32[np.ndarray, "height width channels"], mask: Bool[np.ndarray, "height width"]
) -> Float32[np.ndarray, "height width channels"]:
    """Values everywhere, written over those given: a rim of neighbouring ones around each chart, then a smooth fill
    (push-pull). Texels in the mask stay."""
    if not mask.any():
        return np.zeros_like(values)
    known = mask.copy()
    grow(values, known, RING_TEXELS)
    fill_smoothly(values, known)
    return values


def fill_smoothly(
    values: Float32[np.ndarray, "height width channels"], known: Bool[np.ndarray, "height width"]
) -> None:
    """Push-pull, in place: unknown texels from the mean of the known ones at half the size, and so on."""
    if known.all():
        return
    coarse, coarse_known = pull(values, known)
    fill_smoothly(coarse, coarse_known)
    push(values, known, coarse)


@njit(nogil=True, cache=True)
def grow(values: np.ndarray, known: np.ndarray, rings: int) -> None:
    """Unknown texels next to known ones become the mean of those among their 8 neighbours, ring by ring, in place."""
    height, width = known.shape
    reached = np.zeros((height, width), np.bool_)
    front, further = np.empty(height * width, np.int32), np.empty(height * width, np.int32)
    count, column_known = 0, np.empty(width, np.bool_)
    for row in range(height):
        above, below = max(row - 1, 0), min(row + 1, height - 1)
        for column in range(width):
            column_known[column] = known[above, column] | known[row, column] | known[below, column]
        for column in range(width):
            left, right = max(column - 1, 0), min(column + 1, width - 1)
            touches = column_known[left] | column_known[column] | column_known[right]
            if touches and not known[row, column]:
                reached[row, column] = True
                front[count] = row * width + column
                count += 1
    for ring in range(rings):
        for entry in range(count):
            mean_of_known(values, known, front[entry] // width, front[entry] % width)
        for entry in range(count):
            known[front[entry] // width, front[entry] % width] = True
        if ring == rings - 1:
            return
        found = 0
        for entry in range(count):
            row, column = front[entry] // width, front[entry] % width
            for y in range(max(row - 1, 0), min(row + 2, height)):
                for x in range(max(column - 1, 0), min(column + 2, width)):
                    if not known[y, x] and not reached[y, x]:
                        reached[y, x] = True
                        further[found] = y * width + x
                        found += 1
        front, further, count = further, front, found


@njit(forceinline=True, **BORROWING)
def mean_of_known(values: np.ndarray, known: np.ndarray, row: int, column: int) -> None:
    """A texel becomes the mean of the known ones among its 8 neighbours."""
    height, width, channels = values.shape
    red, green, blue, alpha = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
    count = 0
    for y in range(max(row - 1, 0), min(row + 2, height)):
        for x in range(max(column - 1, 0), min(column + 2, width)):
            if known[y, x]:
                count += 1
                red += values[y, x, 0]
                green += values[y, x, 1]
                blue += values[y, x, 2]
                if channels == 4:
                    alpha += values[y, x, 3]
    number = np.float32(count)
    values[row, column, 0], values[row, column, 1] = red / number, green / number
    values[row, column, 2] = blue / number
    if channels == 4:
        values[row, column, 3] = alpha / number


@njit(nogil=True, cache=True)
def pull(values: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half the size (rounded up): mean of the known texels of each 2 x 2 block."""
    height, width, channels = values.shape
    coarse = np.zeros(((height + 1) // 2, (width + 1) // 2, channels), np.float32)
    coarse_known = np.zeros(coarse.shape[:2], np.bool_)
    for row in range(coarse.shape[0]):
        for column in range(coarse.shape[1]):
            count = 0
            for y in range(2 * row, min(2 * row + 2, height)):
                for x in range(2 * column, min(2 * column + 2, width)):
                    if known[y, x]:
                        count += 1
                        for channel in range(channels):
                            coarse[row, column, channel] += values[y, x, channel]
            if count:
                coarse_known[row, column] = True
                for channel in range(channels):
                    coarse[row, column, channel] /= np.float32(count)
    return coarse, coarse_known


@njit(**BORROWING)
def push(values: np.ndarray, known: np.ndarray, coarse: np.ndarray) -> None:
    """Unknown texels from the level of half the size, bilinearly, in place."""
    height, width, channels = values.shape
    last_row, last_column = coarse.shape[0] - 1, coarse.shape[1] - 1
    for row in range(height):
        # The centre of fine texel r lies at r / 2 - 1 / 4 among coarse centres: 3/4 of its parent, 1/4 of the next.
        near_y, far_y = row // 2, min(max(row // 2 + (1 if row % 2 else -1), 0), last_row)
        for column in range(width):
            if known[row, column]:
                continue
            near_x, far_x = column // 2, min(max(column // 2 + (1 if column % 2 else -1), 0), last_column)
            for channel in range(channels):
                values[row, column, channel] = np.float32(0.0625) * (
                    9.0 * coarse[near_y, near_x, channel] + 3.0 * coarse[near_y, far_x, channel]
                    + 3.0 * coarse[far_y, near_x, channel] + coarse[far_y, far_x, channel]
                )  # fmt: skip
