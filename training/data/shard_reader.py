"""Read samples of shards: by place, in any order."""

import os
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO, Generic, TypeVar

from schemas.dataset import ShardRecord
from schemas.errors import UserError
from training.data.dataset_files import REMEDY, DatasetFiles, ShardError

Sample = TypeVar("Sample")


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
