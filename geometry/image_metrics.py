"""Compare 8-bit images over the pixels of a mask."""

import math

import numpy as np
from jaxtyping import Bool, UInt8

from geometry.kernels.measure import sum_differences

BEST_DB = 100.0
"""PSNR that stands for equal images where an infinite number has no place: in a mean, in a ledger column."""


def psnr(
    image: UInt8[np.ndarray, "*shape channels"],
    truth: UInt8[np.ndarray, "*shape channels"],
    mask: Bool[np.ndarray, "*shape"],
) -> float:
    """Return the peak signal-to-noise ratio in dB over the pixels of a mask; infinite for equal images.

    Both images have the same colour space (sRGB in this project). Raises ValueError where the mask is empty.
    """
    if not mask.any():
        raise ValueError("PSNR over an empty mask: there is no pixel to compare")
    error = image[mask].astype(np.float64) - truth[mask]
    return decibels(float(np.mean(error * error)))


def decibels(mean_square: float) -> float:
    """Return the peak signal-to-noise ratio of 8-bit images by their mean square difference."""
    return math.inf if mean_square == 0.0 else 10.0 * float(np.log10(255.0**2 / mean_square))


def compare_pixels(
    image: UInt8[np.ndarray, "*shape 3"],
    truth: UInt8[np.ndarray, "*shape 3"],
    mask: Bool[np.ndarray, "*shape"],
    off: int,
) -> tuple[float, float]:
    """Return `capped_psnr`, and the share of pixels of which a channel differs by more than `off`."""
    squares, differ, pixels = sum_differences(image.reshape(-1, 3), truth.reshape(-1, 3), mask.reshape(-1), off)
    if not pixels:
        raise ValueError("PSNR over an empty mask: there is no pixel to compare")
    return min(decibels(squares / (3 * pixels)), BEST_DB), differ / pixels


def capped_psnr(
    image: UInt8[np.ndarray, "*shape channels"],
    truth: UInt8[np.ndarray, "*shape channels"],
    mask: Bool[np.ndarray, "*shape"],
) -> float:
    """Return `psnr`, at most `BEST_DB`."""
    return min(psnr(image, truth, mask), BEST_DB)


def mean_color_fill(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """Fill a map with the mean colour of an image's foreground, the simplest baseline; black without a foreground."""
    if not mask.any():
        return np.zeros((height, width, 3), np.uint8)
    color = image[mask].mean(axis=0).round().astype(np.uint8)
    return np.broadcast_to(color, (height, width, 3)).copy()
