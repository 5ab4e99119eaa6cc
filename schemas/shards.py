"""Read and write shards: tar files of samples. A reader checks a shard against its recorded sha256 before it uses a
byte of it, and nothing in it is decoded, run or unpickled here."""

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Set
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from schemas.codec import decode
from schemas.dataset import ShardRecord, by_repair, read_dataset_json, read_ledger, shard_path
from schemas.errors import UsageError, UserError
from schemas.patience import watched
from schemas.sample import Regime, TextureSample
from schemas.storage import Location

MAX_MEMBER_BYTES = 1 << 28
"""Largest field that a reader accepts."""
MAX_HEADER_BYTES = 1 << 16
"""Largest header of a member that a reader accepts; those of a shard have 512 bytes, or 2,048 for a long uid."""
_TAR_END = bytes(2 * tarfile.BLOCKSIZE)


def write_tar(file: BinaryIO, samples: Iterable[tuple[str, Mapping[str, bytes | Path]]]) -> int:
    """Write samples as a tar and return their number. A sample is its uid and its fields by extension, each as bytes or
    as a file. Equal samples give equal bytes: samples in the order given, fields by extension, no times, no owners."""
    count = 0
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for uid, fields in samples:
            count += 1
            for extension, field in sorted(fields.items()):
                info = tarfile.TarInfo(f"{uid}.{extension}")
                info.mode = 0o644
                with io.BytesIO(field) if isinstance(field, bytes) else field.open("rb") as content:
                    info.size = content.seek(0, os.SEEK_END)
                    content.seek(0)
                    tar.addfile(info, content)
    return count


class Fields(Mapping[str, bytes]):
    """The fields of one sample by extension, each read from its shard when asked for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.places: dict[str, tuple[int, int]] = {}
        """Offset and size of each in the file, bytes."""

    def __getitem__(self, name: str) -> bytes:
        offset, size = self.places[name]
        # neither a seek, which processes would share after a fork, nor a memory map, whose faults kill
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise ValueError(f"field {name!r} is cut off")
        return data

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


class _Headers(io.RawIOBase):
    """An open tar, of which `tarfile` reads headers alone: it takes memory for whatever size they declare."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise ValueError(f"a header before byte {self.tell()} declares {size} bytes of text")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


class ShardFile:
    """An open shard: an index of its members, so that samples can be read in any order, field by field. What processes
    share of it lies in the system's cache, in none of them."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises ValueError naming the member where a tar is not whole, or holds anything but files `uid.extension` of
        at most `MAX_MEMBER_BYTES`, each once, those of a sample together."""
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._samples: dict[str, Fields] = {}
        file.seek(0)
        try:
            with tarfile.open(fileobj=_Headers(file), mode="r:") as tar:
                for member in tar:
                    self._add(member)
        except tarfile.TarError as error:
            raise ValueError(f"not a whole tar ({error})") from error
        except RecursionError as error:  # tarfile reads the headers before a member one within the other
            raise ValueError(f"headers without end and no member, before byte {file.tell()}") from error
        if os.pread(file.fileno(), len(_TAR_END), tar.offset) != _TAR_END:  # tarfile stops at any broken header
            raise ValueError(f"ends, or has no header, at byte {tar.offset}")
        self.uids = list(self._samples)

    def _add(self, member: tarfile.TarInfo) -> None:
        uid, _, extension = member.name.partition(".")
        if not member.isreg() or "/" in member.name or not uid or not extension:
            raise ValueError(f"member {member.name!r} is not a field of a sample")
        if member.size > min(MAX_MEMBER_BYTES, self._size - member.offset_data):
            raise ValueError(f"member {member.name!r} of {member.size} bytes is too large, or not whole")
        if uid not in self._samples:
            self._samples[uid] = Fields(self._file)
        elif uid != next(reversed(self._samples)):
            raise ValueError(f"member {member.name!r} is apart from the others of its sample")
        places = self._samples[uid].places
        if extension in places:
            raise ValueError(f"member {member.name!r} is repeated")
        places[extension] = member.offset_data, member.size

    def __len__(self) -> int:
        return len(self.uids)

    def __getitem__(self, index: int) -> Fields:
        return self._samples[self.uids[index]]

    def items(self) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Yield (uid, fields) of every sample, read whole."""
        return ((uid, dict(fields)) for uid, fields in self._samples.items())


def require_recorded(file: BufferedReader, sha256: str, size: int) -> None:
    """Raise ValueError unless an open file has the recorded bytes. Afterwards it stands at its start."""
    found = os.fstat(file.fileno()).st_size
    if found != size:
        raise ValueError(f"{found} bytes, {size} were written")
    if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
        raise ValueError("damaged, its sha256 is not the recorded one")
    file.seek(0)


def read_shard(path: Location) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (uid, fields) of every sample of a shard without a record. Raises ValueError as `ShardFile`."""
    with path.open("rb") as file:
        yield from ShardFile(file).items()


def read_samples(out: Location, shard: ShardRecord) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Yield (uid, fields) of every sample of a recorded shard; nothing if its bytes are not the recorded ones. Raises
    UserError where it is missing or damaged."""
    path, remedy = shard_path(out, shard.name), by_repair(out)
    try:
        with watched(path):
            file = path.open("rb")
        with file:
            with watched(path):
                require_recorded(file, shard.sha256, shard.bytes)
                samples = ShardFile(file)
            if len(samples) != shard.count:
                raise ValueError(f"{len(samples)} samples, {shard.count} are recorded")
            yield from samples.items()
    except FileNotFoundError as error:
        raise UserError(f"{path}: missing; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error


def stored_samples(out: Location, *regimes: Regime, uids: Set[str] = frozenset()) -> Iterator[TextureSample]:
    """Yield every sample of some regimes, in ledger order; uids: those alone, and shards without one are not read.
    Raises UserError where `out` is no dataset, or a shard is damaged; UsageError for a uid that has no sample."""
    read_dataset_json(out)
    parts = read_ledger(out)
    shards_of = {outcome.uid: outcome.shard for part in parts for outcome in part.outcomes if outcome.shard}
    if unknown := sorted(uids - shards_of.keys()):
        raise UsageError(f"{out}: has no sample {unknown[0]!r}; its ledger lists the uids (`seqtex report` shows them)")
    wanted = {shards_of[uid] for uid in uids}
    for shard in (shard for part in parts for shard in part.shards):
        if shard.regime in regimes and (shard.name in wanted or not uids):
            for uid, fields in read_samples(out, shard):
                if uids and uid not in uids:
                    continue
                try:
                    yield decode(fields)
                except ValueError as error:
                    path = shard_path(out, shard.name)
                    raise UserError(f"{path}: sample {uid}: {error}; {by_repair(out)}") from error
