"""Which sample comes when, and where it is read. Regime, source and order are pure functions of the seed, so that a
stream is resumed by one number: the samples consumed so far."""

import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from typing import BinaryIO, Generic, TypeVar

import numpy as np
from jaxtyping import Int

from schemas.dataset import ShardRecord
from schemas.errors import UserError
from schemas.sample import Regime
from training.data.dataset_files import REMEDY, DatasetFiles, ShardError

CHUNK = 4096
"""Draws that are made by one generator."""
Sample = TypeVar("Sample")


class Draws:
    """An endless row of independent draws among a few kinds, by weight. A pure function of the place in it."""

    def __init__(self, seed: tuple[int, ...], weights: Sequence[float]) -> None:
        """seed: (seed, what is drawn); what is drawn may be left out where it is 0."""
        self.seed = seed
        self.bounds = np.cumsum(weights)[:-1] / np.sum(weights)
        self._counts = [np.zeros(len(weights), dtype=np.int64)]
        self._chunk = lru_cache(maxsize=4)(self._draw)

    def __call__(self, number: int) -> tuple[int, int]:
        """Kind of draw `number`, and how many draws of that kind came before it."""
        chunk, within = divmod(number, CHUNK)
        while len(self._counts) <= chunk:
            kinds = self._draw(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(kinds, minlength=len(self._counts[0])))
        kinds = self._chunk(chunk)
        kind = int(kinds[within])
        return kind, int(self._counts[chunk][kind] + np.count_nonzero(kinds[:within] == kind))

    def _draw(self, chunk: int) -> Int[np.ndarray, " draws"]:
        seed, *rest = self.seed
        return np.searchsorted(self.bounds, np.random.default_rng((seed, chunk, *rest)).random(CHUNK), side="right")


class Schedule:
    """The regime of every batch, and which batch of its regime it is."""

    def __init__(self, seed: int, mv_only_ratio: float) -> None:
        self._draws = Draws((seed,), (mv_only_ratio, 1 - mv_only_ratio))

    def __call__(self, number: int) -> tuple[Regime, int]:
        """Regime of batch `number`, and how many batches of that regime came before it."""
        kind, earlier = self._draws(number)
        return (Regime.TEXTURED if kind else Regime.MV_ONLY), earlier


class SampleOrder:
    """The order of one source's samples of one regime: every epoch each sample once. Shards are shuffled, then the
    samples within windows of `window` shards, so that only so many need to be at hand."""

    def __init__(self, counts: tuple[int, ...], seed: int, window: int, source: int = 0) -> None:
        self.counts = np.array(counts)
        self.total = sum(counts)
        self.seed = seed
        self.window = window
        self.source = source
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def __call__(self, position: int) -> tuple[int, int]:
        """(shard, sample within it) at a position of the endless stream."""
        epoch, within = divmod(position, self.total)
        shard, sample = self._epoch(epoch)[0][within]
        return int(shard), int(sample)

    def replacements(self, position: int) -> Iterator[tuple[int, int]]:
        """What to read where the sample at a position cannot be read: a random one of the same window, and so on; then
        of the same epoch. A pure function of seed and position, too: every rank comes to the same without asking."""
        epoch, within = divmod(position, self.total)
        places, starts = self._epoch(epoch)
        end = np.searchsorted(starts, within, side="right")
        start, stop = starts[end - 1], starts[end] if end < len(starts) else self.total
        rng = np.random.default_rng((self.seed, position, self.source, 1))
        for at in chain(start + rng.permutation(stop - start), rng.permutation(self.total)):
            yield int(places[at][0]), int(places[at][1])

    def _shuffle(self, epoch: int) -> tuple[Int[np.ndarray, "samples 2"], Int[np.ndarray, " windows"]]:
        """Places in their order, and where each window starts."""
        rng = np.random.default_rng((self.seed, epoch, self.source))
        shards = rng.permutation(len(self.counts))
        windows = []
        for start in range(0, len(shards), self.window):
            chosen = shards[start : start + self.window]
            counts = self.counts[chosen]
            samples = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            windows.append(rng.permutation(np.stack([np.repeat(chosen, counts), samples], axis=1).astype(np.int32)))
        starts = np.cumsum([0, *(len(window) for window in windows[:-1])])
        return np.concatenate(windows), starts


