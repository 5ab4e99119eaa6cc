"""The journal of a job: the results of its assets, on disk as they come. A job that is killed and done again takes them
from there. A journal is no part of the dataset, and it decides no byte of it."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from pipeline.config import BuildConfig
from pipeline.dataset.shards import JOURNAL_NAME
from pipeline.executor.asset_result import AssetResult
from schemas.codec import fields_like
from schemas.dataset import UNREADABLE, canonical_json, code_version, outcome_of, part_path
from schemas.errors import explained, redacted
from schemas.ledger import Counts, Outcome, counts_of
from schemas.mesh import MeshRef
from schemas.plan import ShardJob
from schemas.shards import MAX_MEMBER_BYTES
from schemas.storage import Location, ObjectPath, sync_directory, working_folder

SYNC_S = 5.0
"""Seconds after which records are flushed to the disk. A kill loses none of them, a power cut those since then."""
MAX_HEAD_BYTES = 1 << 20
"""Longest first line of a record that a reader accepts."""
_PICTURE = "picture"
_DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True, slots=True, kw_only=True)
class _Head:
    """The first line of a record."""

    key: str
    """Hash of all that the result depends on."""
    outcome: Outcome
    stage_seconds: float
    sizes: dict[str, int]
    """Bytes of each field of the sample, and of the picture, in the order in which they follow."""

    def line(self) -> bytes:
        return canonical_json([self.key, self.outcome.row(), self.stage_seconds, list(self.sizes.items())]) + b"\n"

    @staticmethod
    def read(line: bytes) -> "_Head":
        """Raises one of `UNREADABLE` where a line is none."""
        key, row, stage_seconds, sizes = json.loads(line)
        head = _Head(key=key, outcome=outcome_of(row), stage_seconds=float(stage_seconds), sizes=dict(sizes))
        regime, fields = head.outcome.regime, head.sizes.keys() - {_PICTURE}
        if fields != (fields_like(regime, fields) if regime else frozenset()):
            raise ValueError(f"fields {sorted(fields)}")
        if any(type(size) is not int or not 0 <= size <= MAX_MEMBER_BYTES for size in head.sizes.values()):
            raise ValueError(f"sizes {head.sizes}")
        return head


class Journal(AbstractContextManager["Journal"]):
    """The results of one attempt at a job, and those of earlier attempts that were killed.

    Every attempt writes a file of its own: attempts at one job may run side by side."""

    def __init__(self, out: Location, job: ShardJob, cfg: BuildConfig) -> None:
        self._out, self._job = out, job
        self._keys = _keys(out, job, cfg)
        self._file: BinaryIO | None = None
        self._synced = -float("inf")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def results(self, directory: Path) -> dict[str, AssetResult]:
        """Return the results that earlier attempts have left, by uid, their files below `directory`. A record counts if
        it is whole, has its hash, and was made of the same asset by the same configuration and program."""
        found: dict[str, AssetResult] = {}
        if isinstance(self._out, ObjectPath):
            self._remove_finished()
        for path in _journals(self._out, self._job.index):
            with path.open("rb") as file:
                for head, line in _records(file, set(self._keys.values())):
                    try:
                        result = _read(file, head, line, directory / f"{len(found):06d}")
                    except ValueError:
                        break  # damaged: nothing behind it is sure to be where it says
                    found[result.outcome.uid] = result
        return found

    def append(self, result: AssetResult) -> None:
        """Write the result of an asset. Raises UserError where that fails."""
        outcome = replace(result.outcome, detail=redacted(result.outcome.detail))
        sizes = {file.name: file.stat().st_size for file in result.files}
        if result.picture:
            sizes[_PICTURE] = len(result.picture)
        head = _Head(key=self._keys[outcome.uid], outcome=outcome, stage_seconds=result.stage_seconds, sizes=sizes)
        remedy = "fix that and run the same command again, finished assets are kept"
        with explained(self._out, f"cannot write job {self._job.index}", remedy):
            self._write(head.line(), result)

    def _write(self, line: bytes, result: AssetResult) -> None:
        file = self._file = self._file or self._create()
        sha256 = hashlib.sha256(line)
        file.write(line)
        for data in (*(field.read_bytes() for field in result.files), result.picture):
            sha256.update(data)
            file.write(data)
        file.write(sha256.digest())
        file.flush()
        if (now := time.monotonic()) - self._synced >= SYNC_S:
            os.fsync(file.fileno())
            self._synced = now

    def _create(self) -> BinaryIO:
        folder = working_folder(self._out)
        handle, _ = tempfile.mkstemp(prefix=f"journal-{self._job.index:06d}-", dir=folder)
        sync_directory(folder)
        return os.fdopen(handle, "wb")

    def _remove_finished(self) -> None:
        """Remove the journals on this machine of jobs that another one has finished since."""
        for path in _journals(self._out):
            number = _number(path)
            if number not in (None, self._job.index) and part_path(self._out, number).exists():
                path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove every journal of the job: its results are committed."""
        for path in _journals(self._out, self._job.index):
            path.unlink(missing_ok=True)


