"""Images of one branch (views or UV map) as the model sees them, and their latents.

Shards and `UvMaps` are in image orientation (row 0 is v = 1); the model's UV maps have row 0 at v = 0. `stack` and
`uv_to_image` are the one place where that changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, Int16, UInt8
from torch import Tensor

from schemas.errors import UserError
from training.conditions.images import HINT, IMAGES, find_image
from training.diffusion.encoders import LatentCodec
from training.maps import RELEASED_MAPS, check_maps


@dataclass(slots=True, kw_only=True)
class Maps:
    """Images of one branch, float32, or as they travel (`training.data.batch.widened`); geometry is 0 where no face
    is."""

    rgb: Float[Tensor, "*batch images h w 3"] | UInt8[Tensor, "*batch images h w 3"]
    """sRGB, [0, 1]; bytes on the way. Of a UV map the images of all generated maps (`training.maps`), which
    share the rest."""
    position: Float[Tensor, "*batch frames h w 3"] | Int16[Tensor, "*batch frames h w 3"]
    """Dataset frame, [-1, 1]; in steps of `schemas.images.POSITION_STEPS` on the way."""
    normal: Float[Tensor, "*batch frames h w 3"]
    conditions: dict[str, Float[Tensor, "*batch frames h w _"]] = field(default_factory=dict)
    """Pixels of condition images (`training.conditions.images`) by name, those that the model takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Extensions:
    """Inputs and generated maps that a model has beyond those of the released one."""

    images: tuple[str, ...] = ()
    """Names of condition images, in the order of their channels."""
    position_rope: bool = False
    maps: tuple[str, ...] = RELEASED_MAPS
    """Names of the maps that the UV branch generates, in the order of its frames."""

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Extensions":
        """Read them from the configuration of a `SeqTexTransformer3DModel`. Raises UsageError if its weights take a
        condition image that is not registered, or generate a map that is not known."""
        names = (HINT.name,) * config["view_hint"] + tuple(config["condition_channels"] or ())
        return cls(
            images=tuple(find_image(name).name for name in names),
            position_rope=config["position_rope"],
            maps=check_maps(config["maps"] or RELEASED_MAPS),
        )

    @property
    def follow_views(self) -> bool:
        """Return whether the given views must be known before a batch is made."""
        return any(find_image(name).follows_views for name in self.images)


@dataclass(slots=True, kw_only=True)
class BranchLatents:
    """Normalised latents of one branch."""

    rgb: Float[Tensor, "batch z images h w"]
    """Latents of the images: for a UV map a frame for each generated map; what follows has one for all of them."""
    geometry: Float[Tensor, "batch 2*z frames h w"]
    """Position, then normal."""
    points: Float[Tensor, "batch 4 frames h w"] | None = None
    """Mean position of the surface under each latent pixel, and the share of the pixel that is covered; None for
    latents that were stored without."""
    conditions: dict[str, Float[Tensor, "batch _ frames h w"]] = field(default_factory=dict)
    """Latents of condition images by name, those that the model takes."""

    def beside(self, extras: Extensions) -> Float[Tensor, "batch channels images h w"]:
        """Join what a model gets beside the noisy images: geometry, and the extras that it takes.
        Raises UserError where the batch lacks one."""
        names = [name for name in extras.images if find_image(name).place == "beside"]
        wanted = {name: self.conditions.get(name) for name in names}
        wanted |= {"points": self.points} if extras.position_rope else {}
        parts = [self.geometry]
        for name, part in wanted.items():
            if part is None:
                raise UserError(
                    f"the model takes {name}, the batch has none: give a trainer the TextureDataModule itself, not its "
                    "loader; without a trainer, call its `follow` first"
                )
            parts.append(part)
        return torch.cat(parts, dim=1).expand(-1, -1, self.rgb.shape[2], -1, -1)

    def without(self, dropped: Mapping[str, Bool[Tensor, " batch"]]) -> "BranchLatents":
        """Make condition images, by name, of these samples zero, as where they have none."""
        kept = {
            name: latents.masked_fill(dropped[name][:, None, None, None, None], 0) if name in dropped else latents
            for name, latents in self.conditions.items()
        }
        return replace(self, conditions=kept)

    def given(self, condition: Bool[Tensor, "batch frames"]) -> "BranchLatents":
        """Replace the colours of the frames that are given by condition images of that place, if there are any."""
        rgb = self.rgb
        for name, latents in self.conditions.items():
            if IMAGES[name].place == "given views":
                rgb = torch.where(condition[:, None, :, None, None], latents, rgb)
        return replace(self, rgb=rgb)


AnyBranch = TypeVar("AnyBranch", Maps, BranchLatents)


def map_tensors(branch: AnyBranch, function: Callable[[Tensor], Tensor]) -> AnyBranch:
    """Apply a function to each tensor of a branch."""
    tensors = {f.name: getattr(branch, f.name) for f in fields(branch) if f.name != "conditions"}
    conditions = {name: function(tensor) for name, tensor in branch.conditions.items()}
    mapped = {name: function(tensor) for name, tensor in tensors.items() if tensor is not None}
    return replace(branch, conditions=conditions, **mapped)


def concatenate(branches: Sequence[AnyBranch]) -> AnyBranch:
    """Join branches along the batch; a tensor that the first one lacks is absent from all."""
    first = branches[0]
    names = [f.name for f in fields(first) if f.name != "conditions" and getattr(first, f.name) is not None]
    joined = {name: torch.cat([getattr(branch, name) for branch in branches]) for name in names}
    conditions = {name: torch.cat([branch.conditions[name] for branch in branches]) for name in first.conditions}
    return replace(first, conditions=conditions, **joined)


def encode_branch(
    rgb: Float[Tensor, "batch z images lat_h lat_w"] | None,
    position: Float[Tensor, "batch frames h w 3"],
    normal: Float[Tensor, "batch frames h w 3"],
    conditions: Mapping[str, Float[Tensor, "batch frames h w _"]],
    codec: LatentCodec,
    images: int = 1,
) -> BranchLatents:
    """Encode the geometry and the condition images of a branch. rgb: latents of its images; None: zeros, of `images` of
    them for each frame of geometry."""
    # geometry enters the codec mapped from [-1, 1] to [0, 1]
    geometry = torch.cat([codec.encode((position + 1) / 2), codec.encode((normal + 1) / 2)], dim=1)
    return BranchLatents(
        rgb=torch.zeros_like(geometry[:, : codec.channels]).repeat(1, 1, images, 1, 1) if rgb is None else rgb,
        geometry=geometry,
        points=surface_points(position, normal, codec.downscale),
        conditions={name: find_image(name).encode(pixels, codec) for name, pixels in conditions.items()},
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
