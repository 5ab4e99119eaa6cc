"""From dataset directories to batches: regimes and datasets mixed by ratio, in an order that the seed alone decides."""

import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from schemas.errors import UsageError, UserError, require_between
from schemas.sample import Regime, TextureSample
from training.data.augment import AugmentConfig, condition_images, draw_augmentation, rotate_views
from training.data.batch import Batch, LatentBatch, Prepared, join, stack_samples, to_model
from training.data.dataset_files import REMEDY, DatasetFiles, ShardError, open_dataset
from training.data.latent_shards import StoredLatents, codec_header, rotated
from training.data.mixture import open_sources, shards_by_regime
from training.data.shard_reader import Draws, Schedule, SkipBudget
from training.diffusion.encoders import LatentCodec
from training.diffusion.tasks import TaskConfig, views_given
from training.loop.signals import leave_signals_to_trainer


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What a rank met on its way to a batch."""

    fault: str | None = None
    """Why it has none."""
    bad_shards: dict[str, str] = field(default_factory=dict)
    """Why each cannot be read, by name; those that the run does not know yet."""


Share = Callable[[Findings], list[Findings]]


def share_findings(strategy: Strategy, own: Findings) -> list[Findings]:
    """Those of all ranks, in their order; none where no rank has any. Every rank calls it for every batch."""
    if not strategy.reduce_boolean_decision(bool(own.fault or own.bad_shards), all=False):
        return []
    if not torch.distributed.is_initialized():
        return [own]
    found: list[Findings] = [own] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def keep_findings(own: Findings) -> list[Findings]:
    """Of a process that reads alone."""
    return [own]


log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and in which mixture."""

    directory: Path = Path("dataset")
    """A directory made by `seqtex build`."""
    directories: dict[str, float] = field(default_factory=dict)
    """Several of them, each with its weight, in place of `directory`: paths, or addresses such as s3://bucket/forge. A
    sample comes from a dataset with the probability that its weight has among those with samples of that regime."""
    batch_size: int = 16
    """Samples in a global batch, over all ranks."""
    mv_only_ratio: float = 0.3
    """Share of batches that are multi-view-only, where there are samples of both regimes (ours)."""
    window: int = 16
    """Shards per dataset and regime that are open at a time, among which samples are shuffled (ours)."""
    keep_latents: bool = False
    """Encode every sample once, by the codec `dct`, and keep its latents in memory: for datasets of some thousand small
    samples. Of no effect with `latents`, or where `augment` makes new images of a sample every time."""
    latents: bool = False
    """Read the latents that `seqtex encode` has made instead of the images."""
    draw_posterior: bool = False
    """With `latents`: colours are drawn from the codec's posterior, anew in every epoch, instead of being its mean."""
    workers: int = 0
    """Processes that read and decode; 0: the training process itself."""
    skip_budget: int = 0
    """Shards that may be missing or damaged, all ranks and workers together; other samples stand in for theirs. One
    more ends the run, on every rank at the same batch."""
    cache_directory: Path = Path("~/.cache/seqtex")
    """Receives the shards of remote datasets; ranks and runs of a machine share it."""
    cache_gb: float = 50.0
    """Its size, 10^9 bytes; the shards used longest ago go first."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What may happen to a sample on its way."""

    def __post_init__(self) -> None:
        require_between("data.mv_only_ratio", self.mv_only_ratio, 0, 1)
        require_between("data.batch_size", self.batch_size, 1, 1_000_000)
        require_between("data.window", self.window, 1, 1_000_000)
        require_between("data.workers", self.workers, 0, 1024)
        require_between("data.skip_budget", self.skip_budget, 0, 1_000_000)
        require_between("data.cache_gb", self.cache_gb, 0, 1e9)
        if ":/" in str(self.directory):  # a Path has lost the second slash of an address
            raise UsageError(f"data.directory is {self.directory}: give addresses in data.directories, with a weight")
        if any(not weight > 0 for weight in self.directories.values()):
            raise UsageError(f"data.directories is {self.directories}; give every dataset a weight above 0")
        if self.latents and self.augment.condition:
            raise UsageError("data.augment changes the given view, which needs its image: set data.latents false")
        if self.draw_posterior and not self.latents:
            raise UsageError("data.draw_posterior draws from stored latents: set data.latents true")

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each dataset by its location."""
        return self.directories or {str(self.directory): 1.0}


def open_datasets(cfg: DataConfig) -> list[DatasetFiles]:
    """The files of every dataset, the first one first."""
    return [open_dataset(location, cfg.cache_directory, int(cfg.cache_gb * 1e9)) for location in cfg.weights]


def leading_dataset(cfg: DataConfig) -> DatasetFiles:
    """The dataset that tells sizes and rig of all: the first one with textured samples, which alone know the UV map's,
    or else the first one."""
    datasets = open_datasets(cfg)
    textured = (files for files in datasets if Regime.TEXTURED in shards_by_regime(files.folder))
    return next(textured, datasets[0])


AnyBatch = Batch | LatentBatch
Encoder = Callable[[Batch], LatentBatch]
Place = tuple[Regime, int, int, int]
"""Regime, source, shard, and index in the shard of a sample."""


class BatchStream(Dataset[AnyBatch]):
    """The endless stream, as one rank sees it: item `number` is its share of global batch `number`, or, with `turns`
    above 1, item `number * turns + turn` a part of that share. A pure function of the number: which process asks, and
    what it asked before, changes nothing."""

    def __init__(
        self,
        cfg: DataConfig,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        turns: int = 1,
        encoder: Encoder | None = None,
        codec: LatentCodec | None = None,
        hints_for: TaskConfig | None = None,
    ) -> None:
        """encoder: makes the latents that `cfg.keep_latents` keeps. codec: that of the run, for `cfg.latents`.
        hints_for: the tasks of a run whose model takes view hints; None: it does not."""
        if cfg.batch_size % (ranks * turns):
            by_turns = f" in {turns} turns" if turns > 1 else ""
            raise UserError(
                f"batch_size {cfg.batch_size} does not divide among {ranks} ranks{by_turns}; "
                f"use a multiple of {ranks * turns}"
            )
        self.cfg = cfg
        self.seed = seed
        self.budget = SkipBudget(cfg.skip_budget)
        header = None
        if cfg.latents and codec:
            header = replace(codec_header(codec), view_hint=hints_for is not None)
        self.sources = open_sources(cfg, open_datasets(cfg), seed, header, self.budget)
        ratio = cfg.mv_only_ratio if Regime.MV_ONLY in self.sources else 0.0
        self.schedule = Schedule(seed, ratio if Regime.TEXTURED in self.sources else 1.0)
        self.mixture = {
            regime: Draws((seed, 1 + list(Regime).index(regime)), [source.weight for source in group])
            for regime, group in self.sources.items()
        }
        self.turns = turns
        self.share = cfg.batch_size // (ranks * turns)
        self.first_slot = rank * turns * self.share
        self.encoder = None if cfg.latents or cfg.augment.condition else encoder
        self.hints_for = hints_for
        self._latents: dict[Place, LatentBatch] = {}
        self._hints: dict[tuple[Place, tuple[int, ...]], tuple[Tensor | None, Tensor | None]] = {}
        """Latents of view hints, of views and UV map, by place and views given."""

    def __getitem__(self, item: int) -> AnyBatch:
        number, turn = divmod(item, self.turns)
        regime, earlier = self.schedule(number)
        size, first = self.cfg.batch_size, self.first_slot + turn * self.share
        slots = range(first, first + self.share)
        parts: list[Any] = []
        passed_over: dict[str, None] = {}
        for slot in slots:
            parts.append(self._sample(regime, earlier * size + slot, number, slot, passed_over))
        names = [self.sources[regime][kind].name for kind, _ in parts]
        stored = [part for _, part in parts]
        batch = join(stored, names) if isinstance(stored[0], LatentBatch) else stack_samples(stored, names)
        samples = tuple(number * size + slot for slot in slots)
        return replace(batch, number=number, samples=samples, passed_over=tuple(passed_over))

    def _sample(
        self, regime: Regime, position: int, batch: int, slot: int, passed_over: dict[str, None]
    ) -> tuple[int, LatentBatch | Prepared]:
        """Source and sample at a position of the regime's stream. Where it cannot be read, another one of its dataset
        stands in for it, the same on every rank and for any number of ranks: no rank has to ask another."""
        kind, nth = self.mixture[regime](position)
        source = self.sources[regime][kind]
        for shard, index in source.places(nth):
            try:
                return kind, self._load((regime, kind, shard, index), batch, batch * self.cfg.batch_size + slot)
            except ShardError as error:
                name = source.reader.name(shard)
                self.budget.spend(name, error)
                passed_over[name] = None
        raise UserError(f"{source.name}: none of its {regime} shards can be read: {', '.join(passed_over)}")

    def _load(self, place: Place, batch: int, number: int) -> LatentBatch | Prepared:
        regime, kind, shard, index = place
        reader = self.sources[regime][kind].reader
        if self.encoder is not None:
            return self._kept(place, batch, number, self.encoder)
        stored = reader(shard, index)
        if isinstance(stored, StoredLatents):
            latents = stored.drawn(self.seed, number) if self.cfg.draw_posterior else stored.batch
            given = self._given_unrotated(regime, batch, number, latents.mv.rgb.shape[2])
            return self._rotated(latents if given is None else stored.hinted(latents, given), number)
        augment, views = self.cfg.augment, len(stored.views.rgb)
        drawn = draw_augmentation(augment, views, self.seed, number)
        turned = rotate_views(stored, drawn.shift)
        condition = condition_images(turned.views, drawn) if augment.condition else None
        return Prepared(sample=turned, condition=condition, given=self._given(regime, batch, number, views))

    def _kept(self, place: Place, batch: int, number: int, encoder: Encoder) -> LatentBatch:
        """Get a sample's latents from memory, or make and keep them."""
        regime, kind, shard, index = place

        def encoded(given: tuple[int, ...] | None = None) -> LatentBatch:
            stored = self.sources[regime][kind].reader(shard, index)
            assert isinstance(stored, TextureSample)
            return encoder(to_model(stored, given=given))

        if place not in self._latents:
            self._latents[place] = encoded()
        latents = self._latents[place]
        given = self._given_unrotated(regime, batch, number, latents.mv.rgb.shape[2])
        if given is not None:
            if (place, given) not in self._hints:
                fresh = encoded(given)
                self._hints[place, given] = fresh.mv.hint, fresh.uv.hint if fresh.uv else None
            of_views, of_map = self._hints[place, given]
            uv = replace(latents.uv, hint=of_map) if latents.uv else None
            latents = replace(latents, mv=replace(latents.mv, hint=of_views), uv=uv)
        return self._rotated(latents, number)

    def _given(self, regime: Regime, batch: int, number: int, views: int) -> tuple[int, ...] | None:
        """Find the views that the sample's hint carries; None where models take no hint."""
        if self.hints_for is None:
            return None
        return views_given(self.hints_for, regime, self.seed, batch, number, views)

    def _given_unrotated(self, regime: Regime, batch: int, number: int, views: int) -> tuple[int, ...] | None:
        """Find the same views by their numbers before they are rotated."""
        given = self._given(regime, batch, number, views)
        shift = draw_augmentation(self.cfg.augment, views, self.seed, number).shift
        return None if given is None else tuple(sorted((view - shift) % views for view in given))

    def _rotated(self, latents: LatentBatch, number: int) -> LatentBatch:
        return rotated(latents, draw_augmentation(self.cfg.augment, latents.mv.rgb.shape[2], self.seed, number).shift)