class ShardFile:
    """A tar of samples, read piece by piece: what processes share lies in the system's cache, in none of them. Nothing
    in it is decoded, run or unpickled here."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ValueError naming the member where it is no tar of `uid.extension` files, each sample's together."""
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self.uids: list[str] = []
        self._members: list[dict[str, tuple[int, int]]] = []
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    self._add(member)
        except tarfile.TarError as error:
            raise ValueError(f"not a whole tar ({error})") from error
        if len(set(self.uids)) != len(self.uids):
            raise ValueError("the members of a sample are apart")

    def _add(self, member: tarfile.TarInfo) -> None:
        uid, _, extension = member.name.partition(".")
        whole = member.offset_data + member.size <= self._size
        if not member.isreg() or not uid or not extension or "/" in member.name or not whole:
            raise ValueError(f"member {member.name!r} is not a whole field of a sample")
        if not self.uids or self.uids[-1] != uid:
            self.uids.append(uid)
            self._members.append({})
        if extension in self._members[-1]:
            raise ValueError(f"member {member.name!r} is repeated")
        self._members[-1][extension] = (member.offset_data, member.size)

    def __len__(self) -> int:
        return len(self._members)

    def __getitem__(self, index: int) -> "Fields":
        return Fields(self._file, self._members[index])


class Fields(Mapping[str, bytes]):
    """The fields of one sample by extension; read when asked for."""

    def __init__(self, file: BinaryIO, places: dict[str, tuple[int, int]]) -> None:
        """places: offset and size of each in the file."""
        self._file = file
        self._places = places

    def __getitem__(self, name: str) -> bytes:
        offset, size = self._places[name]
        # neither a seek, which processes would share after a fork, nor a memory map, whose faults kill
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise ValueError(f"field {name!r} is cut off")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class ShardReader(Generic[Sample]):
    """Samples by place. The `window` shards used last stay open; a shard is checked against its record when opened."""

    def __init__(
        self,
        files: DatasetFiles,
        folder: str,
        shards: tuple[ShardRecord, ...],
        window: int,
        decode: Callable[[Mapping[str, bytes]], Sample],
    ) -> None:
        """decode: a sample from its fields; raises ValueError where they are none."""
        self.files = files
        self.folder = folder
        self.shards = shards
        self.window = window
        self.decode = decode
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._bad: dict[int, ShardError] = {}

    def name(self, shard: int) -> str:
        return f"{self.files.location}/{self.folder}/{self.shards[shard].name}"

    def __call__(self, shard: int, index: int) -> Sample:
        """Raises ShardError naming the file where a shard is missing, damaged, or holds what is no sample."""
        if shard in self._bad:
            raise self._bad[shard]
        if shard not in self._open:
            try:
                self._open[shard] = self._read(shard)
            except ShardError as error:
                self._bad[shard] = error  # neither fetched nor summed again for each of its samples
                raise
        self._open.move_to_end(shard)
        while len(self._open) > self.window:
            self._open.popitem(last=False)
        try:
            return self.decode(self._open[shard][index])
        except (ValueError, OSError) as error:
            raise ShardError(f"{self.name(shard)}: sample {index}: {error}; {REMEDY}") from error

    def _read(self, shard: int) -> ShardFile:
        record = self.shards[shard]
        try:
            file = ShardFile(self.files.open(f"{self.folder}/{record.name}", record.sha256, record.bytes))
        except (ValueError, OSError) as error:
            raise ShardError(f"{self.name(shard)}: {error}; {REMEDY}") from error
        if len(file) != record.count:
            raise ShardError(f"{self.name(shard)}: holds {len(file)} samples, its record says {record.count}; {REMEDY}")
        return file


class SkipBudget:
    """The shards that were passed over so far: by one process, or by all of a run."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.passed_over: dict[str, str] = {}
        """Why, by name."""

    def spend(self, name: str, error: ShardError) -> None:
        """Raises UserError where one more shard is too many."""
        if name in self.passed_over:
            return
        self.passed_over[name] = str(error)
        if len(self.passed_over) > self.shards:
            raise UserError(
                f"{error} (shards passed over: {len(self.passed_over)}, more than data.skip_budget, {self.shards})"
            ) from error
