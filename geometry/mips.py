"""Smaller versions of a texture: exact area means in linear light, for any size."""

# mypy: disable-error-code="arg-type"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from jaxtyping import Float32, UInt8, UInt16
from numba import njit

from geometry.kernels.jit import BORROWING
from geometry.kernels.texture import MIP_SCALE


def mip_levels(
    image: UInt8[np.ndarray, "height width 4"], decode: Float32[np.ndarray, "256"], alpha_weighted: bool
) -> list[UInt16[np.ndarray, "_ _ 4"]]:
    """Linear RGBA at half the size and half of that down to one texel. Every texel is the mean over its own area of the
    level above, colours weighted by alpha where asked for: what is cut out then has no say in the colour."""
    levels: list[UInt16[np.ndarray, "_ _ 4"]] = []
    level, from_bytes = image, True
    while max(level.shape[:2]) > 1:
        height, width = level.shape[:2]
        rows, columns = max(height // 2, 1), max(width // 2, 1)
        coarse = np.empty((rows, columns, 4), np.float32)
        # In a quarter whose texels count alike, by a power of two, weights cancel out to the bit.
        alike = height == 2 * rows and width == 2 * columns and (rows * columns).bit_count() == 1
        (quarter if alike and not alpha_weighted else halve)(level, decode, from_bytes, alpha_weighted, coarse)
        levels.append(np.empty(coarse.shape, np.uint16))
        to_fractions(coarse, levels[-1])
        level, from_bytes = coarse, False
    return levels


@njit(forceinline=True, **BORROWING)
def overlap(coarse: int, fine: int, num_coarse: int, num_fine: int) -> int:
    """Length that a coarse and a fine texel share, in units of 1 / (num_coarse num_fine) of the image."""
    return min((coarse + 1) * num_fine, (fine + 1) * num_coarse) - max(coarse * num_fine, fine * num_coarse)


@njit(**BORROWING)
def to_fractions(level: np.ndarray, out: np.ndarray) -> None:
    """Linear light [h, w, 4] to 16-bit fractions [h, w, 4], rounded."""
    for row in range(level.shape[0]):
        for column in range(level.shape[1]):
            for channel in range(4):
                out[row, column, channel] = np.uint16(
                    np.int32(level[row, column, channel] * np.float32(MIP_SCALE) + np.float32(0.5))
                )


@njit(**BORROWING)
def quarter(fine: np.ndarray, decode: np.ndarray, from_bytes: bool, alpha_weighted: bool, coarse: np.ndarray) -> None:
    """`halve` for sizes that are powers of two, without weights."""
    scale, alpha_scale = np.float32(0.25), np.float32(1.0 / 255.0 if from_bytes else 1.0)
    for row in range(coarse.shape[0]):
        y = 2 * row
        for column in range(coarse.shape[1]):
            x = 2 * column
            for channel in range(3):
                if from_bytes:
                    total = decode[np.uint8(fine[y, x, channel])] + decode[np.uint8(fine[y, x + 1, channel])]
                    total += decode[np.uint8(fine[y + 1, x, channel])]
                    total += decode[np.uint8(fine[y + 1, x + 1, channel])]
                else:
                    total = np.float32(fine[y, x, channel]) + np.float32(fine[y, x + 1, channel])
                    total += np.float32(fine[y + 1, x, channel])
                    total += np.float32(fine[y + 1, x + 1, channel])
                coarse[row, column, channel] = total * scale
            alpha = np.float32(fine[y, x, 3]) * alpha_scale + np.float32(fine[y, x + 1, 3]) * alpha_scale
            alpha += np.float32(fine[y + 1, x, 3]) * alpha_scale
            alpha += np.float32(fine[y + 1, x + 1, 3]) * alpha_scale
            coarse[row, column, 3] = alpha * scale


@njit(**BORROWING)
def halve(fine: np.ndarray, decode: np.ndarray, from_bytes: bool, alpha_weighted: bool, coarse: np.ndarray) -> None:
    """Half the size (rounded down, 1 at least): [h, w, 4] of bytes (sRGB, alpha linear) or linear light ->
    coarse [h / 2, w / 2, 4], linear light. Of an odd size every coarse texel covers a little more than two fine ones,
    which count by their overlap."""
    height, width, rows, columns = fine.shape[0], fine.shape[1], coarse.shape[0], coarse.shape[1]
    alpha_scale = np.float32(1.0 / 255.0 if from_bytes else 1.0)
    for row in range(rows):
        top, bottom = row * height // rows, ((row + 1) * height + rows - 1) // rows
        for column in range(columns):
            left, right = column * width // columns, ((column + 1) * width + columns - 1) // columns
            red, green, blue, alpha = np.float32(0.0), np.float32(0.0), np.float32(0.0), np.float32(0.0)
            total, weights = np.float32(0.0), np.float32(0.0)
            weighted = alpha_weighted
            for attempt in range(2):  # again without weights where all of it is cut out
                for y in range(top, bottom):
                    share_y = overlap(row, y, rows, height)
                    for x in range(left, right):
                        share = np.float32(share_y * overlap(column, x, columns, width))
                        texel_alpha = np.float32(fine[y, x, 3]) * alpha_scale
                        weight = share * texel_alpha if weighted else share
                        if from_bytes:
                            red += weight * decode[np.uint8(fine[y, x, 0])]
                            green += weight * decode[np.uint8(fine[y, x, 1])]
                            blue += weight * decode[np.uint8(fine[y, x, 2])]
                        else:
                            red += weight * np.float32(fine[y, x, 0])
                            green += weight * np.float32(fine[y, x, 1])
                            blue += weight * np.float32(fine[y, x, 2])
                        weights += weight
                        if attempt == 0:
                            alpha += share * texel_alpha
                            total += share
                if weights > 0.0:
                    break
                weighted = False
            coarse[row, column, 0], coarse[row, column, 1] = red / weights, green / weights
            coarse[row, column, 2], coarse[row, column, 3] = blue / weights, alpha / total
