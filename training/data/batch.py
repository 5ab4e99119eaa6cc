"""Batches of a training step, as images and as latents, and the way from stored samples to them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Int16, UInt8
from torch import Tensor

from geometry.nearest import Surface
from schemas.errors import UserError
from schemas.images import POSITION_STEPS
from schemas.sample import Regime, TextureSample
from training.conditions.images import Pixels, Scene, find_image
from training.diffusion.encoders import LatentCodec
from training.diffusion.flow import CPU
from training.diffusion.latents import AnyBranch, BranchLatents, Maps, concatenate, encode_branch, map_tensors, stack
from training.maps import RELEASED_MAPS, packed

STEP = float(np.float32(1 / POSITION_STEPS))
"""One step of stored positions, as `schemas.images` reads them."""


@dataclass(slots=True, kw_only=True)
class TextFeatures:
    """Features of captions, without the zeros behind each."""

    captions: tuple[Float[Tensor, "_ dim"], ...]
    empty: Float[Tensor, "_ dim"]
    """Features of the empty prompt."""
    length: int
    """Tokens that the model gets."""

    def tokens(self, kept: Sequence[bool], device: torch.device = CPU) -> Float[Tensor, "batch length dim"]:
        """Pad them with zeros, on the device; the empty prompt replaces a caption that is not kept."""
        rows = [own if keep else self.empty for own, keep in zip(self.captions, kept, strict=True)]
        padded = torch.zeros(len(rows), self.length, self.empty.shape[1], device=device)
        for target, row in zip(padded, rows, strict=True):
            target[: len(row)].copy_(row, non_blocking=True)
        return padded


@dataclass(slots=True, kw_only=True)
class SampleBatch(Generic[AnyBranch]):
    """Samples of one regime, as images or as latents. (Not frozen: Lightning's `bf16-true` replaces the tensors.)"""

    mv: AnyBranch
    uv: AnyBranch | None
    """Row 0 at v = 0; None in the multi-view-only regime."""
    regime: Regime
    uids: tuple[str, ...]
    captions: tuple[str, ...]
    number: int = 0
    """Number of the global batch in the stream."""
    samples: tuple[int, ...] = ()
    """Numbers of these samples in the stream: the seeds of their noise."""
    global_size: int = 0
    """Samples of the global batch, over all ranks and accumulated batches; 0: these alone."""
    skipped: tuple[str, ...] = ()
    """Shards that cannot be read; other samples replace theirs."""

    def pin_memory(self) -> "SampleBatch[AnyBranch]":
        """Put the tensors where a GPU fetches them by itself; a data loader asks for it."""
        return mapped(self, Tensor.pin_memory)


@dataclass(slots=True, kw_only=True)
class Batch(SampleBatch[Maps]):
    """Images: views [B, V, h, w, C] and UV maps [B, 1, H, W, C], the colours [B, maps, H, W, 3]; on the way from the
    loader in narrow numbers."""


@dataclass(slots=True, kw_only=True)
class LatentBatch(SampleBatch[BranchLatents]):
    """A `Batch` after the codec."""

    text: TextFeatures | None = None
    """Features of the captions, if they were encoded beforehand."""

    def without_conditions(self) -> "LatentBatch":
        """Return the batch without its condition images."""
        uv = replace(self.uv, conditions={}) if self.uv else None
        return replace(self, mv=replace(self.mv, conditions={}), uv=uv)


BatchKind = TypeVar("BatchKind", bound=SampleBatch[Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A sample after augmentation, ready for a batch."""

    sample: TextureSample
    colors: UInt8[np.ndarray, "views height width 3"] | None = None
    """The views as they enter if they are given; None: unchanged."""
    given: tuple[int, ...] = ()
    """Numbers of the given views, for condition images that follow them."""
    images: tuple[str, ...] = ()
    """Names of its condition images."""
    maps: tuple[str, ...] = RELEASED_MAPS
    """Names of the UV maps that are generated."""

    def condition_images(self) -> dict[str, Pixels]:
        """Make its condition images of views [V, h, w, c] and UV map [H, W, c], in image orientation, by name."""
        if not self.images:
            return {}
        views, uv = self.sample.views, self.sample.uv
        colors = views.rgb if self.colors is None else self.colors
        scene = Scene(
            views=Surface(position=views.position, normal=views.normal),
            uv=Surface(position=uv.position, normal=uv.normal) if uv else None,
            colors=colors.astype(np.float32) / 255,
            given=self.given,
            sample=self.sample,
        )
        return {name: find_image(name).draw(scene) for name in self.images}


def to_model(
    sample: TextureSample,
    given: tuple[int, ...] = (),
    images: tuple[str, ...] = (),
    maps: tuple[str, ...] = RELEASED_MAPS,
    colors: UInt8[np.ndarray, "views height width 3"] | None = None,
) -> Batch:
    """Turn one sample into a batch of one, float32. given, images, maps, colors: see `Prepared`."""
    prepared = Prepared(sample=sample, colors=colors, given=given, images=images, maps=maps)
    return widened(stack_samples([prepared]))


def stack_conditions(made: Sequence[dict[str, Pixels]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stack the condition images of samples, which all have the same, for the views and for the UV map."""
    mv: dict[str, Tensor] = {}
    uv: dict[str, Tensor] = {}
    for name in made[0]:
        mv[name] = stack([views for each in made if (views := each[name][0]) is not None])
        if maps := [texels for each in made if (texels := each[name][1]) is not None]:
            uv[name] = stack(maps, upside_down=True)[:, None]
    return mv, uv


def stack_samples(parts: Sequence[Prepared], datasets: Sequence[str] = ()) -> Batch:
    """Stack samples of one regime into a batch. All have the same condition images and maps.
    Colours of UV maps keep their dilation beyond what faces cover: the loss is that of whole latents (paper), of 8 x 8
    texels each. Colours are bytes and positions steps, a third less to hand over, until `widened` makes them numbers.

    datasets: that of each sample, for the message.

    Raises:
        UserError: their images differ in size, or one has no materials that are to be generated.
    """
    samples = [part.sample for part in parts]
    uids = tuple(sample.uid for sample in samples)
    check_alike(uids, [(s.views.mask.shape, s.uv.mask.shape if s.uv else ()) for s in samples], datasets)
    maps = [sample.uv for sample in samples if sample.uv]
    views = [sample.views for sample in samples]
    texels = [image for sample in samples if sample.uv for image in packed(sample, parts[0].maps)]
    mv_conditions, uv_conditions = stack_conditions([part.condition_images() for part in parts])
    mv = Maps(
        rgb=stack_bytes([each.rgb for each in views]),
        position=stack_positions([each.position for each in views]),
        normal=stack([each.normal for each in views]),
        conditions=mv_conditions,
    )
    uv = Maps(
        rgb=stack_bytes([image[::-1] for image in texels]).unflatten(0, (len(maps), -1)),
        position=stack_positions([each.position[::-1] for each in maps])[:, None],
        normal=stack([each.normal for each in maps], upside_down=True)[:, None],
        conditions=uv_conditions,
    ) if maps else None  # fmt: skip
    return Batch(
        mv=mv,
        uv=uv,
        regime=samples[0].regime,
        uids=uids,
        captions=tuple(str(sample.meta.get("caption", "")) for sample in samples),
    )


def stack_bytes(images: Sequence[np.ndarray]) -> UInt8[Tensor, "..."]:
    """Stack images of bytes."""
    return torch.from_numpy(np.stack(images))


def stack_positions(images: Sequence[np.ndarray]) -> Int16[Tensor, "..."] | Float[Tensor, "..."]:
    """Stack positions as the steps that shards store, if they are such, else as they are."""
    steps = np.empty((len(images), *images[0].shape), np.int16)
    for target, image in zip(steps, images, strict=True):
        np.rint(image * np.float32(POSITION_STEPS), out=target, casting="unsafe")
        if not np.array_equal(target * np.float32(STEP), image):
            return stack(images)
    return torch.from_numpy(steps)


def mapped(batch: BatchKind, function: Callable[[Tensor], Tensor]) -> BatchKind:
    """Apply a function to each tensor of images or latents."""
    uv = map_tensors(batch.uv, function) if batch.uv else None
    return replace(batch, mv=map_tensors(batch.mv, function), uv=uv)


WIDER: dict[torch.dtype, Callable[[Tensor], Tensor]] = {
    torch.uint8: lambda colors: colors.float() / 255,
    torch.int16: lambda steps: steps.float() * STEP,
    torch.bfloat16: Tensor.float,
}


def widened(batch: BatchKind) -> BatchKind:
    """Make the numbers of a batch float32, where it lies: the same to the last bit as before they travelled."""
    return mapped(batch, lambda x: WIDER.get(x.dtype, lambda wide: wide)(x))


@torch.no_grad()
def encode_batch(batch: Batch, codec: LatentCodec, with_uv: bool = True) -> LatentBatch:
    """Encode the images of a batch. with_uv: the UV maps, too, if there are any."""
    batch = widened(batch)

    def encoded(maps: Maps) -> BranchLatents:
        return encode_branch(codec.encode(maps.rgb), maps.position, maps.normal, maps.conditions, codec)

    return LatentBatch(
        mv=encoded(batch.mv),
        uv=encoded(batch.uv) if batch.uv and with_uv else None,
        regime=batch.regime,
        uids=batch.uids,
        captions=batch.captions,
        number=batch.number,
        samples=batch.samples,
        global_size=batch.global_size,
        skipped=batch.skipped,
    )


def to_device(batch: BatchKind, device: torch.device) -> BatchKind:
    """Move all tensors of a batch to a device, without waiting for it, and make them float32 there."""
    return widened(mapped(batch, lambda x: x.to(device, non_blocking=True)))


def join(parts: Sequence[BatchKind], datasets: Sequence[str] = ()) -> BatchKind:
    """Join batches of one regime. datasets, errors: as of `stack_samples`."""
    first = parts[0]
    sizes = [(tuple(part.mv.rgb.shape[1:]), tuple(part.uv.rgb.shape[1:]) if part.uv else ()) for part in parts]
    check_alike([uid for part in parts for uid in part.uids], sizes, datasets)
    joined: dict[str, Any] = {
        name: tuple(entry for part in parts for entry in getattr(part, name))
        for name in ("uids", "captions", "samples", "skipped")
    }
    if isinstance(first, LatentBatch) and first.text:
        texts = [part.text for part in parts if isinstance(part, LatentBatch) and part.text]
        joined["text"] = replace(first.text, captions=tuple(row for text in texts for row in text.captions))
    uv = concatenate([part.uv for part in parts if part.uv]) if first.uv else None
    return replace(first, mv=concatenate([part.mv for part in parts]), uv=uv, **joined)


def check_alike(uids: Sequence[str], sizes: Sequence[tuple[tuple[int, ...], ...]], datasets: Sequence[str]) -> None:
    """Raise UserError if samples differ in size."""
    if len(set(sizes)) > 1:
        places = f" (of {', '.join(sorted(set(datasets)))})" if datasets else ""
        raise UserError(
            f"samples {', '.join(uids)}{places} differ in views or resolution: {sorted(set(sizes), key=str)}; "
            "build the dataset with one resolution and one camera rig"
        )
