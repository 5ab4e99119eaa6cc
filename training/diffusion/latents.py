"""Images of one branch (views or UV map) as the model sees them, and their latents.

Shards and `UvMaps` are in image orientation (row 0 is v = 1); the model's UV maps have row 0 at v = 0. `stack` and
`uv_to_image` are the one place where that changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int16, UInt8
from torch import Tensor

from training.diffusion.encoders import LatentCodec
from training.diffusion.view_hint import encode_hint


@dataclass(slots=True, kw_only=True)
class Maps:
    """Images of one branch, float32, or as they travel (`training.data.batch.widened`); geometry is 0 where no face
    is."""

    rgb: Float[Tensor, "*batch frames h w 3"] | UInt8[Tensor, "*batch frames h w 3"]
    """sRGB, [0, 1]; bytes on the way."""
    position: Float[Tensor, "*batch frames h w 3"] | Int16[Tensor, "*batch frames h w 3"]
    """Dataset frame, [-1, 1]; in steps of `schemas.images.POSITION_STEPS` on the way."""
    normal: Float[Tensor, "*batch frames h w 3"]
    hint: Float[Tensor, "*batch frames h w 4"] | None = None
    """Projected colour and closeness (`training.diffusion.view_hint`), for models that take it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Inputs that a model takes beyond those of the released one."""

    view_hint: bool = False
    position_rope: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Extras":
        """Read them from the configuration of a `SeqTexTransformer3DModel`."""
        return cls(view_hint=config["view_hint"], position_rope=config["position_rope"])


@dataclass(slots=True, kw_only=True)
class BranchLatents:
    """Normalised latents of one branch."""

    rgb: Float[Tensor, "batch z frames h w"]
    geometry: Float[Tensor, "batch 2*z frames h w"]
    """Position, then normal."""
    points: Float[Tensor, "batch 4 frames h w"] | None = None
    """Mean position of the surface under each latent pixel, and the share of the pixel that is covered; None for
    latents that were stored without."""
    hint: Float[Tensor, "batch z+1 frames h w"] | None = None
    """Latents of the view hint, for models that take it."""

    def conditions(self, extras: Extras) -> Float[Tensor, "batch channels frames h w"]:
        """Join what a model gets beside the noisy colour: geometry, and the extras that it takes."""
        parts = [self.geometry]
        wanted = {"hint": (extras.view_hint, self.hint), "points": (extras.position_rope, self.points)}
        for name, (is_wanted, part) in wanted.items():
            if is_wanted and part is None:
                raise ValueError(f"the model takes {name}, the batch has none")
            parts += [part] if is_wanted and part is not None else []
        return torch.cat(parts, dim=1)

    def without_hint(self, dropped: Bool[Tensor, " batch"]) -> "BranchLatents":
        """Make the view hint of these samples zero, as where no view is given."""
        hint = None if self.hint is None else self.hint.masked_fill(dropped[:, None, None, None, None], 0)
        return replace(self, hint=hint)


Branch = TypeVar("Branch", Maps, BranchLatents)


def map_tensors(branch: Branch, function: Callable[[Tensor], Tensor]) -> Branch:
    """Apply a function to each tensor of a branch."""
    tensors = {f.name: getattr(branch, f.name) for f in fields(branch)}
    return replace(branch, **{name: function(tensor) for name, tensor in tensors.items() if tensor is not None})


def concatenate(branches: Sequence[Branch]) -> Branch:
    """Join branches along the batch; a tensor that the first one lacks is absent from all."""
    names = [f.name for f in fields(branches[0]) if getattr(branches[0], f.name) is not None]
    return replace(branches[0], **{name: torch.cat([getattr(branch, name) for branch in branches]) for name in names})


def encode_branch(
    rgb: Float[Tensor, "batch z frames lat_h lat_w"] | None,
    position: Float[Tensor, "batch frames h w 3"],
    normal: Float[Tensor, "batch frames h w 3"],
    hint: Float[Tensor, "batch frames h w 4"] | None,
    codec: LatentCodec,
) -> BranchLatents:
    """Encode the geometry and the hint of a branch. rgb: latents of its colours; None: zeros."""
    # geometry enters the codec mapped from [-1, 1] to [0, 1]
    geometry = torch.cat([codec.encode((position + 1) / 2), codec.encode((normal + 1) / 2)], dim=1)
    return BranchLatents(
        rgb=torch.zeros_like(geometry[:, : codec.channels]) if rgb is None else rgb,
        geometry=geometry,
        points=surface_points(position, normal, codec.downscale),
        hint=None if hint is None else encode_hint(hint, codec),
    )


def surface_points(
    position: Float[Tensor, "batch frames h w 3"], normal: Float[Tensor, "batch frames h w 3"], cell: int
) -> Float[Tensor, "batch 4 frames lat_h lat_w"]:
    """Average the positions of each cell of pixels over what faces cover, and add the covered share of the cell."""
    covered = (normal != 0).any(dim=-1, keepdim=True).to(position)
    sums = reduce(
        torch.cat([position * covered, covered], dim=-1), "b f (h p) (w q) c -> b c f h w", "mean", p=cell, q=cell
    )
    return torch.cat([sums[:, :3] / sums[:, 3:].clamp(min=1e-6), sums[:, 3:]], dim=1)


def stack(images: Sequence[np.ndarray], upside_down: bool = False) -> Float[Tensor, "..."]:
    """Stack images as float32 in one pass; bytes become [0, 1]. upside_down: flip the rows, for UV maps."""
    stacked = np.empty((len(images), *images[0].shape), np.float32)  # in huge pages, unlike torch's own: a fifth faster
    for target, image in zip(stacked, images, strict=True):
        rows = image[::-1] if upside_down else image
        if image.dtype == np.uint8:
            np.divide(rows, np.float32(255), out=target)
        else:
            target[...] = rows
    return torch.from_numpy(stacked)


def uv_to_model(image: np.ndarray) -> Float[Tensor, "1 h w c"]:
    """Turn a UV map in image orientation into one frame for the model: float32, row 0 at v = 0."""
    return stack([image], upside_down=True)


def uv_to_image(rgb: Float[Tensor, "1 h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """Turn a generated UV map, colours in [0, 1], back into image orientation."""
    return to_uint8(rgb)[0, ::-1].copy()


def to_uint8(rgb: Float[Tensor, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Round colours in [0, 1] to bytes."""
    return (rgb.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
