"""The datasets of a mixture: what each can give, and that they fit together."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Generic, Protocol, runtime_checkable

from schemas.codec import LIT, decode
from schemas.dataset import ShardRecord, read_dataset_json, read_ledger
from schemas.errors import UserError
from schemas.sample import Regime, TextureSample
from training.data.dataset_files import REMEDY, DatasetFiles, LocalFiles, ShardError
from training.data.latent_shards import (
    LatentDecoder,
    LatentHeader,
    StoredLatents,
    codec_header,
    find_latents,
    read_empty_text,
)
from training.data.shard_reader import Sample, SampleOrder, ShardReader, SkipBudget
from training.diffusion.encoders import LatentCodec
from training.diffusion.tasks import MAX_VIEWS

log = logging.getLogger(__name__)


TOKEN = 16
"""Pixels a side of what becomes one token: 8 of the codec by 2 of the model's patch."""


@runtime_checkable
class SourceOptions(Protocol):
    """What of `training.data.datamodule.DataConfig` is needed here."""

    @property
    def weights(self) -> dict[str, float]: ...
    @property
    def window(self) -> int: ...
    @property
    def latents(self) -> bool: ...
    @property
    def draw_posterior(self) -> bool: ...
    @property
    def augment(self) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Generic[Sample]):
    """The samples of one regime of one dataset."""

    name: str
    """Where the dataset is."""
    weight: float
    order: SampleOrder
    reader: ShardReader[Sample]

    def places(self, position: int) -> Iterator[tuple[int, int]]:
        """Where the sample at a position is; then, for when it cannot be read, what stands in for it."""
        return chain((self.order(position),), self.order.replacements(position))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """Of the samples of a dataset."""

    views: int
    view_resolution: int
    """Pixels."""
    uv_resolution: int | None
    """Texels; None where no sample has a UV map."""


def shards_by_regime(directory: Path) -> dict[Regime, tuple[ShardRecord, ...]]:
    """The shards that the ledger vouches for, by name; regimes without a sample are left out.

    Raises:
        UserError: no dataset, a damaged ledger, or no sample in it.
    """
    read_dataset_json(directory)
    records = [shard for part in read_ledger(directory) for shard in part.shards if shard.count]
    if not records:
        raise UserError(f"{directory}: no finished shard with a sample in it; run `seqtex build` to its end first")
    groups = {regime: tuple(record for record in records if record.regime is regime) for regime in Regime}
    return {regime: group for regime, group in groups.items() if group}


def image_sizes(dataset: Path | DatasetFiles) -> ImageSizes:
    """As the first readable sample of each regime has them; a dataset is built at one resolution."""
    files = LocalFiles(dataset) if isinstance(dataset, Path) else dataset
    first = {
        regime: _first(ShardReader(files, "shards", shards, 1, decode_pixels))
        for regime, shards in shards_by_regime(files.folder).items()
    }
    textured = first.get(Regime.TEXTURED)
    views, height = (textured or first[Regime.MV_ONLY]).views.mask.shape[:2]
    resolution = len(textured.uv.mask) if textured and textured.uv else None
    if views > MAX_VIEWS:
        raise UserError(
            f"{files.location}: its samples have {views} views, {MAX_VIEWS} are the most that are trained on; build "
            "the dataset with fewer (rig.num_views)"
        )
    for name, size in (("views.resolution", height), ("uv.resolution", resolution or TOKEN)):
        require_tokens(f"{files.location}: {name}", size)
    return ImageSizes(views=views, view_resolution=height, uv_resolution=resolution)


def require_tokens(name: str, size: int) -> None:
    """Raises UserError where an image of this size cannot be cut into tokens."""
    if size < TOKEN or size % TOKEN:
        raise UserError(f"{name} is {size}; the model takes multiples of {TOKEN}")


def readable_samples(files: DatasetFiles, regime: Regime) -> Iterator[TextureSample]:
    """The samples of a regime in ledger order; of a shard that is missing or damaged, those before the fault."""
    shards = shards_by_regime(files.folder).get(regime, ())
    reader = ShardReader(files, "shards", shards, 1, decode_pixels)
    for number, shard in enumerate(shards):
        for index in range(shard.count):
            try:
                sample = reader(number, index)
            except ShardError as error:
                log.warning("passed over: %s", error)
                break
            yield sample


def _first(reader: ShardReader[TextureSample]) -> TextureSample:
    for shard in range(len(reader.shards)):
        try:
            return reader(shard, 0)
        except ShardError as error:
            last = error
    raise last


