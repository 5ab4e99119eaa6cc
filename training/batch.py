"""What a training step works on: images, then latents; and the way from a stored sample to them.

Shards and `UvMaps` are in image orientation (row 0 is v = 1); the model's UV maps have row 0 at v = 0. `uv_to_model`
and `uv_to_image` are the one place where that changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from schemas.errors import UserError
from schemas.sample import Regime, TextureSample, UvMaps, Views
from training.latents import LatentCodec


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """Images of one branch, float32, row 0 first as the model sees it; 0 outside the mask."""

    rgb: Float[Tensor, "*batch frames h w 3"]
    """sRGB, [0, 1]."""
    position: Float[Tensor, "*batch frames h w 3"]
    """Dataset frame, [-1, 1]."""
    normal: Float[Tensor, "*batch frames h w 3"]
    mask: Float[Tensor, "*batch frames h w 1"]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Maps":
        return Maps(
            rgb=function(self.rgb),
            position=function(self.position),
            normal=function(self.normal),
            mask=function(self.mask),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Samples of one regime."""

    mv: Maps
    """[B, V, h, w, C]"""
    uv: Maps | None
    """[B, 1, H, W, C], row 0 at v = 0; None in the multi-view-only regime."""
    regime: Regime
    uids: tuple[str, ...]
    captions: tuple[str, ...]
    number: int = 0
    """Of the global batch in the stream."""
    samples: tuple[int, ...] = ()
    """Numbers of these samples in the stream: the seeds of their noise."""
    condition: Float[Tensor, "batch views h w 3"] | None = None
    """Each view as it enters where it is given; None: as it is."""
    passed_over: tuple[str, ...] = ()
    """Shards that could not be read; other samples stand in for theirs."""

    def to(self, device: torch.device) -> "Batch":
        uv = self.uv.map(lambda x: x.to(device)) if self.uv else None
        condition = None if self.condition is None else self.condition.to(device)
        return replace(self, mv=self.mv.map(lambda x: x.to(device)), uv=uv, condition=condition)


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchLatents:
    """Normalised latents of one branch."""

    rgb: Float[Tensor, "batch 16 frames h w"]
    geometry: Float[Tensor, "batch 32 frames h w"]
    """Position, then normal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextFeatures:
    """What a text encoder made of captions, without the zeros behind each."""

    captions: tuple[Float[Tensor, "_ dim"], ...]
    empty: Float[Tensor, "_ dim"]
    """Of the empty prompt."""
    length: int
    """Tokens that the model gets."""

    def tokens(self, kept: Sequence[bool]) -> Float[Tensor, "batch length dim"]:
        """Padded with zeros; where a caption is not kept, the empty prompt takes its place."""
        rows = [own if keep else self.empty for own, keep in zip(self.captions, kept, strict=True)]
        padded = torch.zeros(len(rows), self.length, self.empty.shape[1])
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)] = row
        return padded


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentBatch:
    """A `Batch` after the codec."""

    mv: BranchLatents
    uv: BranchLatents | None
    regime: Regime
    uids: tuple[str, ...]
    captions: tuple[str, ...]
    number: int = 0
    samples: tuple[int, ...] = ()
    condition: Float[Tensor, "batch 16 views h w"] | None = None
    passed_over: tuple[str, ...] = ()
    text: TextFeatures | None = None
    """Of the captions, where they were encoded beforehand."""

    def to(self, device: torch.device) -> "LatentBatch":
        def move(branch: BranchLatents) -> BranchLatents:
            return BranchLatents(rgb=branch.rgb.to(device), geometry=branch.geometry.to(device))

        condition = None if self.condition is None else self.condition.to(device)
        return replace(self, mv=move(self.mv), uv=move(self.uv) if self.uv else None, condition=condition)

    def given(self, condition: Bool[Tensor, "batch views"]) -> "LatentBatch":
        """With the condition images in the place of the views that are given."""
        if self.condition is None:
            return self
        rgb = torch.where(condition[:, None, :, None, None], self.condition, self.mv.rgb)
        return replace(self, mv=replace(self.mv, rgb=rgb))


def uv_to_model(image: np.ndarray) -> Float[Tensor, "1 h w c"]:
    """A UV map in image orientation as one frame of the model's: float32, row 0 at v = 0."""
    return _float(image[::-1])[None]


