"""Image against truth, over covered pixels alone. Colours are 8-bit sRGB."""

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torchmetrics.functional.image import structural_similarity_index_measure

from geometry.image_metrics import mean_color_fill
from geometry.nearest import Surface, VisibleColors
from schemas.sample import TextureSample


def ssim(
    image: UInt8[np.ndarray, "height width 3"],
    truth: UInt8[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
) -> float:
    """Structural similarity (Wang 2004: Gaussian window of 11 pixels, sigma 1.5), mean over the pixels of the mask.
    Outside the mask both images count as black, so that only what is covered differs.

    Raises:
        ValueError: the mask is empty.
    """
    if not mask.any():
        raise ValueError("SSIM over an empty mask")
    first, second = (
        torch.from_numpy(picture * mask[..., None]).permute(2, 0, 1)[None].double() / 255 for picture in (image, truth)
    )
    _, local = structural_similarity_index_measure(first, second, data_range=1.0, return_full_image=True)
    return float(local[0].mean(dim=0).numpy()[mask].mean())


def nearest_pixel_fill(
    images: UInt8[np.ndarray, "views h w 3"], views: Surface, uv: Surface
) -> UInt8[np.ndarray, "height width 3"]:
    """Copy to each texel the nearest pixel of the given images, by position and normal (`geometry.nearest`): the honest
    baseline. Nothing is learnt; what a network is worth is what it adds to this. Black outside the mask, and where the
    images show nothing."""
    if not views.mask.any():
        return np.zeros((*uv.mask.shape, 3), np.uint8)
    return VisibleColors(views, images).nearest(uv, workers=-1)[0]


def baselines(
    images: UInt8[np.ndarray, "views h w 3"], sample: TextureSample
) -> dict[str, UInt8[np.ndarray, "height width 3"]]:
    """Both baseline textures of a textured sample from its first views, as these images show them."""
    assert sample.uv is not None
    views, uv, count = sample.views, sample.uv, len(images)
    seen = Surface(position=views.position[:count], normal=views.normal[:count])
    return {
        "fill": mean_color_fill(images[0], views.mask[0], *uv.mask.shape),
        "nearest": nearest_pixel_fill(images, seen, Surface(position=uv.position, normal=uv.normal)),
    }
