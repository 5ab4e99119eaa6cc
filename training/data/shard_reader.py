"""Read samples of shards: by place, in any order."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

from schemas.dataset import ShardRecord
from schemas.errors import UserError
from schemas.shards import ShardFile
from training.data.dataset_files import REMEDY, DatasetFiles, ShardError

Sample = TypeVar("Sample")


class ShardReader(Generic[Sample]):
    """A reader of samples by place. The `window` shards used last stay open; each is checked against its record when it
    is opened."""

    def __init__(
        self,
        files: DatasetFiles,
        folder: str,
        shards: tuple[ShardRecord, ...],
        window: int,
        decode: Callable[[Mapping[str, bytes]], Sample],
    ) -> None:
        """decode: make a sample from its fields; raises ValueError where they are not one."""
        self.files = files
        self.folder = folder
        self.shards = shards
        self.window = window
        self.decode = decode
        self._open: OrderedDict[int, ShardFile] = OrderedDict()
        self._bad: dict[int, ShardError] = {}

    def name(self, shard: int) -> str:
        """Return the location of a shard, for messages."""
        return f"{self.files.location}/{self.folder}/{self.shards[shard].name}"

    def __call__(self, shard: int, index: int) -> Sample:
        """Read a sample. Raises ShardError naming the file where a shard is missing or damaged, or the sample is."""
        if shard in self._bad:
            raise self._bad[shard]
        if shard not in self._open:
            try:
                self._open[shard] = self._read(shard)
            except ShardError as error:
                self._bad[shard] = error  # it is neither fetched nor hashed again for each of its samples
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
            if len(file) != record.count:
                raise ValueError(f"{len(file)} samples, {record.count} are recorded")
        except (ValueError, OSError) as error:
            raise ShardError(f"{self.name(shard)}: {error}; {REMEDY}") from error
        return file


class SkipBudget:
    """The shards skipped so far, by one process or by all of a run, and how many may be."""

    def __init__(self, shards: int) -> None:
        self.shards = shards
        self.skipped: dict[str, str] = {}
        """Reason by name."""

    def spend(self, name: str, error: ShardError) -> None:
        """Count a shard as skipped. Raises UserError where that is one too many."""
        if name in self.skipped:
            return
        self.skipped[name] = str(error)
        if len(self.skipped) > self.shards:
            raise UserError(
                f"{error} (shards skipped: {len(self.skipped)}, more than data.skip_budget, {self.shards})"
            ) from error
