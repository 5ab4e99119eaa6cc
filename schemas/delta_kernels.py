"""Decode maps stored as differences between rows to float32, in one pass instead of five."""

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def scaled_rows(low: np.ndarray, high: np.ndarray, scale: np.float32, out: np.ndarray) -> None:
    """Decode 16-bit maps. low, high: bytes [rows, columns] of differences, which wrap around; out: float32, the values
    times scale."""
    rows, columns = out.shape
    row = np.zeros(columns, np.int16)
    for y in range(rows):
        for x in range(columns):
            row[x] += np.int16(np.uint16(low[y, x]) | (np.uint16(high[y, x]) << 8))
        for x in range(columns):
            out[y, x] = np.float32(row[x]) * scale


@njit(nogil=True, cache=True)
def unit_rows(deltas: np.ndarray, out: np.ndarray) -> None:
    """Decode 8-bit normals. deltas: int8 [rows, columns, 3], which wrap around; out: float32, unit vectors or 0."""
    rows, columns, _ = out.shape
    row = np.zeros((columns, 3), np.int8)
    for y in range(rows):
        for x in range(columns):
            for k in range(3):
                row[x, k] += deltas[y, x, k]
        for x in range(columns):
            if row[x, 0] == 0 and row[x, 1] == 0 and row[x, 2] == 0:  # background: no root needed
                out[y, x, 0] = out[y, x, 1] = out[y, x, 2] = np.float32(0)
                continue
            a, b, c = np.float32(row[x, 0]), np.float32(row[x, 1]), np.float32(row[x, 2])
            length = np.sqrt(a * a + b * b + c * c)
            out[y, x, 0], out[y, x, 1], out[y, x, 2] = a / length, b / length, c / length
