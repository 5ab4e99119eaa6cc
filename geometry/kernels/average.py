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


@njit(forceinline=True, **BORROWING)
def encode(value: float, steps: np.ndarray, guess: np.ndarray) -> int:
    """Linear light to the 8-bit sRGB level whose interval of `steps` holds it. There is one step at most between two
    entries of `guess`."""
    if not value > 0.0:
        return np.uint8(0)
    if value >= 1.0:
        return np.uint8(255)
    level = guess[np.int64(value * np.float32(4096.0))]
    return np.uint8(level + (level < 255 and value >= steps[min(level, 254)]))


@njit(**BORROWING)
def encode_rows(linear: np.ndarray, steps: np.ndarray, guess: np.ndarray, out: np.ndarray) -> None:
    """Linear light [n] to 8-bit sRGB [n]."""
    for i in range(linear.shape[0]):
        out[i] = encode(linear[i], steps, guess)


@njit(**BORROWING)
def encode_pixels(linear: np.ndarray, mask: np.ndarray, steps: np.ndarray, guess: np.ndarray, out: np.ndarray) -> None:
    """Linear light [n, 3] in the mask [n] to 8-bit sRGB [n, 3]; 0 elsewhere."""
    for i in range(mask.shape[0]):
        for channel in range(3):
            out[i, channel] = encode(linear[i, channel], steps, guess) if mask[i] else np.uint8(0)


@njit(**BORROWING)
def coverage_rows(face: np.ndarray, centre: np.ndarray, s: int, shares: np.ndarray, out: np.ndarray) -> None:
    """Share of covered ones among the s x s samples of each pixel, 0..255: face [h s, w s] -> out [h, w]. shares
    [s s + 1]: what each number of covered ones amounts to. A pixel whose centre [h, w] is covered, but none of its
    samples, counts one."""
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            count = 1 if centre[row, column] else 0
            covered = 0
            for y in range(row * s, row * s + s):
                for x in range(column * s, column * s + s):
                    covered += face[y, x] >= 0
            out[row, column] = shares[max(count, covered)]
