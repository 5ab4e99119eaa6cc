"""The training stream: order, shard reader, decoder, augmentation and batch, put together for a data loader."""

import itertools
import logging
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch.utils.data import DataLoader, Dataset

from schemas.errors import UsageError, UserError
from schemas.sample import Regime, TextureSample
from training.agreement import gather_if_any
from training.conditions.images import GIVEN_VIEW
from training.data.augment import condition_images, draw_augmentation, draw_caption, rotate_views
from training.data.batch import Batch, LatentBatch, Prepared, encode_batch, join, stack_samples, to_device, to_model
from training.data.dataset_files import REMEDY, ShardError
from training.data.held_out import HeldOut, HeldOutSample
from training.data.latent_shards import StoredLatents, codec_header, rotate_latents, stored_name
from training.data.mixture import DataConfig, open_sources
from training.data.order import Schedule, WeightedDraws
from training.data.shard_reader import SkipBudget
from training.diffusion.encoders import LatentCodec
from training.diffusion.latents import Extensions
from training.diffusion.tasks import TaskConfig, views_given
from training.maps import RELEASED_MAPS

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals at which a run saves its state: a scheduler's last warning (SLURM's --signal=USR1@120, Kubernetes' SIGTERM),
and Ctrl-C."""
AnyBatch = Batch | LatentBatch
log = logging.getLogger(__name__)


class SamplePlace(NamedTuple):
    """Place of a stored sample."""

    regime: Regime
    source: int
    """Number of the dataset among those of the regime."""
    shard: int
    sample: int


class BatchStream(Dataset[AnyBatch]):
    """The endless stream of batches of one rank: item `number` is its share of global batch `number`, or, if gradients
    are accumulated over k batches, item `number * k + part` is a part of that share. A pure function of the item: the
    process and earlier items change nothing."""

    def __init__(
        self,
        cfg: DataConfig,
        *,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        accumulate_grad_batches: int = 1,
        codec: LatentCodec | None = None,
        tasks: TaskConfig = TaskConfig(),
        images: tuple[str, ...] = (),
        maps: tuple[str, ...] = RELEASED_MAPS,
    ) -> None:
        """codec: that of the run, for `cfg.latents` and `cfg.keep_latents`. tasks: those of the run, for condition
        images that follow the given views. images: names of the condition images that the model takes, maps:
        of the UV maps that it generates."""
        parts = ranks * accumulate_grad_batches
        if cfg.batch_size % parts:
            raise UserError(
                f"batch_size {cfg.batch_size} does not divide among {ranks} ranks by {accumulate_grad_batches} "
                f"accumulated batches; use a multiple of {parts}"
            )
        self.cfg = cfg
        self.seed = seed
        self.budget = SkipBudget(cfg.skip_budget)
        header = codec_header(codec, images=images, maps=maps) if cfg.latents and codec else None
        self.sources = open_sources(cfg, seed, header, self.budget, maps)
        missing = [regime for regime in Regime if regime not in self.sources]
        ratio = {Regime.MV_ONLY: 0.0, Regime.TEXTURED: 1.0}[missing[0]] if missing else cfg.mv_only_ratio
        self.schedule = Schedule(seed, ratio)
        if missing and ratio != cfg.mv_only_ratio and rank == 0:
            log.warning(
                "%s: no %s sample; data.mv_only_ratio is %g instead of %g, and the tasks of tasks.%s are not trained",
                ", ".join(cfg.weights), missing[0], ratio, cfg.mv_only_ratio, missing[0],
            )  # fmt: skip
        self.mixture = {
            regime: WeightedDraws((seed, 1 + list(Regime).index(regime)), [source.weight for source in group])
            for regime, group in self.sources.items()
        }
        self.accumulate_grad_batches = accumulate_grad_batches
        self.share = cfg.batch_size // parts
        self.first_slot = rank * accumulate_grad_batches * self.share
        self.tasks, self.images, self.maps = tasks, images, maps
        self.follows_views = Extensions(images=images).follow_views
        self.codec = codec if cfg.keep_latents and not cfg.latents and not cfg.augment.renews else None
        """Encodes samples whose latents are kept."""
        self._kept: dict[SamplePlace, StoredLatents] = {}

    def __getitem__(self, item: int) -> AnyBatch:
        number, part = divmod(item, self.accumulate_grad_batches)
        regime, earlier = self.schedule(number)
        size, first = self.cfg.batch_size, self.first_slot + part * self.share
        names, samples, skipped = list[str](), list[Any](), dict[str, None]()
        for slot in range(first, first + self.share):
            name, sample = self._sample(regime, earlier * size + slot, number, number * size + slot, skipped)
            names.append(name)
            samples.append(sample)
        batch = stack_samples(samples, names) if isinstance(samples[0], Prepared) else join(samples, names)
        numbers = tuple(range(number * size + first, number * size + first + self.share))
        return replace(batch, number=number, samples=numbers, global_size=size, skipped=tuple(skipped))

    def _sample(
        self, regime: Regime, position: int, batch: int, number: int, skipped: dict[str, None]
    ) -> tuple[str, LatentBatch | Prepared]:
        """Return dataset and sample at a position of the regime's stream. Another sample of its dataset replaces one
        that cannot be read, the same on every rank and for any number of ranks, without communication."""
        kind, nth = self.mixture[regime](position)
        source = self.sources[regime][kind]
        for shard, index in source.places(nth):
            try:
                return source.name, self._load(SamplePlace(regime, kind, shard, index), batch, number)
            except ShardError as error:
                name = source.reader.name(shard)
                self.budget.spend(name, error)
                skipped[name] = None
        raise UserError(f"{source.name}: none of its {regime} shards can be read: {', '.join(skipped)}")

    def _load(self, place: SamplePlace, batch: int, number: int) -> LatentBatch | Prepared:
        """Read and decode the sample at a place, and augment it as sample `number` of the stream."""
        read = partial(self.sources[place.regime][place.source].reader, place.shard, place.sample)
        stored: TextureSample | StoredLatents = self._kept.get(place) or read()
        views = len(stored.views.rgb) if isinstance(stored, TextureSample) else stored.batch.mv.rgb.shape[2]
        drawn, given = draw_augmentation(self.cfg.augment, views, self.seed, number), tuple[int, ...]()
        if self.follows_views:
            given = views_given(self.tasks, place.regime, self.seed, batch, number, views)
        if isinstance(stored, TextureSample) and self.codec is None:
            sample = rotate_views(draw_caption(self.cfg.augment, stored, self.seed, number), drawn.shift)
            if not self.cfg.augment.condition:
                return Prepared(sample=sample, given=given, images=self.images, maps=self.maps)
            colors, images = condition_images(sample.views, drawn), (GIVEN_VIEW.name, *self.images)
            return Prepared(sample=sample, colors=colors, given=given, images=images, maps=self.maps)
        given = tuple(sorted((view - drawn.shift) % views for view in given))  # their numbers before they are rotated
        if self.codec is not None:
            if isinstance(stored, TextureSample) or not stored.has_conditions(self.images, given):
                sample = stored if isinstance(stored, TextureSample) else read()
                self._keep(place, encode_batch(to_model(sample, given, self.images, self.maps), self.codec), given)
            stored = self._kept[place]
        assert isinstance(stored, StoredLatents)
        latents = stored.drawn(self.seed, number) if self.cfg.draw_posterior else stored.batch
        return rotate_latents(stored.conditioned(latents, self.images, given), drawn.shift)

    def _keep(self, place: SamplePlace, latents: LatentBatch, given: tuple[int, ...]) -> None:
        """Keep the latents of a sample, and its condition images, those that follow views for these given ones."""
        kept = self._kept.setdefault(place, StoredLatents(batch=latents.without_conditions()))
        for branch, images in {"mv": latents.mv, "uv": latents.uv}.items():
            for name, image in (images.conditions if images else {}).items():
                kept.conditions[stored_name(name, branch, given, latents.mv.rgb.shape[2])] = image


class ErrorsAsValues(Dataset[AnyBatch | UserError]):
    """A stream that returns its errors: DataLoader would bury a worker's message in its traceback."""

    def __init__(self, stream: BatchStream) -> None:
        self.stream = stream

    def __getitem__(self, item: int) -> AnyBatch | UserError:
        try:
            return self.stream[item]
        except UserError as error:
            return error


