"""The view hint: colours of the given views, projected over the surface onto every other view and the UV map.

What the network would otherwise have to learn, which point of a given view a texel is, geometry knows. The hint is an
image beside each image that is generated: at every pixel the colour of the nearest point that a given view shows, and
how near that point is. It is a hint, not the answer: hidden sides get the colour of their nearest visible neighbour,
with little closeness, and the network decides what to make of it (docs/decisions/0008-view-hint-and-positions.md)."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float32

from geometry.gutter import dilate
from geometry.nearest import Surface, VisibleColors

REACH = 0.2
"""Distance at which closeness has fallen to 1/e, in the dataset frame's units (ours)."""
MOST_PIXELS = 128
"""Largest side of the views between which colours are projected; larger ones are subsampled first. A hint need not be
sharper: the network reads fine detail in the given view."""
MOST_TEXELS = 256
"""Largest side of a UV map, in the same way."""
CHANNELS = 4
"""Channels of a hint: colour, closeness."""

Hint = Float32[np.ndarray, "*shape 4"]
"""sRGB in [0, 1] and closeness in [0, 1], which is 0 where no surface or no given view is."""


def view_hint(
    rgb: Float32[np.ndarray, "views h w 3"], views: Surface, given: Sequence[int], uv: Surface | None
) -> tuple[Float32[np.ndarray, "views h w 4"], Float32[np.ndarray, "uv_h uv_w 4"] | None]:
    """Make the hints of one mesh for its views and its UV map.

    Args:
        rgb: the given views, sRGB over black in [0, 1]; the others are ignored
        views: geometry of all views
        given: numbers of the given views; none: there is no hint, all is 0
        uv: geometry of the UV map in image orientation (row 0 is v = 1), as its hint will be
    """
    step = -(-rgb.shape[1] // MOST_PIXELS)
    small = subsampled(views, step)
    places = list(given)
    known = Surface(position=small.position[places], normal=small.normal[places])
    if not known.mask.any():
        empty = None if uv is None else np.zeros((*uv.mask.shape, CHANNELS), np.float32)
        return np.zeros((*rgb.shape[:3], CHANNELS), np.float32), empty
    colors = VisibleColors(known, rgb[places, step // 2 :: step, step // 2 :: step])
    mv = _enlarged(_hint(colors, small), rgb.shape[1:3])
    if uv is None:
        return mv, None
    step = -(-len(uv.position) // MOST_TEXELS)
    small = subsampled(uv, step)
    hint = _hint(colors, small)
    # as the map's own colours, the hint's go on beyond what faces cover
    hint[..., :3] = dilate(np.ascontiguousarray(hint[..., :3]), small.mask)
    return mv, _enlarged(hint[None], uv.position.shape[:2])[0]


def subsampled(surface: Surface, step: int) -> Surface:
    """Keep the middle pixel of every `step` by `step` of them."""
    rows = columns = slice(step // 2, None, step)
    return Surface(position=surface.position[..., rows, columns, :], normal=surface.normal[..., rows, columns, :])


def _hint(colors: VisibleColors, surface: Surface) -> Hint:
    rgb, distance = colors.nearest(surface, workers=torch.get_num_threads())  # 1 in a process that reads data
    return np.concatenate([rgb, np.exp(-distance / REACH)[..., None]], axis=-1)


def _enlarged(
    images: Float32[np.ndarray, "n small_h small_w 4"], size: tuple[int, ...]
) -> Float32[np.ndarray, "n h w 4"]:
    if images.shape[1:3] == size:
        return images
    planes = F.interpolate(torch.from_numpy(images).permute(0, 3, 1, 2), size=size, mode="bilinear")
    return planes.permute(0, 2, 3, 1).contiguous().numpy()
