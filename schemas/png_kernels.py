"""Pixels of positions and normals to the rows of a PNG image and back, in one pass each. A row is stored as its
difference to the row above (PNG's filter "Up", type 2), byte by byte."""

import numpy as np
from numba import njit

UP = 2


@njit(nogil=True, cache=True)
def position_rows(position: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> float:
    """Encode positions as three 16-bit planes, x above y above z. position: float32 [h, w, 3]; mask: bool [h, w],
    outside it 0 is stored; rows: uint8 [3 h, 1 + 2 w], written. Returns the largest magnitude, NaN for one."""
    height, width, _ = position.shape
    bits, largest = position.view(np.int32), np.zeros(1, np.int32)
    above, values = np.zeros((2, width), np.uint16)
    for k in range(3):
        for y in range(height):
            top = np.int32(0)
            for x in range(width):
                top = max(top, bits[y, x, k] & np.int32(0x7FFFFFFF))  # magnitudes in order, NaN above all
                p = min(max(np.float64(position[y, x, k]), -1.0), 1.0)
                value = np.int32(np.rint(p * 32767.0) + 32768.0)
                values[x] = value if mask[y, x] else np.int32(0)
            largest[0] = max(largest[0], top)
            row = rows[k * height + y]
            row[0] = UP
            for x in range(width):
                row[1 + 2 * x] = (values[x] >> 8) - (above[x] >> 8)
                row[2 + 2 * x] = values[x] - above[x]
                above[x] = values[x]
    return float(largest.view(np.float32)[0])


@njit(nogil=True, cache=True)
def normal_rows(normal: np.ndarray, mask: np.ndarray, rows: np.ndarray) -> None:
    """Encode normals, scaled to unit length, as 8-bit RGB: 128 is 0. normal: float32 [h, w, 3]; mask: bool [h, w],
    outside it black is stored; rows: uint8 [h, 1 + 3 w], written."""
    height, width, _ = normal.shape
    above, values = np.zeros((2, 3 * width), np.uint8)
    for y in range(height):
        for x in range(width):
            if not mask[y, x]:  # background: no root needed
                values[3 * x] = values[3 * x + 1] = values[3 * x + 2] = 0
                continue
            a, b, c = np.float64(normal[y, x, 0]), np.float64(normal[y, x, 1]), np.float64(normal[y, x, 2])
            scale = 127.0 / max(np.sqrt(a * a + b * b + c * c), 1e-12)
            for k in range(3):
                values[3 * x + k] = np.int32(np.rint(normal[y, x, k] * scale) + 128.0)
        row = rows[y]
        row[0] = UP
        for x in range(3 * width):
            row[1 + x] = values[x] - above[x]
            above[x] = values[x]


@njit(nogil=True, cache=True)
def position_pixels(rows: np.ndarray, mask: np.ndarray, masked: bool, scale: np.float32, out: np.ndarray) -> None:
    """Decode positions. rows: uint8 [3 h, 1 + 2 w], 16-bit big-endian values behind the filter's number; mask: bool
    [h, w], outside it 0 is written; not `masked`: outside is where the first plane is 0; out: float32 [h, w, 3]."""
    height, width, _ = out.shape
    above = np.zeros((3, 2 * width), np.uint8)
    for k in range(1, 3):  # the three planes are read side by side: each begins below the last row of the one before
        above[k] = above[k - 1]
        for y in range(height):
            add_row(rows[(k - 1) * height + y], above[k])
    for y in range(height):
        for k in range(3):
            add_row(rows[k * height + y], above[k])
        for k in range(3):
            row = above[k]
            for x in range(width):
                value = np.int32(row[2 * x]) << np.int32(8) | np.int32(row[2 * x + 1])
                inside = mask[y, x] if masked else (above[0, 2 * x] | above[0, 2 * x + 1]) != 0
                out[y, x, k] = np.float32(value - np.int32(32768)) * scale * np.float32(inside)


@njit(nogil=True, cache=True)
def normal_pixels(rows: np.ndarray, out: np.ndarray) -> None:
    """Decode normals. rows: uint8 [h, 1 + 3 w], black where there is none, behind the filter's number; out: float32
    [h, w, 3], unit vectors or 0."""
    height, width, _ = out.shape
    row = np.zeros(3 * width, np.uint8)
    for y in range(height):
        add_row(rows[y], row)
        for x in range(width):
            i, j, k = np.int32(row[3 * x]), np.int32(row[3 * x + 1]), np.int32(row[3 * x + 2])
            if i + j + k == 0:  # background: no root needed
                out[y, x, 0] = out[y, x, 1] = out[y, x, 2] = np.float32(0)
                continue
            i, j, k = i - np.int32(128), j - np.int32(128), k - np.int32(128)
            square = i * i + j * j + k * k
            scale = np.float32(1) / np.sqrt(np.float32(square if square else 1))
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = i * scale, j * scale, k * scale


@njit(nogil=True, cache=True)
def add_row(row: np.ndarray, above: np.ndarray) -> None:
    """Undo the filter of a row [1 + n] in place of the row above [n]."""
    for x in range(len(above)):
        above[x] += row[1 + x]
