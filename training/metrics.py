"""How good a texture is."""

import math

import numpy as np
from jaxtyping import Bool, UInt8


def psnr(
    image: UInt8[np.ndarray, "*shape 3"], truth: UInt8[np.ndarray, "*shape 3"], mask: Bool[np.ndarray, "*shape"]
) -> float:
    """Peak signal-to-noise ratio in dB over the pixels of the mask, sRGB; infinite for equal images.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("PSNR over an empty mask")
    error = np.square(image[mask].astype(np.float64) - truth[mask].astype(np.float64)).mean()
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def mean_color_fill(
    image: UInt8[np.ndarray, "h w 3"], mask: Bool[np.ndarray, "h w"], height: int, width: int
) -> UInt8[np.ndarray, "height width 3"]:
    """The baseline texture: a map filled with the mean colour of the image's foreground."""
    color = image[mask].mean(axis=0).round().astype(np.uint8)
    return np.broadcast_to(color, (height, width, 3)).copy()
