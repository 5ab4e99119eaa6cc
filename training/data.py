"""From a dataset directory to batches: regimes mixed by ratio, in an order that depends on the seed alone."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from schemas.dataset import ShardRecord, read_dataset_json, read_ledger
from schemas.errors import UserError
from schemas.sample import Regime
from training.batch import Batch, LatentBatch, join, to_model
from training.stream import SampleOrder, Schedule, ShardReader


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is read, and in which mixture."""

    directory: Path = Path("dataset")
    """A directory made by `seqtex build`."""
    batch_size: int = 16
    """Samples in a global batch, over all ranks."""
    mv_only_ratio: float = 0.3
    """Share of batches that are multi-view-only, where the dataset has both regimes (ours)."""
    window: int = 16
    """Shards per regime held in memory, among which samples are shuffled (ours)."""
    keep_latents: bool = True
    """Encode every sample once and keep its latents in memory: for datasets of some thousand small samples."""
    workers: int = 0
    """Processes that read and decode; 0: the training process itself."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSizes:
    """Of the samples of a dataset."""

    views: int
    view_resolution: int
    """Pixels."""
    uv_resolution: int | None
    """Texels; None where no sample has a UV map."""


def image_sizes(directory: Path) -> ImageSizes:
    """As the first sample of each regime has them; a dataset is built at one resolution."""
    first = {
        regime: ShardReader(directory, shards, window=1)(0, 0) for regime, shards in shards_by_regime(directory).items()
    }
    textured = first.get(Regime.TEXTURED)
    views, height = (textured or first[Regime.MV_ONLY]).views.mask.shape[:2]
    resolution = len(textured.uv.mask) if textured and textured.uv else None
    return ImageSizes(views=views, view_resolution=height, uv_resolution=resolution)


AnyBatch = Batch | LatentBatch
Encoder = Callable[[Batch], LatentBatch]


class BatchStream(Dataset[AnyBatch]):
    """Batch `number` of the endless stream, as one rank sees it. A pure function of the number: which process asks, and
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
    ) -> None:
        parts = ranks * turns
        if cfg.batch_size % parts:
            raise UserError(
                f"batch_size {cfg.batch_size} does not divide among {ranks} ranks x {turns} turns; use a multiple of "
                f"{parts}"
            )
        by_regime = shards_by_regime(cfg.directory)
        ratio = cfg.mv_only_ratio if Regime.MV_ONLY in by_regime else 0.0
        self.schedule = Schedule(seed, ratio if Regime.TEXTURED in by_regime else 1.0)
        self.order = {r: SampleOrder(tuple(s.count for s in g), seed, cfg.window) for r, g in by_regime.items()}
        self.reader = {r: ShardReader(cfg.directory, g, cfg.window) for r, g in by_regime.items()}
        self.batch_size = cfg.batch_size
        self.turns = turns
        self.rank = rank
        self.part_size = cfg.batch_size // parts
        self.encoder = encoder
        self._latents: dict[tuple[Regime, int, int], LatentBatch] = {}

    def __getitem__(self, index: int) -> AnyBatch:
        number, turn = divmod(index, self.turns)
        regime, earlier = self.schedule(number)
        first = (self.rank * self.turns + turn) * self.part_size
        slots = range(first, first + self.part_size)
        places = [self.order[regime](earlier * self.batch_size + slot) for slot in slots]
        samples = tuple(number * self.batch_size + slot for slot in slots)
        return replace(join([self._sample(regime, *place) for place in places]), number=number, samples=samples)

    def _sample(self, regime: Regime, shard: int, index: int) -> AnyBatch:
        if self.encoder is None:
            return to_model(self.reader[regime](shard, index))
        place = (regime, shard, index)
        if place not in self._latents:
            self._latents[place] = self.encoder(to_model(self.reader[regime](shard, index)))
        return self._latents[place]


class CountFrom(Sampler[int]):
    """start, start + 1, ... without end. It has no length, so that Lightning counts no epochs."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class TextureDataModule(lightning.LightningDataModule):
    """The training stream of one dataset. Its state is the number of samples consumed."""

    def __init__(self, cfg: DataConfig, *, seed: int, turns: int = 1, encoder: Encoder | None = None) -> None:
        """turns: parts that a rank's share of a batch is worked through in."""
        super().__init__()
        self.turns = turns
        self.cfg = cfg
        self.seed = seed
        self.encoder = encoder
        self.consumed_samples = 0
        self.resume_at = 0
        """The stream goes on no earlier than this sample."""

    def train_dataloader(self) -> DataLoader[AnyBatch]:
        trainer = self.trainer
        rank, ranks = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        stream = BatchStream(self.cfg, seed=self.seed, rank=rank, ranks=ranks, turns=self.turns, encoder=self.encoder)
        return DataLoader(
            stream,
            batch_size=None,
            sampler=CountFrom(self.consumed_samples // self.cfg.batch_size * self.turns),
            num_workers=self.cfg.workers,
        )

    def transfer_batch_to_device(self, batch: AnyBatch, device: torch.device, dataloader_idx: int) -> AnyBatch:
        return batch.to(device)

    def consumed(self, batch: AnyBatch) -> None:
        """To be called after each optimised batch."""
        self.consumed_samples = (batch.number + 1) * self.cfg.batch_size

    def skip_failed(self) -> None:
        """The next run goes on behind the batch that was at work, whatever state it starts from."""
        self.resume_at = self.consumed_samples + self.cfg.batch_size

    def state_dict(self) -> dict[str, Any]:
        return {"consumed_samples": self.consumed_samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed_samples = max(state_dict["consumed_samples"], self.resume_at)