def decode_pixels(fields: Mapping[str, bytes], lit: bool = False) -> TextureSample:
    """lit: whether the lit views are wanted, which cost as much as the others."""
    return decode(fields if lit else {name: fields[name] for name in fields if name != LIT})


@dataclass(frozen=True, slots=True)
class _Opened:
    """A dataset, ready to read."""

    folder: str
    """Of its shards."""
    shards: dict[Regime, tuple[ShardRecord, ...]]
    decode: Callable[[Mapping[str, bytes]], Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    """What must be the same for samples to share a batch, as far as it is on record."""


def open_sources(
    cfg: SourceOptions, datasets: list[DatasetFiles], seed: int, codec: LatentHeader | None, budget: SkipBudget
) -> dict[Regime, list[Source[Any]]]:
    """The sources of each regime that any dataset has.

    Raises:
        UserError: a dataset or its latents are missing or do not fit, two datasets differ in size or rig, or more
            shards than the budget allows are missing.
    """
    sources: dict[Regime, list[Source[Any]]] = {}
    opened = [_open(files, cfg, codec) for files in datasets]
    _check_alike([files.location for files in datasets], [each.sizes for each in opened])
    for number, (files, each) in enumerate(zip(datasets, opened, strict=True)):
        for regime, shards in each.shards.items():
            source = Source(
                name=files.location,
                weight=cfg.weights[list(cfg.weights)[number]],
                order=SampleOrder(tuple(shard.count for shard in shards), seed, cfg.window, number),
                reader=ShardReader(files, each.folder, shards, cfg.window, each.decode),
            )
            for index, shard in enumerate(shards):
                if files.missing(f"{each.folder}/{shard.name}", shard.bytes):
                    name = source.reader.name(index)
                    budget.spend(name, ShardError(f"{name}: missing, or of another size than on record; {REMEDY}"))
            sources.setdefault(regime, []).append(source)
    return {regime: sources[regime] for regime in Regime if regime in sources}


def _open(files: DatasetFiles, cfg: SourceOptions, codec: LatentHeader | None) -> _Opened:
    by_regime = shards_by_regime(files.folder)
    if not cfg.latents:
        lit = cfg.augment.lit > 0
        return _Opened("shards", by_regime, partial(decode_pixels, lit=lit), built_sizes(files))
    if codec is None:
        raise ValueError("latents are wanted, but not said of which codec")
    header, made = find_latents(files, codec, [shard for group in by_regime.values() for shard in group])
    shards = {regime: tuple(made[shard.name].record() for shard in group) for regime, group in by_regime.items()}
    shapes = {name: shape for shard in made.values() for name, shape in shard.shapes.items()}
    text = {"text": (header.text_encoder, header.text_dim, header.text_length)}
    decoder: Callable[[Mapping[str, bytes]], StoredLatents] = LatentDecoder(
        header, read_empty_text(files, header), with_variance=cfg.draw_posterior, with_hint=codec.view_hint
    )
    return _Opened(header.folder, shards, decoder, built_sizes(files) | shapes | text)


def stored_text(datasets: list[DatasetFiles], codec: LatentCodec, text_encoder: str) -> LatentHeader | None:
    """What the captions were encoded with, where those of all datasets come with their latents; None otherwise.

    Raises:
        UserError: no latents by this codec, or captions by another text encoder than that of the run.
    """
    headers = [find_latents(files, codec_header(codec), [])[0] for files in datasets]
    for files, header in zip(datasets, headers, strict=True):
        if header.text_encoder not in ("", text_encoder):
            raise UserError(
                f"{files.location}/{header.folder}: captions were encoded by {header.text_encoder}, this run has "
                f"{text_encoder}; set latents.text_encoder {header.text_encoder}, or encode again"
            )
    return headers[0] if headers and all(header.text_encoder for header in headers) else None


def built_sizes(files: DatasetFiles) -> dict[str, Any]:
    """Resolutions and camera rig that a dataset was built with, jitter aside."""
    config = read_dataset_json(files.folder).config
    rig = {name: value for name, value in config.get("rig", {}).items() if not name.startswith("jitter_")}
    sizes = {f"{part}.resolution": config.get(part, {}).get("resolution") for part in ("views", "uv")}
    return {name: value for name, value in (sizes | {"rig": rig or None}).items() if value is not None}


def _check_alike(names: list[str], sizes: list[dict[str, Any]]) -> None:
    for name, found in zip(names[1:], sizes[1:], strict=True):
        for key in found.keys() & sizes[0].keys():
            if found[key] != sizes[0][key]:
                raise UserError(
                    f"{names[0]} and {name} do not mix: {key} is {sizes[0][key]} and {found[key]}; "
                    "build them with the same resolutions and camera rig, or train on one of them"
                )