def counts_ahead(out: Location, jobs: Sequence[ShardJob], cfg: BuildConfig) -> Iterator[tuple[int, Counts]]:
    """Yield the jobs of which a killed attempt has left results, and their counts. The results themselves are verified
    when the job takes them."""
    numbers = {number for path in _journals(out) if (number := _number(path)) is not None}
    for job in jobs:
        if job.index in numbers:
            keys, rows = _keys(out, job, cfg), dict[str, Outcome]()
            for path in _journals(out, job.index):
                with path.open("rb") as file:
                    for head, _ in _records(file, set(keys.values())):
                        rows[head.outcome.uid] = head.outcome
            yield job.index, counts_of(rows.values())


def _keys(out: Location, job: ShardJob, cfg: BuildConfig) -> dict[str, str]:
    """Return a hash for each asset of a job: of its reference, the configuration, the program, and what is committed of
    the job. So a job that is done again although it is finished takes nothing from before."""
    path = part_path(out, job.index)
    committed = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
    common = [job.index, job.folder, asdict(cfg), code_version(), committed]

    def key(ref: MeshRef) -> str:
        return hashlib.sha256(canonical_json([asdict(ref), common])).hexdigest()

    return {ref.uid: key(ref) for ref in job.refs}


def _journals(out: Location, job: int | None = None) -> list[Path]:
    folder = working_folder(out)
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in paths if (number := _number(path)) is not None and job in (None, number)]


def _number(path: Path) -> int | None:
    match = JOURNAL_NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def _records(file: BinaryIO, keys: Container[str]) -> Iterator[tuple[_Head, bytes]]:
    """Yield the head of each whole record with one of some keys, as it is and as its line; the file then stands behind
    that line. A tail that was not written to its end is no record."""
    size = os.fstat(file.fileno()).st_size
    while (line := file.readline(MAX_HEAD_BYTES)).endswith(b"\n"):
        try:
            head = _Head.read(line)
        except UNREADABLE:
            return
        end = file.tell() + sum(head.sizes.values()) + _DIGEST_BYTES
        if end > size:
            return
        if head.key in keys:
            yield head, line
        file.seek(end)


def _read(file: BinaryIO, head: _Head, line: bytes, folder: Path) -> AssetResult:
    """Read the rest of a record, its fields into `folder`. Raises ValueError where its hash is another one."""
    folder.mkdir(parents=True)
    sha256, files, picture = hashlib.sha256(line), list[Path](), b""
    for name, size in head.sizes.items():
        data = file.read(size)
        sha256.update(data)
        if name == _PICTURE:
            picture = data
        else:
            files.append(folder / name)
            files[-1].write_bytes(data)
    if file.read(_DIGEST_BYTES) != sha256.digest():
        raise ValueError(f"{folder.name}: its sha256 is not the recorded one")
    return AssetResult(outcome=head.outcome, files=tuple(files), stage_seconds=head.stage_seconds, picture=picture)
