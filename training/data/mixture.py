"""Datasets of a mixture: how they are mixed, their sizes, and the sources of each regime."""

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Generic

from schemas.codec import LIT, MATERIAL_FIELDS, decode
from schemas.dataset import ShardRecord, read_dataset_json, read_ledger
from schemas.errors import UsageError, UserError, require_between
from schemas.sample import Regime, TextureSample
from training.data.augment import AugmentConfig
from training.data.dataset_files import REMEDY, DatasetFiles, LocalFiles, ShardError, open_dataset
from training.data.latent_shards import LatentDecoder, LatentHeader, codec_header, find_latents, read_empty_text
from training.data.order import SampleOrder
from training.data.shard_reader import Sample, ShardReader, SkipBudget
from training.diffusion.encoders import DctCodec, LatentCodec
from training.diffusion.tasks import MAX_VIEWS
from training.maps import RELEASED_MAPS, without_materials

TOKEN = DctCodec.layout.token
"""Pixels a side of what becomes one token of the codec `dct` or Wan2.1's VAE."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Options of the data: which datasets, in which mixture, and how they are read."""

    directory: Path = Path("dataset")
    """A directory made by `seqtex build`."""
    directories: dict[str, float] = field(default_factory=dict)
    """Several datasets, each with its weight, in place of `directory`: paths, or URLs such as s3://bucket/forge. A
    sample comes from a dataset with the probability that its weight has among those with samples of that regime."""
    batch_size: int = 16
    """Samples in a global batch, over all ranks."""
    mv_only_ratio: float = 0.3
    """Share of batches that are multi-view-only, if there are samples of both regimes (ours)."""
    window: int = 16
    """Shards per dataset and regime that are open at a time, among which samples are shuffled (ours)."""
    keep_latents: bool = False
    """Encode every sample once, by the codec `dct`, and keep its latents in memory: for datasets of some thousand small
    samples. No effect with `latents`, or if `augment` makes new images or captions of a sample every time."""
    latents: bool = False
    """Read the latents that `seqtex encode` wrote instead of the images."""
    draw_posterior: bool = False
    """With `latents`: draw colours from the codec's posterior, anew in every epoch, instead of taking its mean."""
    workers: int = 0
    """Processes that read and decode; 0: the training process itself."""
    skip_budget: int = 0
    """Shards that may be missing or damaged, all ranks and workers together; other samples replace theirs. One more
    ends the run, on every rank at the same batch."""
    cache_directory: Path = Path("~/.cache/seqtex")
    """Receives the shards of remote datasets; ranks and runs of a machine share it."""
    cache_gb: float = 50.0
    """Size of the cache, 10^9 bytes; the shards used longest ago are deleted first."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation of samples."""

    def __post_init__(self) -> None:
        require_between("data.mv_only_ratio", self.mv_only_ratio, 0, 1)
        require_between("data.batch_size", self.batch_size, 1, 1_000_000)
        require_between("data.window", self.window, 1, 1_000_000)
        require_between("data.workers", self.workers, 0, 1024)
        require_between("data.skip_budget", self.skip_budget, 0, 1_000_000)
        require_between("data.cache_gb", self.cache_gb, 0, 1e9)
        if ":/" in str(self.directory):  # a Path has lost the second slash of a URL
            raise UsageError(f"data.directory is {self.directory}: give URLs in data.directories, with a weight")
        if any(not weight > 0 for weight in self.directories.values()):
            raise UsageError(f"data.directories is {self.directories}; give every dataset a weight above 0")
        if self.latents and self.augment.condition:
            raise UsageError("data.augment changes the given view, which needs its image: set data.latents false")
        if self.latents and self.augment.captions:
            raise UsageError("data.augment.captions draws captions, latents hold one each: set data.latents false")
        if self.draw_posterior and not self.latents:
            raise UsageError("data.draw_posterior draws from stored latents: set data.latents true")

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each dataset by its location."""
        return self.directories or {str(self.directory): 1.0}


def open_datasets(cfg: DataConfig) -> list[DatasetFiles]:
    """Open the files of every dataset, in their order."""
    return [open_dataset(location, cfg.cache_directory, int(cfg.cache_gb * 1e9)) for location in cfg.weights]


def leading_dataset(cfg: DataConfig) -> DatasetFiles:
    """Return the dataset whose sizes and rig count for all: the first one with textured samples, which have UV maps, or
    else the first one."""
    datasets = open_datasets(cfg)
    textured = (files for files in datasets if Regime.TEXTURED in shards_by_regime(files.folder))
    return next(textured, datasets[0])


def check_materials(files: DatasetFiles, maps: tuple[str, ...]) -> None:
    """Raise UserError where a dataset has textured samples without the materials that are to be generated."""
    has_textures = len(maps) > 1 and Regime.TEXTURED in shards_by_regime(files.folder)
    if has_textures and not read_dataset_json(files.folder).config.get("materials"):
        raise without_materials(str(files.location), maps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(Generic[Sample]):
    """The samples of one regime of one dataset."""

    name: str
    """Location of the dataset."""
    weight: float
    order: SampleOrder
    reader: ShardReader[Sample]

    def places(self, position: int) -> Iterator[tuple[int, int]]:
        """Yield the place of the sample at a position, then those of its replacements if it cannot be read."""
        return chain((self.order(position),), self.order.replacements(position))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """Sizes of the samples of a dataset."""

    views: int
    view_resolution: int
    """Pixels."""
    uv_resolution: int | None
    """Texels; None if no sample has a UV map."""


def shards_by_regime(directory: Path) -> dict[Regime, tuple[ShardRecord, ...]]:
    """List the shards with samples of each regime that the ledger records.

    Raises:
        UserError: no dataset, a damaged ledger, or no sample in it.
    """
    read_dataset_json(directory)
    records = [shard for part in read_ledger(directory) for shard in part.shards if shard.count]
    if not records:
        raise UserError(f"{directory}: no finished shard with a sample in it; run `seqtex build` to its end first")
    groups = {regime: tuple(record for record in records if record.regime is regime) for regime in Regime}
    return {regime: group for regime, group in groups.items() if group}


def image_sizes(dataset: Path | DatasetFiles, token: int = TOKEN) -> ImageSizes:
    """Read the sizes of the first readable sample of each regime; a dataset is built at one resolution. token: pixels a
    side of one token."""
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
    for name, size in (("views.resolution", height), ("uv.resolution", resolution or token)):
        require_tokens(f"{files.location}: {name}", size, token)
    return ImageSizes(views=views, view_resolution=height, uv_resolution=resolution)


def require_tokens(name: str, size: int, token: int) -> None:
    """Raise UserError if an image of this size cannot be cut into tokens."""
    if size < token or size % token:
        raise UserError(f"{name} is {size}; the model takes multiples of {token}")


def readable_samples(files: DatasetFiles, regime: Regime, materials: bool = False) -> Iterator[TextureSample]:
    """Yield the samples of a regime in ledger order; of a shard that is missing or damaged, those before the error.
    materials: with theirs."""
    shards = shards_by_regime(files.folder).get(regime, ())
    reader = ShardReader(files, "shards", shards, 1, partial(decode_pixels, materials=materials))
    for number, shard in enumerate(shards):
        for index in range(shard.count):
            try:
                sample = reader(number, index)
            except ShardError as error:
                log.warning("skipped: %s", error)
                break
            yield sample


def _first(reader: ShardReader[TextureSample]) -> TextureSample:
    for shard in range(len(reader.shards)):
        try:
            return reader(shard, 0)
        except ShardError as error:
            last = error
    raise last


def decode_pixels(fields: Mapping[str, bytes], lit: bool = False, materials: bool = False) -> TextureSample:
    """Decode a sample. lit, materials: with the lit views, which cost as much as the others, and with materials."""
    unread = (frozenset() if lit else {LIT}) | (frozenset() if materials else MATERIAL_FIELDS)
    return decode({name: fields[name] for name in fields if name not in unread})


@dataclass(frozen=True, slots=True)
class _Opened:
    """A dataset, ready to read."""

    folder: str
    """Folder of its shards."""
    shards: Mapping[Regime, tuple[ShardRecord, ...]]
    decode: Callable[[Mapping[str, bytes]], Any]
    sizes: dict[str, Any]
    """Recorded sizes, which must be equal for samples to share a batch."""


def open_sources(
    cfg: DataConfig,
    seed: int,
    codec: LatentHeader | None,
    budget: SkipBudget,
    maps: tuple[str, ...] = RELEASED_MAPS,
) -> dict[Regime, list[Source[Any]]]:
    """Open the sources of each regime that any dataset has. maps: UV maps that are generated.

    Raises:
        UserError: a dataset or its latents are missing or do not fit, two datasets differ in size or rig, one has no
            materials that are to be generated, or more shards than the budget allows are missing.
    """
    sources: dict[Regime, list[Source[Any]]] = {}
    datasets = open_datasets(cfg)
    opened = [_open(files, cfg, codec, maps) for files in datasets]
    _check_alike([files.location for files in datasets], [each.sizes for each in opened])
    for number, (files, each, weight) in enumerate(zip(datasets, opened, cfg.weights.values(), strict=True)):
        for regime, shards in each.shards.items():
            source = Source(
                name=files.location,
                weight=weight,
                order=SampleOrder(tuple(shard.count for shard in shards), seed, cfg.window, number),
                reader=ShardReader(files, each.folder, shards, cfg.window, each.decode),
            )
            for index, shard in enumerate(shards):
                if files.missing(f"{each.folder}/{shard.name}", shard.bytes):
                    name = source.reader.name(index)
                    budget.spend(name, ShardError(f"{name}: missing, or of another size than on record; {REMEDY}"))
            sources.setdefault(regime, []).append(source)
    return {regime: sources[regime] for regime in Regime if regime in sources}


def _open(files: DatasetFiles, cfg: DataConfig, codec: LatentHeader | None, maps: tuple[str, ...]) -> _Opened:
    check_materials(files, maps)
    by_regime, sizes, materials = shards_by_regime(files.folder), built_sizes(files), len(maps) > 1
    if not cfg.latents:
        decoder = partial(decode_pixels, lit=cfg.augment.lit > 0, materials=materials)
        return _Opened("shards", by_regime, decoder, sizes)
    if codec is None:
        raise ValueError("data.latents needs a codec")
    header, made = find_latents(files, codec, [shard for group in by_regime.values() for shard in group])
    shards = {regime: tuple(made[shard.name] for shard in group) for regime, group in by_regime.items()}
    shapes = {name: shape for shard in made.values() for name, shape in shard.shapes.items()}
    text = {"text": (header.text_encoder, header.text_dim, header.text_length)}
    stored = LatentDecoder(header, read_empty_text(files, header), cfg.draw_posterior, codec.images, maps)
    return _Opened(header.folder, shards, stored, sizes | shapes | text)


def stored_text(datasets: list[DatasetFiles], codec: LatentCodec, text_encoder: str) -> LatentHeader | None:
    """Return what the captions were encoded with, if those of all datasets come with their latents; else None.

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
    """Return the resolutions and camera rig that a dataset was built with, without jitter."""
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
