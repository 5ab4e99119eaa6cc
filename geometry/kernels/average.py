"""Compiled loops that average samples and encode colours."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING


@njit(**BORROWING)
def average_rows(color: np.ndarray, covered: np.ndarray, s: int, rgb: np.ndarray, any_covered: np.ndarray) -> None:
    """Mean over the covered of s x s samples: color [h s, w s, 4], covered [h s, w s] -> rgb [h, w, 3], [h, w]."""
    for row in range(rgb.shape[0]):
        for column in range(rgb.shape[1]):
            red, green, blue, count = np.float32(0.0), np.float32(0.0), np.float32(0.0), 0
            for y in range(row * s, row * s + s):
                for x in range(column * s, column * s + s):
                    if covered[y, x]:
                        red += color[y, x, 0]
                        green += color[y, x, 1]
                        blue += color[y, x, 2]
                        count += 1
            scale = np.float32(1.0 / count) if count else np.float32(0.0)
            rgb[row, column, 0], rgb[row, column, 1], rgb[row, column, 2] = red * scale, green * scale, blue * scale
            any_covered[row, column] = count > 0


@njit(**BORROWING)
def encode_rows(linear: np.ndarray, steps: np.ndarray, guess: np.ndarray, out: np.ndarray) -> None:
    """Linear light [n] to the 8-bit sRGB level [n] whose interval of `steps` holds it."""
    for i in range(linear.shape[0]):
        value = linear[i]
        if not value > 0.0:
            out[i] = 0
            continue
        if value >= 1.0:
            out[i] = 255
            continue
        level = np.int64(guess[np.int64(value * np.float32(4096.0))])
        while level < 255 and value >= steps[level]:
            level += 1
        out[i] = level
