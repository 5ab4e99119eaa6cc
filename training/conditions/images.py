"""Condition images: pictures that a model gets beside the noisy colours of views and UV map, or in place of the given
views. `register` adds one; the model's input, batches, latents, dropout and sampler follow from its entry."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor

from geometry.nearest import Surface
from schemas.errors import UsageError
from schemas.sample import TextureSample
from training.conditions.view_hint import CHANNELS, view_hint

Pixels = tuple[Float32[np.ndarray, "views h w c"] | None, Float32[np.ndarray, "uv_h uv_w c"] | None]
"""A condition image for the views and for the UV map in image orientation, in [0, 1]; None: all zero."""


@runtime_checkable
class ImageCodec(Protocol):
    """The part of a `LatentCodec` that encodes colours."""

    @property
    def downscale(self) -> int:
        """Return the pixels a side of one latent pixel."""
        ...

    def encode(self, images: Float[Tensor, "b f h w 3"]) -> Float[Tensor, "b z f lat_h lat_w"]:
        """Return the latents of images in [0, 1]."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One mesh as condition images are made from it, in training and sampling alike."""

    views: Surface
    """Surface that each view shows [views, h, w, 3]."""
    uv: Surface | None
    """The UV map [uv_h, uv_w, 3], image orientation; None: there is none."""
    colors: Float32[np.ndarray, "views h w 3"]
    """The given views as they enter, sRGB over black in [0, 1]. Others must not be read: they are to be generated."""
    given: tuple[int, ...]
    """Numbers of the given views."""
    sample: TextureSample | None = None
    """The stored sample, in training and validation; None: the mesh is a user's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionImage:
    """One kind of condition image. An image that is zero everywhere counts as absent: its latents are zero."""

    name: str
    """A Python identifier: `model.condition_images` and fields of latent shards have it."""
    channels: int
    """Channels of its pixels. The first three of three or more are colours for the codec; each other one is averaged
    over a latent pixel."""
    pixels: Callable[[Scene], Pixels | None]
    """Makes it; None: this mesh has none."""
    place: Literal["beside", "given views"] = "beside"
    """`beside`: channels of their own beside the noisy colours of every frame. `given views`: its colours take the
    place of those of the views that are given, which stay what is generated elsewhere."""
    follows_views: bool = False
    """It is made of the given views: absent where none is given, and dropped with them (`flow.image_dropout`)."""
    dropout: float = 0.0
    """Share of samples that are trained without it; `follows_views` has the views' instead."""

    def latent_channels(self, codec_channels: int) -> int:
        """Return how many channels it adds to the model's input."""
        if self.place == "given views":
            return 0
        return self.channels if self.channels < 3 else codec_channels + self.channels - 3

    def encode(
        self, pixels: Float[Tensor, "batch frames h w c"], codec: ImageCodec
    ) -> Float[Tensor, "batch z frames lat_h lat_w"]:
        """Encode its pixels; zeros for a sample that has none."""
        colors = 3 if self.channels >= 3 else 0
        parts = [codec.encode(pixels[..., :3])] if colors else []
        shares = [F.avg_pool2d(pixels[..., nth], codec.downscale)[:, None] for nth in range(colors, self.channels)]
        latents = torch.cat(parts + shares, dim=1)
        if self.place == "given views":  # a black picture is a picture
            return latents
        return latents * (pixels != 0).flatten(1).any(dim=1)[:, None, None, None, None]

    def draw(self, scene: Scene, made: Pixels | None = None) -> Pixels:
        """Make its pixels of all images of a scene, zeros where it has none. made: them, where they need not be made.

        Raises:
            ValueError: they do not have its channels and the sizes of the scene.
        """
        found = made or self.pixels(scene) or (None, None)
        uv = None if self.place == "given views" else scene.uv
        return self._checked(found[0], scene.views), self._checked(found[1], uv)

    def _checked(self, pixels: np.ndarray | None, surface: Surface | None) -> Float32[np.ndarray, "*shape c"] | None:
        if surface is None:
            return None
        shape = (*surface.position.shape[:-1], self.channels)
        if pixels is None:
            return np.zeros(shape, np.float32)
        if pixels.shape != shape:
            raise ValueError(f"condition image {self.name!r} has pixels {pixels.shape}, the scene takes {shape}")
        return pixels.astype(np.float32, copy=False)


IMAGES: dict[str, ConditionImage] = {}
"""Condition images by name; `register` adds more."""


def register(image: ConditionImage) -> ConditionImage:
    """Add a condition image, which `model.condition_images` then takes by its name. Raises ValueError if there is one
    of that name or it is no identifier, or its channels or dropout cannot be."""
    if image.name in IMAGES or not image.name.isidentifier():
        raise ValueError(f"{image.name!r} is taken or no identifier; give the condition image another name")
    if image.channels < 1 or not 0 <= image.dropout <= 1 or (image.place == "given views" and image.channels != 3):
        raise ValueError(f"condition image {image.name!r} has {image.channels} channels and dropout {image.dropout}")
    IMAGES[image.name] = image
    return image


def find_image(name: str) -> ConditionImage:
    """Return the condition image of a name. Raises UsageError if there is none."""
    if name not in IMAGES:
        raise UsageError(
            f"{name!r} is no condition image; there are {', '.join(IMAGES)}: register it "
            "(training.conditions.images) before the configuration or the weights name it"
        )
    return IMAGES[name]


HINT = register(
    ConditionImage(
        name="hint",
        channels=CHANNELS,
        pixels=lambda scene: view_hint(scene.colors, scene.views, scene.given, scene.uv),
        follows_views=True,
    )
)
"""The view hint, which `model.view_hint` switches on."""
GIVEN_VIEW = register(
    ConditionImage(name="given_view", channels=3, pixels=lambda scene: (scene.colors, None), place="given views")
)
"""The given views as `data.augment` makes them: lit, over another background, compressed. It switches this on."""


def _surface_mask(scene: Scene) -> Pixels:
    """1 where a face covers a pixel, 0 elsewhere."""
    views, uv = (None if each is None else each.mask[..., None].astype(np.float32) for each in (scene.views, scene.uv))
    return views, uv


MASK = register(ConditionImage(name="mask", channels=1, pixels=_surface_mask))
"""The covered share of each latent pixel."""