class CountFrom(Sampler[int]):
    """start, start + 1, ... without end. It has no length, so that Lightning counts no epochs."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class Told(Dataset[AnyBatch | UserError]):
    """A stream whose faults come as values: DataLoader would bury a worker's message in its traceback."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __getitem__(self, item: int) -> AnyBatch | UserError:
        try:
            return self.stream[item]
        except UserError as error:
            return error


class BatchLoader(DataLoader[AnyBatch | UserError]):
    """Batches of a stream from one item on, read and decoded by `workers` processes."""

    def __init__(
        self, stream: BatchStream, start: int, workers: int, agree: Callable[[str | None, dict[str, str]], None]
    ) -> None:
        """agree: gets, before each batch, why there is none and why the shards that were met cannot be read; raises
        UserError where the run ends."""
        sampler, init = CountFrom(start), leave_signals_to_trainer
        super().__init__(Told(stream), batch_size=None, sampler=sampler, num_workers=workers, worker_init_fn=init)
        self.stream = stream
        self.agree = agree

    def __iter__(self) -> Iterator[AnyBatch]:  # type: ignore[override]
        for batch in super().__iter__():
            fault, met = None, dict(self.stream.budget.passed_over)
            if isinstance(batch, UserError):
                fault = str(batch)
            else:
                met = {name: f"{name}: missing or damaged; {REMEDY}" for name in batch.passed_over} | met
            self.agree(fault, met)
            assert not isinstance(batch, UserError)
            yield batch


