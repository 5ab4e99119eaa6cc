"""What a training step works on: images, then latents; and the way from a stored sample to them.

Shards and `UvMaps` are in image orientation (row 0 is v = 1); the model's UV maps have row 0 at v = 0. `uv_to_model`
and `uv_to_image` are the one place where that changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import numpy as np
import torch
from einops import reduce
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from geometry.nearest import Surface
from schemas.errors import UserError
from schemas.sample import Regime, TextureSample, UvMaps, Views
from training.diffusion.encoders import LatentCodec
from training.diffusion.view_hint import encode_hint, view_hint


@dataclass(frozen=True, slots=True, kw_only=True)
class Maps:
    """Images of one branch, float32, row 0 first as the model sees it; geometry is 0 where no face is."""

    rgb: Float[Tensor, "*batch frames h w 3"]
    """sRGB, [0, 1]."""
    position: Float[Tensor, "*batch frames h w 3"]
    """Dataset frame, [-1, 1]."""
    normal: Float[Tensor, "*batch frames h w 3"]
    hint: Float[Tensor, "*batch frames h w 4"] | None = None
    """Carried colour and closeness (`training.diffusion.view_hint`), for models that take it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "Maps":
        """Apply a function to each image."""
        return Maps(
            rgb=function(self.rgb),
            position=function(self.position),
            normal=function(self.normal),
            hint=None if self.hint is None else function(self.hint),
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
    points: Float[Tensor, "batch 4 frames h w"] | None = None
    """Mean position of the surface under each latent pixel, and the share of it that is covered; None where latents
    were stored without."""
    hint: Float[Tensor, "batch 17 frames h w"] | None = None
    """Of the view hint, for models that take it."""

    def map(self, function: Callable[[Tensor], Tensor]) -> "BranchLatents":
        """Apply a function to each tensor."""
        return BranchLatents(
            rgb=function(self.rgb),
            geometry=function(self.geometry),
            points=None if self.points is None else function(self.points),
            hint=None if self.hint is None else function(self.hint),
        )

    def conditions(self, extras: "Extras") -> Float[Tensor, "batch channels frames h w"]:
        """Join what a model gets beside the noisy colour: geometry, and what else it takes."""
        parts = [self.geometry]
        for wanted, part, name in (
            (extras.view_hint, self.hint, "hint"),
            (extras.position_rope, self.points, "points"),
        ):
            if wanted and part is None:
                raise ValueError(f"the model takes {name}, the batch has none")
            parts += [part] if wanted and part is not None else []
        return torch.cat(parts, dim=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Extras:
    """Inputs that a model takes beyond those of the released one."""

    view_hint: bool = False
    position_rope: bool = False

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Extras":
        """Read them from the configuration of a `SeqTexTransformer3DModel`."""
        return cls(view_hint=config["view_hint"], position_rope=config["position_rope"])


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
        condition = None if self.condition is None else self.condition.to(device)
        uv = self.uv.map(lambda x: x.to(device)) if self.uv else None
        return replace(self, mv=self.mv.map(lambda x: x.to(device)), uv=uv, condition=condition)

    def given(self, condition: Bool[Tensor, "batch views"]) -> "LatentBatch":
        """With the condition images in the place of the views that are given."""
        if self.condition is None:
            return self
        rgb = torch.where(condition[:, None, :, None, None], self.condition, self.mv.rgb)
        return replace(self, mv=replace(self.mv, rgb=rgb))


def uv_to_model(image: np.ndarray) -> Float[Tensor, "1 h w c"]:
    """A UV map in image orientation as one frame of the model's: float32, row 0 at v = 0."""
    return stack([image], upside_down=True)


def uv_to_image(rgb: Float[Tensor, "1 h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The inverse of `uv_to_model` for colours in [0, 1]."""
    return to_uint8(rgb)[0, ::-1].copy()


def to_uint8(rgb: Float[Tensor, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    return (rgb.detach().float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def stack(images: Sequence[np.ndarray], upside_down: bool = False) -> Float[Tensor, "..."]:
    """Float32; bytes become [0, 1]. Converted, turned and put in their place in one pass."""
    stacked = np.empty((len(images), *images[0].shape), np.float32)  # in huge pages, unlike torch's own: a fifth faster
    for target, image in zip(stacked, images, strict=True):
        turned = image[::-1] if upside_down else image
        if image.dtype == np.uint8:
            np.divide(turned, np.float32(255), out=target)
        else:
            target[...] = turned
    return torch.from_numpy(stacked)


def views_to_model(views: Sequence[Views]) -> Maps:
    """[B, V, h, w, C]."""
    return Maps(
        rgb=stack([each.rgb for each in views]),
        position=stack([each.position for each in views]),
        normal=stack([each.normal for each in views]),
    )


def uv_maps_to_model(maps: Sequence[UvMaps]) -> Maps:
    """[B, 1, H, W, C]. Colour keeps its dilation beyond what faces cover: the loss is that of whole latents (paper), of
    8 x 8 texels each."""
    return Maps(
        rgb=stack([each.rgb for each in maps], upside_down=True)[:, None],
        position=stack([each.position for each in maps], upside_down=True)[:, None],
        normal=stack([each.normal for each in maps], upside_down=True)[:, None],
    )


Condition = UInt8[np.ndarray, "views height width 3"]
"""The views of a sample as they enter where they are given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A sample and what goes with it into a batch."""

    sample: TextureSample
    condition: Condition | None = None
    given: tuple[int, ...] | None = None
    """Views whose colours its view hint carries; None: it gets none."""


def to_model(sample: TextureSample, condition: Condition | None = None, given: tuple[int, ...] | None = None) -> Batch:
    """One sample as a batch of one."""
    return stack_samples([Prepared(sample=sample, condition=condition, given=given)])


def stack_samples(parts: Sequence[Prepared], datasets: Sequence[str] = ()) -> Batch:
    """Samples of one regime as a batch. Either all have condition images or none, and so with view hints.

    datasets: that of each sample, for the message.

    Raises:
        UserError: their images differ in size.
    """
    samples = [part.sample for part in parts]
    uids = tuple(sample.uid for sample in samples)
    check_alike(uids, [(s.views.mask.shape, s.uv.mask.shape if s.uv else ()) for s in samples], datasets)
    conditions = [part.condition for part in parts if part.condition is not None]
    maps = [sample.uv for sample in samples if sample.uv]
    mv, uv = views_to_model([sample.views for sample in samples]), uv_maps_to_model(maps) if maps else None
    hints = [hint_of(part) for part in parts if part.given is not None]
    if hints:
        mv = replace(mv, hint=stack([of_views for of_views, _ in hints]))
        of_maps = [of_map for _, of_map in hints if of_map is not None]
        uv = replace(uv, hint=stack(of_maps, upside_down=True)[:, None]) if uv else None
    return Batch(
        mv=mv,
        uv=uv,
        regime=samples[0].regime,
        uids=uids,
        captions=tuple(str(sample.meta.get("caption", "")) for sample in samples),
        condition=stack(conditions) if conditions else None,
    )


def hint_of(part: Prepared) -> tuple[np.ndarray, np.ndarray | None]:
    """Make the hints of a sample's views [V, h, w, 4] and UV map [H, W, 4], in image orientation."""
    assert part.given is not None
    views, uv = part.sample.views, part.sample.uv
    colors = views.rgb if part.condition is None else part.condition
    return view_hint(
        colors.astype(np.float32) / 255,
        Surface(position=views.position, normal=views.normal),
        part.given,
        Surface(position=uv.position, normal=uv.normal) if uv else None,
    )


def check_alike(uids: Sequence[str], sizes: Sequence[tuple[tuple[int, ...], ...]], datasets: Sequence[str]) -> None:
    """Raises UserError where samples differ in size."""
    if len(set(sizes)) > 1:
        places = f" (of {', '.join(sorted(set(datasets)))})" if datasets else ""
        raise UserError(
            f"samples {', '.join(uids)}{places} differ in views or resolution: {sorted(set(sizes), key=str)}; "
            "build the dataset with one resolution and one camera rig"
        )


def encode_geometry(
    position: Float[Tensor, "batch frames h w 3"], normal: Float[Tensor, "batch frames h w 3"], codec: LatentCodec
) -> Float[Tensor, "batch 32 frames lat_h lat_w"]:
    """Latents of position and normal, both mapped from [-1, 1] to [0, 1] first."""
    return torch.cat([codec.encode((position + 1) / 2), codec.encode((normal + 1) / 2)], dim=1)


def encode_branch(maps: Maps, codec: LatentCodec) -> BranchLatents:
    return BranchLatents(
        rgb=codec.encode(maps.rgb),
        geometry=encode_geometry(maps.position, maps.normal, codec),
        points=surface_points(maps.position, maps.normal, codec.downscale),
        hint=None if maps.hint is None else encode_hint(maps.hint, codec),
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
    """Several batches of one regime as one. datasets, errors: as of `stack_samples`."""
    first = parts[0]
    check_alike([uid for part in parts for uid in part.uids], [_sizes(part) for part in parts], datasets)
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
    """Field by field; of one class. What one of them lacks, all lack."""
    names = [f.name for f in fields(branches[0]) if getattr(branches[0], f.name) is not None]
    return type(branches[0])(**{name: torch.cat([getattr(branch, name) for branch in branches]) for name in names})