def uv_to_image(rgb: Float[Tensor, "1 h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The inverse of `uv_to_model` for colours in [0, 1]."""
    return to_uint8(rgb)[0, ::-1].copy()


def to_uint8(rgb: Float[Tensor, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    return (rgb.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _float(array: np.ndarray) -> Tensor:
    """Float32; bytes become [0, 1]."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.float().div_(255) if tensor.dtype == torch.uint8 else tensor.float()


def views_to_model(views: Views) -> Maps:
    """[V, h, w, C]."""
    return Maps(
        rgb=_float(views.rgb),
        position=_float(views.position),
        normal=_float(views.normal),
        mask=_float(views.mask)[..., None],
    )


def uv_maps_to_model(maps: UvMaps) -> Maps:
    """[1, H, W, C]. The colour keeps its dilation beyond the mask; what is cut out is no truth and leaves the mask."""
    mask = maps.mask if maps.opacity is None else maps.mask & (maps.opacity >= 128)
    return Maps(
        rgb=uv_to_model(maps.rgb),
        position=uv_to_model(maps.position),
        normal=uv_to_model(maps.normal),
        mask=uv_to_model(mask[..., None]),
    )


def to_model(sample: TextureSample, condition: UInt8[np.ndarray, "views h w 3"] | None = None) -> Batch:
    """One sample as a batch of one; `condition`: its views as they enter where they are given."""
    return Batch(
        mv=views_to_model(sample.views).map(lambda x: x[None]),
        uv=uv_maps_to_model(sample.uv).map(lambda x: x[None]) if sample.uv else None,
        regime=sample.regime,
        uids=(sample.uid,),
        captions=(str(sample.meta.get("caption", "")),),
        condition=None if condition is None else _float(condition)[None],
    )


def encode_geometry(
    position: Float[Tensor, "batch frames h w 3"], normal: Float[Tensor, "batch frames h w 3"], codec: LatentCodec
) -> Float[Tensor, "batch 32 frames lat_h lat_w"]:
    """Latents of position and normal, both mapped from [-1, 1] to [0, 1] first."""
    return torch.cat([codec.encode((position + 1) / 2), codec.encode((normal + 1) / 2)], dim=1)


def encode_branch(maps: Maps, codec: LatentCodec) -> BranchLatents:
    return BranchLatents(rgb=codec.encode(maps.rgb), geometry=encode_geometry(maps.position, maps.normal, codec))


@torch.no_grad()
def encode_batch(batch: Batch, codec: LatentCodec) -> LatentBatch:
    return LatentBatch(
        mv=encode_branch(batch.mv, codec),
        uv=encode_branch(batch.uv, codec) if batch.uv else None,
        regime=batch.regime,
        uids=batch.uids,
        captions=batch.captions,
        number=batch.number,
        samples=batch.samples,
        condition=None if batch.condition is None else codec.encode(batch.condition),
        passed_over=batch.passed_over,
    )


AnyBatch = TypeVar("AnyBatch", bound=Batch | LatentBatch)


def join(parts: Sequence[AnyBatch], datasets: Sequence[str] = ()) -> AnyBatch:
    """Several batches of one regime as one.

    datasets: that of each part, for the message.

    Raises:
        UserError: their images differ in size.
    """
    first = parts[0]
    if len(sizes := {_sizes(part) for part in parts}) > 1:
        places = f" (of {', '.join(sorted(set(datasets)))})" if datasets else ""
        raise UserError(
            f"samples {', '.join(uid for part in parts for uid in part.uids)}{places} differ in views or resolution: "
            f"{sorted(sizes, key=str)}; build the dataset with one resolution and one camera rig"
        )
    joined: dict[str, Any] = {
        "mv": _concatenate([part.mv for part in parts]),
        "uv": _concatenate([part.uv for part in parts]) if first.uv else None,
    }
    if first.condition is not None:
        joined["condition"] = torch.cat([part.condition for part in parts if part.condition is not None])
    if isinstance(first, LatentBatch) and first.text:
        captions = tuple(row for part in parts for row in part.text.captions)  # type: ignore[union-attr]
        joined["text"] = replace(first.text, captions=captions)
    for name in ("uids", "captions", "samples", "passed_over"):
        joined[name] = tuple(entry for part in parts for entry in getattr(part, name))
    return replace(first, **joined)


def _sizes(part: Batch | LatentBatch) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(part.mv.rgb.shape[1:]), tuple(part.uv.rgb.shape[1:]) if part.uv else ()


def _concatenate(branches: Sequence[Any]) -> Any:
    """Field by field; of one class."""
    names = [f.name for f in fields(branches[0])]
    return type(branches[0])(**{name: torch.cat([getattr(branch, name) for branch in branches]) for name in names})
