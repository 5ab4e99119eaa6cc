"""Specular-glossiness materials as metallic-roughness ones, by the conversion that KHR_materials_pbrSpecularGlossiness
gives in its appendix."""

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from geometry.texture import SRGB_DECODE, encode_srgb8

DIELECTRIC = 0.04
"""Reflectance of what is no metal."""
_EPSILON = 1e-6
_ROWS = 256
"""Rows of an image that are converted at once: floats take sixteen times the memory of bytes."""


def to_metal(
    diffuse: Float[np.ndarray, "*n 3"], specular: Float[np.ndarray, "*n 3"]
) -> tuple[Float[np.ndarray, "*n 3"], Float[np.ndarray, "*n"]]:
    """Base colour and metallic of a diffuse and a specular colour, all linear in [0, 1]."""
    left = 1.0 - specular.max(axis=-1)
    bright, shiny = _brightness(diffuse), _brightness(specular)
    b = bright * left / (1.0 - DIELECTRIC) + shiny - 2.0 * DIELECTRIC
    root = np.sqrt(np.maximum(b * b - 4.0 * DIELECTRIC * (DIELECTRIC - shiny), 0.0))
    metallic = np.where(shiny < DIELECTRIC, 0.0, np.clip((root - b) / (2.0 * DIELECTRIC), 0.0, 1.0))
    share = metallic[..., None]
    from_diffuse = diffuse * (left[..., None] / (1.0 - DIELECTRIC)) / np.maximum(1.0 - share, _EPSILON)
    from_specular = (specular - DIELECTRIC * (1.0 - share)) / np.maximum(share, _EPSILON)
    return np.clip(from_diffuse + (from_specular - from_diffuse) * share * share, 0.0, 1.0), metallic


def _brightness(color: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n"]:
    return np.sqrt((color * color) @ np.array([0.299, 0.587, 0.114], color.dtype))


def to_metal_images(
    diffuse: UInt8[np.ndarray, "height_d width_d 4"] | None,
    diffuse_factor: tuple[float, float, float],
    gloss: UInt8[np.ndarray, "height_g width_g 4"] | None,
    specular_factor: tuple[float, float, float],
    glossiness_factor: float,
) -> tuple[UInt8[np.ndarray, "height width 4"], UInt8[np.ndarray, "height width 4"]]:
    """Base colour (sRGB, alpha as in the diffuse image) and metallic-roughness image (roughness in G, metallic in B),
    both of the larger one's size. None stands for white."""
    white = np.full((1, 1, 4), 255, np.uint8)
    colors, mirrors = white if diffuse is None else diffuse, white if gloss is None else gloss
    height, width = max(colors.shape[:2], mirrors.shape[:2], key=lambda size: size[0] * size[1])
    colors, mirrors = _sized(colors, height, width), _sized(mirrors, height, width)
    base, rough = np.empty((height, width, 4), np.uint8), np.zeros((height, width, 4), np.uint8)
    base[..., 3], rough[..., 3] = colors[..., 3], 255
    roughness = 255.0 - glossiness_factor * np.arange(256)
    rough[..., 1] = np.rint(roughness).astype(np.uint8)[mirrors[..., 3]]
    for first in range(0, height, _ROWS):
        rows = slice(first, first + _ROWS)
        color, metallic = to_metal(
            SRGB_DECODE[colors[rows, :, :3]] * np.array(diffuse_factor, np.float32),
            SRGB_DECODE[mirrors[rows, :, :3]] * np.array(specular_factor, np.float32),
        )
        base[rows, :, :3] = encode_srgb8(color.astype(np.float32))
        rough[rows, :, 2] = np.rint(metallic * 255.0)
    return base, rough


def _sized(image: UInt8[np.ndarray, "h w 4"], height: int, width: int) -> UInt8[np.ndarray, "height width 4"]:
    if image.shape[:2] == (height, width):
        return image
    channels = [
        Image.fromarray(np.ascontiguousarray(image[..., channel])).resize((width, height), Image.Resampling.BILINEAR)
        for channel in range(4)
    ]  # each by itself: alpha is no opacity in a glossiness image
    return np.dstack([np.asarray(channel) for channel in channels])
