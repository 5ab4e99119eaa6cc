"""The files of a dataset: in a directory, or at a URL that fsspec reads (`s3://`, `gs://`, `https://`,
...), whose shards pass through a bounded cache on this machine's disk."""

import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

from schemas.dataset import PART_NAME, file_sha256, indexed_parts, write_file
from schemas.errors import UserError
from schemas.storage import ObjectPath

REMEDY = "run `seqtex repair` on the dataset"
ATTEMPTS = 3
"""How often a remote file is asked for."""
RETRY_SECONDS = 0.5
"""Before the second attempt; twice that before each further one."""
STALE_SECONDS = 86_400
"""Age at which a temporary file has no owner any more."""


class ShardError(UserError):
    """A shard is missing, unreachable, or not what its record says: what the skip budget is for."""


@runtime_checkable
class DatasetFiles(Protocol):
    """The files of one dataset."""

    location: str
    folder: Path
    """`dataset.json` and the ledger, on this machine."""

    def open(self, name: str, sha256: str, size: int) -> BinaryIO:
        """A file of the dataset, checked. Raises ShardError naming it where it is missing or another one."""
        ...

    def read(self, name: str) -> bytes:
        """A small file as it is. Raises FileNotFoundError."""
        ...

    def missing(self, name: str, size: int) -> bool:
        """Return whether a file is known, at no cost, to be missing or of another size."""
        ...


def open_dataset(location: str, cache_directory: Path, cache_bytes: int) -> DatasetFiles:
    """Raises UserError where a remote dataset has no index or cannot be reached."""
    if "://" not in location:
        return LocalFiles(Path(location))
    return RemoteFiles(location, FileCache(cache_directory, cache_bytes))


class LocalFiles:
    """A dataset in a directory. A file's sum is taken when it is opened, again only after it has changed."""

    def __init__(self, directory: Path) -> None:
        self.location = str(directory)
        self.folder = directory
        self._verified: dict[str, tuple[int, int, int]] = {}

    def open(self, name: str, sha256: str, size: int) -> BinaryIO:
        path = self.folder / name
        try:
            file = path.open("rb")
        except OSError as error:
            raise ShardError(f"{path}: its record names this file but it is missing ({error}); {REMEDY}") from error
        stat = os.fstat(file.fileno())
        state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        if self._verified.get(name) != state:
            if stat.st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                file.close()
                raise ShardError(f"{path}: its {stat.st_size} bytes are not those on record; {REMEDY}")
            self._verified[name] = state
            file.seek(0)
        return file

    def read(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def missing(self, name: str, size: int) -> bool:
        path = self.folder / name
        return not path.is_file() or path.stat().st_size != size


class RemoteFiles:
    """A dataset behind an address. `index.json` says which ledger parts it has, so that nothing is ever listed."""

    def __init__(self, location: str, cache: "FileCache") -> None:
        self.location = location.rstrip("/")
        self.cache = cache
        try:
            index = self.read("index.json")
        except FileNotFoundError as error:
            raise UserError(f"{self.location}: no index.json there; give the folder of a finished build") from error
        self.folder = cache.directory / "datasets" / hashlib.sha256(self.location.encode() + index).hexdigest()[:32]
        self._mirror(indexed_parts(index))

    def _mirror(self, parts: dict[str, str]) -> None:
        """`dataset.json` and the ledger into `folder`."""
        (self.folder / "ledger").mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "dataset.json", self.read("dataset.json"))
        for name, sha256 in parts.items():
            path = self.folder / "ledger" / name
            if not PART_NAME.fullmatch(name) or (path.is_file() and file_sha256(path) == sha256):
                continue
            data = self.read(f"ledger/{name}")
            if hashlib.sha256(data).hexdigest() != sha256:
                raise UserError(f"{self.location}/ledger/{name}: not what index.json says; copy the dataset again")
            write_file(path, data)

    def open(self, name: str, sha256: str, size: int) -> BinaryIO:
        return self.cache.open(f"{self.location}/{name}", sha256, size)

    def read(self, name: str) -> bytes:
        temporary = self.cache.directory / f".{os.getpid()}.{time.monotonic_ns()}.tmp"
        try:
            fetch(f"{self.location}/{name}", temporary)
            return temporary.read_bytes()
        finally:
            temporary.unlink(missing_ok=True)

    def missing(self, name: str, size: int) -> bool:
        return False


class FileCache:
    """Remote files on this machine's disk, named by their sha256: whole or not there. The files used longest ago go
    first. Any number of processes may share one."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory.expanduser()
        self.max_bytes = max_bytes
        (self.directory / "files").mkdir(parents=True, exist_ok=True)
        (self.directory / "locks").mkdir(exist_ok=True)

    def open(self, url: str, sha256: str, size: int) -> BinaryIO:
        """Raises ShardError where the file cannot be had or is not the one on record."""
        path = self.directory / "files" / sha256
        with self._lock(sha256[:2]):  # one process fetches, the others wait for it
            try:
                file: BinaryIO = path.open("rb")
            except FileNotFoundError:
                file = self._fetch(url, path, size)
            os.utime(file.fileno())
            return file

    def _fetch(self, url: str, path: Path, size: int) -> BinaryIO:
        """Opened before it is in its place: another process that makes room cannot take it away."""
        self._make_room(size)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            try:
                fetch(url, temporary)
            except FileNotFoundError as error:
                raise ShardError(f"{url}: its record names this file but it is missing; {REMEDY}") from error
            found = temporary.stat().st_size
            if found != size or file_sha256(temporary) != path.name:
                raise ShardError(f"{url}: its {found} bytes are not those on record; {REMEDY}")
            file = temporary.open("rb")
            temporary.replace(path)
            return file
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Removes what was used longest ago until `size` more bytes fit."""
        with self._lock("room"):
            files = []
            for path in (self.directory / "files").iterdir():
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # written to its end by another process, under its other name now
                if not path.name.startswith("."):
                    files.append((stat.st_mtime_ns, stat.st_size, path))
                elif time.time() - stat.st_mtime > STALE_SECONDS:
                    path.unlink(missing_ok=True)
            for _, taken, path in sorted(files, reverse=True):
                size += taken
                if size > self.max_bytes:
                    path.unlink(missing_ok=True)

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        with (self.directory / "locks" / name).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # given up when the file closes, or its process dies
            yield


def fetch(url: str, path: Path) -> None:
    """The file behind an address as `path`. What may pass is tried again.

    Raises:
        FileNotFoundError: there is no such file.
        ShardError: it cannot be had.
        UserError: fsspec has no way to such an address.
    """
    for attempt in range(ATTEMPTS):
        try:
            return ObjectPath(url).download(path)
        except FileNotFoundError:
            raise
        except OSError as error:
            if attempt == ATTEMPTS - 1:
                raise ShardError(f"{url}: not to be had after {ATTEMPTS} attempts ({error.strerror})") from error
            time.sleep(RETRY_SECONDS * 2**attempt)


def read_json(data: bytes, name: str) -> dict[str, object]:
    """Raises UserError naming the file where it is no JSON object."""
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: damaged ({error})") from error
    if not isinstance(entries, dict):
        raise UserError(f"{name}: damaged (no JSON object)")
    return entries
