"""Which sample comes when, and where it is read. Regime and order are pure functions of the seed, so that a stream is
resumed by one number: the samples consumed so far."""

import hashlib
import io
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

import numpy as np
import webdataset as wds
from jaxtyping import Int

from schemas.codec import decode
from schemas.dataset import ShardRecord, shard_path
from schemas.errors import UserError
from schemas.sample import Regime, TextureSample

REMEDY = "run `seqtex verify` on the dataset, delete the shard and build again"
CHUNK = 4096
"""Batches whose regime is drawn by one generator."""


class Schedule:
    """The regime of every batch, and which batch of its regime it is."""

    def __init__(self, seed: int, mv_only_ratio: float) -> None:
        self.seed = seed
        self.mv_only_ratio = mv_only_ratio
        self._mv_only = np.zeros(0, dtype=bool)
        self._earlier_mv_only = np.zeros(0, dtype=np.int64)

    def __call__(self, number: int) -> tuple[Regime, int]:
        """Regime of batch `number`, and how many batches of that regime came before it."""
        while number >= len(self._mv_only):
            chunk = len(self._mv_only) // CHUNK
            draws = np.random.default_rng((self.seed, chunk)).random(CHUNK) < self.mv_only_ratio
            before = self._mv_only.sum() + np.cumsum(draws) - draws
            self._mv_only = np.concatenate([self._mv_only, draws])
            self._earlier_mv_only = np.concatenate([self._earlier_mv_only, before])
        earlier = int(self._earlier_mv_only[number])
        if self._mv_only[number]:
            return Regime.MV_ONLY, earlier
        return Regime.TEXTURED, number - earlier


class SampleOrder:
    """The order of one regime's samples: every epoch each sample once. Shards are shuffled, then the samples within
    windows of `window` shards, so that only so many need to be at hand."""

    def __init__(self, counts: tuple[int, ...], seed: int, window: int) -> None:
        self.counts = counts
        self.total = sum(counts)
        self.seed = seed
        self.window = window
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, position: int) -> tuple[int, int]:
        """(shard, sample within it) at a position of the endless stream."""
        epoch, within = divmod(position, self.total)
        shard, sample = self._epoch(epoch)[within]
        return int(shard), int(sample)

    def _shuffle(self, epoch: int) -> Int[np.ndarray, "samples 2"]:
        rng = np.random.default_rng((self.seed, epoch))
        shards = rng.permutation(len(self.counts))
        windows = []
        for start in range(0, len(shards), self.window):
            places = [(shard, i) for shard in shards[start : start + self.window] for i in range(self.counts[shard])]
            windows.append(rng.permutation(np.array(places, dtype=np.int64).reshape(-1, 2)))
        return np.concatenate(windows)


class ShardReader:
    """Samples by place. Holds the bytes of the `window` shards used last; a shard is checked against its ledger record
    whenever it is read from disk."""

    def __init__(self, directory: Path, shards: tuple[ShardRecord, ...], window: int) -> None:
        self.directory = directory
        self.shards = shards
        self.window = window
        self._held: OrderedDict[int, list[dict[str, bytes]]] = OrderedDict()

    def __call__(self, shard: int, index: int) -> TextureSample:
        """Raises UserError naming the file where a shard is missing, damaged, or holds what is no sample."""
        record = self.shards[shard]
        path = shard_path(self.directory, record.name)
        if shard not in self._held:
            self._held[shard] = read_shard(path, record)
        self._held.move_to_end(shard)
        while len(self._held) > self.window:
            self._held.popitem(last=False)
        try:
            return decode(self._held[shard][index])
        except ValueError as error:
            raise UserError(f"{path}: sample {index}: {error}; {REMEDY}") from error


def read_shard(path: Path, record: ShardRecord) -> list[dict[str, bytes]]:
    """The encoded samples of a shard. Nothing in them is decoded, run or unpickled here.

    Raises:
        UserError: the file is missing or is not what the ledger says.
    """
    if not path.is_file():
        raise UserError(f"{path}: the ledger names this shard but it is missing; {REMEDY}")
    data = path.read_bytes()
    if len(data) != record.bytes or hashlib.sha256(data).hexdigest() != record.sha256:
        raise UserError(f"{path}: its {len(data)} bytes are not those that the ledger records; {REMEDY}")
    members = wds.tariterators.tar_file_expander([{"url": str(path), "stream": io.BytesIO(data)}])
    samples = [
        {name: value for name, value in fields.items() if not name.startswith("__")}
        for fields in wds.tariterators.group_by_keys(members)
    ]
    if len(samples) != record.count:
        raise UserError(f"{path}: holds {len(samples)} samples, the ledger says {record.count}; {REMEDY}")
    return samples