def ignore_stop_signals(worker: int) -> None:
    """Ignore stop signals in a loader's process: a terminal or scheduler sends them to the training process as well,
    which asks for batches up to its end. The loader's processes end with it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadErrors:
    """Errors of a rank on its way to a batch."""

    fatal: str | None = None
    """Reason why it has none."""
    bad_shards: dict[str, str] = field(default_factory=dict)
    """Shards that cannot be read, with the reasons."""


class BatchLoader:
    """Batches of a stream, read and decoded by `workers` processes. It has no length, so that Lightning counts no
    epochs, and is no `DataLoader`, so that Lightning puts no sampler of its own into it."""

    def __init__(
        self, stream: BatchStream, start: Callable[[], int], workers: int, check: Callable[[ReadErrors], None]
    ) -> None:
        """start: gives the item to begin at, whenever iteration begins. check: called before each batch with the errors
        so far; raises UserError if the run ends."""
        self.stream = stream
        self.start = start
        self.workers = workers
        self.check = check

    def __iter__(self) -> Iterator[AnyBatch]:
        loader = DataLoader(
            ErrorsAsValues(self.stream),
            batch_size=None,
            sampler=itertools.count(self.start()),
            num_workers=self.workers,
            worker_init_fn=ignore_stop_signals,
            pin_memory=torch.cuda.is_available(),
        )
        for batch in loader:
            bad_shards = dict(self.stream.budget.skipped)
            if isinstance(batch, UserError):
                self.check(ReadErrors(fatal=str(batch), bad_shards=bad_shards))
                raise batch
            bad_shards = {name: f"{name}: missing or damaged; {REMEDY}" for name in batch.skipped} | bad_shards
            self.check(ReadErrors(bad_shards=bad_shards))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the place in the stream is part of the state of the DataModule. (Lightning warns of loaders
        that have no state.)"""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class TextureDataModule(lightning.LightningDataModule):
    """The training stream of a run, and held-out samples. Its state is the number of samples that optimizer steps have
    consumed, so a run resumes within an epoch from any checkpoint of Lightning's."""

    def __init__(
        self,
        cfg: DataConfig = DataConfig(),
        held_out: Path | None = None,
        held_out_samples: int = 8,
        *,
        seed: int = 0,
        codec: LatentCodec | None = None,
        tasks: TaskConfig = TaskConfig(),
        images: tuple[str, ...] = (),
        maps: tuple[str, ...] = RELEASED_MAPS,
    ) -> None:
        """held_out: a dataset that `validate` and `test` use; None: no validation. held_out_samples: of each regime at
        most. seed, codec, tasks, images, maps: see `BatchStream`; under a trainer, those of the `TextureModule`
        that is trained."""
        super().__init__()
        self.cfg = cfg
        self.held_out = held_out
        self.held_out_samples = held_out_samples
        self.follow(seed, codec, tasks, images, maps)
        self.consumed_samples = 0
        self.resume_at = 0
        """The stream goes on no earlier than this sample."""
        self.budget = SkipBudget(cfg.skip_budget)
        """Skipped shards of the whole run, the same on every rank."""
        self._upcoming: tuple[int, int] | None = None
        """Optimizer steps before the batch that is at work, and samples consumed when it has made its own."""

    @property
    def batch_size(self) -> int:
        """Samples of a global batch, which Lightning's finder sets."""
        return self.cfg.batch_size

    @batch_size.setter
    def batch_size(self, samples: int) -> None:
        self.cfg = replace(self.cfg, batch_size=samples)

    def follow(
        self,
        seed: int,
        codec: LatentCodec | None,
        tasks: TaskConfig,
        images: tuple[str, ...],
        maps: tuple[str, ...] = RELEASED_MAPS,
    ) -> None:
        """Take the seed, codec, tasks, condition images and generated maps of the module that is trained."""
        self.seed, self.codec, self.tasks, self.images, self.maps = seed, codec, tasks, images, maps

    def train_dataloader(self) -> BatchLoader:
        """Make the loader of this rank, from the first sample that is not consumed; with `overfit_batches`, from the
        same one in every epoch."""
        trainer, (rank, ranks, parts, overfits) = self.trainer, (0, 1, 1, False)
        if trainer:
            rank, ranks, parts = trainer.global_rank, trainer.world_size, trainer.accumulate_grad_batches
            overfits = trainer.overfit_batches > 0  # type: ignore[attr-defined]
        stream = BatchStream(
            self.cfg, seed=self.seed, rank=rank, ranks=ranks, accumulate_grad_batches=parts,
            codec=self.codec, tasks=self.tasks, images=self.images, maps=self.maps,
        )  # fmt: skip

        def first_item() -> int:
            return 0 if overfits else self.position() // self.cfg.batch_size * parts

        return BatchLoader(stream, first_item, self.cfg.workers, self._check)

    def val_dataloader(self) -> Any:
        """Make the loader of held-out samples; without any, none, and `Trainer.validate` raises UsageError."""
        if self.held_out is not None:
            place = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
            return HeldOut(self.held_out, self.cfg, self.held_out_samples, *place, materials=len(self.maps) > 1)
        if self.trainer and self.trainer.state.fn != TrainerFn.FITTING:
            raise UsageError("no dataset to validate on: give TextureDataModule held_out (data.held_out)")
        return []

    def test_dataloader(self) -> Any:
        """Make the loader of held-out samples."""
        return self.val_dataloader()

    def teardown(self, stage: str) -> None:
        """Keep the place in the stream for another trainer."""
        self.consumed_samples, self._upcoming = self.position(), None

    def _check(self, own: ReadErrors) -> None:
        """Count the bad shards of all ranks. Raises UserError on every rank if one has no batch, or if together they
        met more than the budget allows."""
        known, trainer = self.budget.skipped, self.trainer
        new = {name: reason for name, reason in own.bad_shards.items() if name not in known}
        for errors in gather_if_any(replace(own, bad_shards=new), bool(own.fatal or new)):
            for name, reason in errors.bad_shards.items():
                is_new = name not in known
                self.budget.spend(name, ShardError(reason))
                if is_new and (trainer is None or trainer.global_rank == 0):
                    log.warning(
                        "shard skipped, %d of at most %d: %s; other samples replace its own",
                        len(known), self.cfg.skip_budget, reason,
                    )  # fmt: skip
            if errors.fatal:
                raise UserError(errors.fatal)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Move a batch to a device; called with each batch right before its training step."""
        if isinstance(batch, HeldOutSample):
            return batch
        if self.trainer and self.trainer.training:
            self.consumed_samples = self.position()
            self._upcoming = (self.trainer.global_step, (batch.number + 1) * self.cfg.batch_size)
        return to_device(batch, device)

    def position(self) -> int:
        """Return the number of samples consumed: a batch counts from the moment its optimizer step is made."""
        if self._upcoming is not None and self.trainer and self.trainer.global_step > self._upcoming[0]:
            return self._upcoming[1]
        return self.consumed_samples

    def consumed(self, batch: AnyBatch) -> None:
        """Count a global batch, in a loop without a trainer."""
        self.consumed_samples = (batch.number + 1) * self.cfg.batch_size

    def skip_failed(self, step: int) -> None:
        """Let the next run go on behind the batch of an optimizer step, whatever state it starts from. step: the one at
        work, the last one, or one before it in this run."""
        self.resume_at = self.position() + (step - self.trainer.global_step) * self.cfg.batch_size  # type: ignore

    def state_dict(self) -> dict[str, Any]:
        """Return the number of samples consumed."""
        return {"consumed_samples": self.position()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on behind the samples consumed."""
        self._upcoming = None
        self.consumed_samples = max(state_dict["consumed_samples"], self.resume_at)