class TextureDataModule(lightning.LightningDataModule):
    """The training stream of a run. Its state is the number of samples consumed."""

    def __init__(
        self,
        cfg: DataConfig,
        *,
        seed: int,
        turns: int = 1,
        encoder: Encoder | None = None,
        codec: LatentCodec | None = None,
        hints_for: TaskConfig | None = None,
    ) -> None:
        """turns: batches of the loader in one global batch. encoder, codec, hints_for: see `BatchStream`."""
        super().__init__()
        self.cfg = cfg
        self.seed = seed
        self.turns = turns
        self.encoder = encoder
        self.codec = codec
        self.hints_for = hints_for
        self.consumed_samples = 0
        self.resume_at = 0
        """The stream goes on no earlier than this sample."""
        self.budget = SkipBudget(cfg.skip_budget)
        """Of the whole run, the same on every rank."""

    def train_dataloader(self) -> BatchLoader:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        stream = BatchStream(
            self.cfg,
            seed=self.seed,
            rank=rank,
            ranks=ranks,
            turns=self.turns,
            encoder=self.encoder,
            codec=self.codec,
            hints_for=self.hints_for,
        )
        share = partial(share_findings, trainer.strategy) if trainer else keep_findings
        first = self.consumed_samples // self.cfg.batch_size * self.turns
        return BatchLoader(stream, first, self.cfg.workers, partial(self._agree, share, rank == 0))

    def _agree(self, share: Share, speaks: bool, fault: str | None, met: dict[str, str]) -> None:
        """Counts the bad shards of all ranks. Raises UserError on every rank where one has no batch, or where together
        they met more than the budget allows."""
        new = {name: reason for name, reason in met.items() if name not in self.budget.passed_over}
        for findings in share(Findings(fault=fault, bad_shards=new)):
            for name, reason in findings.bad_shards.items():
                is_new = name not in self.budget.passed_over
                self.budget.spend(name, ShardError(reason))
                if is_new and speaks:
                    log.warning(
                        "shard passed over, %d of at most %d: %s; other samples stand in for its own",
                        len(self.budget.passed_over), self.cfg.skip_budget, reason,
                    )  # fmt: skip
            if findings.fault:
                raise UserError(findings.fault)

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        return batch.to(device)

    def consumed(self, batch: AnyBatch) -> None:
        """To be called after each optimised global batch, with the last part of it."""
        self.consumed_samples = (batch.number + 1) * self.cfg.batch_size

    def skip_failed(self) -> None:
        """The next run goes on behind the batch that was at work, whatever state it starts from."""
        self.resume_at = self.consumed_samples + self.cfg.batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"consumed_samples": self.consumed_samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed_samples = max(state_dict["consumed_samples"], self.resume_at)
