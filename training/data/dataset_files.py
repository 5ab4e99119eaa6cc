"""The files of a dataset: in a directory, or at a URL that fsspec reads (`s3://`, `gs://`, `https://`, ...), with a
bounded cache of its shards on this machine's disk."""

import hashlib
import json
import logging
import os
import shutil
import socket
import time
from functools import partial
from io import BufferedReader
from pathlib import Path

from filelock import FileLock

from schemas.dataset import PART_NAME, indexed_parts
from schemas.errors import UserError
from schemas.patience import watched
from schemas.shards import require_recorded
from schemas.storage import ObjectPath, file_sha256, retried, write_file

log = logging.getLogger(__name__)

REMEDY = "run `seqtex repair` on the dataset"
ATTEMPTS = 3
"""Requests for a remote file, at most."""
RETRY_SECONDS = 0.5
"""Pause before the second attempt; twice that before each further one."""
STALE_SECONDS = 86_400
"""Age at which a temporary file has no owner any more."""


class ShardError(UserError):
    """A shard is missing, unreachable, or not the recorded one: what the skip budget is for."""


STARTED = time.time()
"""The start of this process; of a loader's process that of the one it was forked from."""
SAME_RUN_SECONDS = 600
"""Ranks of a run start at most so long apart."""
FORGOTTEN_SECONDS = 30 * 86_400
"""Age at which notes on a dataset that nobody has opened since are removed."""


class Verified:
    """Notes on the files of a dataset that a process of this machine has found to be the recorded ones, so that one
    process reads each file for it and the others do not. A note from before this run, or on a file that has changed
    since, does not count."""

    def __init__(self, cache_directory: Path, folder: Path) -> None:
        """folder: that of the dataset. Raises OSError where no notes can be made."""
        notes = cache_directory.expanduser() / "verified"
        self.directory = notes / hashlib.sha256(f"{socket.gethostname()} {folder.absolute()}".encode()).hexdigest()[:32]
        self.directory.mkdir(parents=True, exist_ok=True)
        os.utime(self.directory)
        for path in notes.iterdir():
            if time.time() - path.stat().st_mtime > FORGOTTEN_SECONDS:
                shutil.rmtree(path, ignore_errors=True)

    def require(self, file: BufferedReader, path: Path, sha256: str, size: int) -> None:
        """Raise ShardError, and close the file, where it has other bytes than the recorded ones."""
        place, stat = hashlib.sha256(str(path).encode()).hexdigest(), os.fstat(file.fileno())
        state = f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns} {sha256}"
        note = self.directory / place
        self.directory.mkdir(exist_ok=True)
        with FileLock(self.directory / f"{place[:2]}.lock", fallback_to_soft=False):  # one reads, the others wait
            if _noted(note) != state:
                _require(file, str(path), sha256, size)
                note.write_text(state)


def _noted(note: Path) -> str:
    """Return the state that a file had when it was verified in this run; empty: it was not."""
    try:
        return note.read_text() if note.stat().st_mtime >= STARTED - SAME_RUN_SECONDS else ""
    except FileNotFoundError:
        return ""


def notes_of(cache_directory: Path, folder: Path) -> Verified | None:
    """Return the notes on a dataset beside a cache; None, with a warning, where none can be made."""
    try:
        return Verified(cache_directory, folder)
    except OSError as error:
        log.warning("%s: %s; every process that reads checks every shard", cache_directory, error.strerror)
        return None


class LocalFiles:
    """A dataset in a directory. A file's sha256 is checked when it is first opened, and again after it has changed."""

    def __init__(self, directory: Path, notes: Verified | None = None) -> None:
        """notes: on what other processes have checked; None: this one checks all that it opens."""
        self.location = str(directory)
        self.folder = directory
        """`dataset.json` and the ledger, on this machine."""
        self._notes = notes
        self._verified: dict[str, tuple[int, int, int]] = {}

    def open(self, name: str, sha256: str, size: int) -> BufferedReader:
        """Open a recorded file. Raises ShardError naming it where it is missing or has other bytes."""
        path = self.folder / name
        with watched(path):
            try:
                file = path.open("rb")
            except OSError as error:
                raise ShardError(f"{path}: its record names this file but it is missing ({error}); {REMEDY}") from error
            stat = os.fstat(file.fileno())
            state = (stat.st_ino, stat.st_size, stat.st_mtime_ns)
            if self._verified.get(name) != state:
                if self._notes is None:
                    _require(file, str(path), sha256, size)
                else:
                    self._notes.require(file, path, sha256, size)
                self._verified[name] = state
            return file

    def read(self, name: str) -> bytes:
        """Read a small file. Raises FileNotFoundError."""
        return (self.folder / name).read_bytes()

    def missing(self, name: str, size: int) -> bool:
        """Return whether a file is known, at no cost, to be missing or of another size."""
        path = self.folder / name
        return not path.is_file() or path.stat().st_size != size


class RemoteFiles:
    """A dataset at a URL, with the methods of `LocalFiles`. Its ledger parts are those in `index.json`."""

    def __init__(self, location: str, cache: "FileCache") -> None:
        """Raises UserError where there is no index."""
        self.location = location.rstrip("/")
        self.cache = cache
        try:
            index = self.read("index.json")
        except FileNotFoundError as error:
            raise UserError(f"{self.location}: no index.json there; give the folder of a finished build") from error
        self.folder = cache.directory / "datasets" / hashlib.sha256(self.location.encode() + index).hexdigest()[:32]
        self._mirror(indexed_parts(index))

    def _mirror(self, parts: dict[str, str]) -> None:
        """Copy `dataset.json` and the ledger into `folder`."""
        (self.folder / "ledger").mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "dataset.json", self.read("dataset.json"))
        for name, sha256 in parts.items():
            path = self.folder / "ledger" / name
            if not PART_NAME.fullmatch(name) or (path.is_file() and file_sha256(path) == sha256):
                continue
            data = self.read(f"ledger/{name}")
            if hashlib.sha256(data).hexdigest() != sha256:
                raise UserError(f"{self.location}/ledger/{name}: not as index.json lists it; copy the dataset again")
            write_file(path, data)

    def open(self, name: str, sha256: str, size: int) -> BufferedReader:
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


DatasetFiles = LocalFiles | RemoteFiles
"""The files of one dataset."""


def open_dataset(location: str, cache_directory: Path, cache_bytes: int) -> DatasetFiles:
    """Open the files of a dataset. Raises UserError where a remote dataset has no index or cannot be reached."""
    if "://" not in location:
        return LocalFiles(Path(location), notes_of(cache_directory, Path(location)))
    return RemoteFiles(location, FileCache(cache_directory, cache_bytes))


class FileCache:
    """Remote files on this machine's disk, named by their sha256: whole or not there. The files used longest ago are
    removed first. Any number of processes may share one."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        self.directory = directory.expanduser()
        self.max_bytes = max_bytes
        (self.directory / "files").mkdir(parents=True, exist_ok=True)
        (self.directory / "locks").mkdir(exist_ok=True)

    def open(self, url: str, sha256: str, size: int) -> BufferedReader:
        """Open a recorded file. Raises ShardError where it cannot be fetched or has other bytes."""
        path = self.directory / "files" / sha256
        with self._lock(sha256[:2]):  # one process fetches, the others wait for it
            try:
                file = path.open("rb")
            except FileNotFoundError:
                file = self._fetch(url, path, size)
            os.utime(file.fileno())
            return file

    def _fetch(self, url: str, path: Path, size: int) -> BufferedReader:
        """Fetch a file. It is opened before it gets its name: another process that makes room cannot take it away."""
        self._make_room(size)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            try:
                fetch(url, temporary)
            except FileNotFoundError as error:
                raise ShardError(f"{url}: its record names this file but it is missing; {REMEDY}") from error
            file = temporary.open("rb")
            _require(file, url, path.name, size)
            temporary.replace(path)
            return file
        finally:
            temporary.unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        """Remove the files used longest ago until `size` more bytes fit."""
        with self._lock("room"):
            files = []
            for path in (self.directory / "files").iterdir():
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # another process has just finished it, under its other name
                if not path.name.startswith("."):
                    files.append((stat.st_mtime_ns, stat.st_size, path))
                elif time.time() - stat.st_mtime > STALE_SECONDS:
                    path.unlink(missing_ok=True)
            for _, taken, path in sorted(files, reverse=True):
                size += taken
                if size > self.max_bytes:
                    path.unlink(missing_ok=True)

    def _lock(self, name: str) -> FileLock:
        """Return a lock of this cache, which the kernel releases when its holder ends."""
        return FileLock(self.directory / "locks" / name, fallback_to_soft=False)


def _require(file: BufferedReader, name: str, sha256: str, size: int) -> None:
    """Raise ShardError, and close the file, where it has other bytes than the recorded ones."""
    try:
        require_recorded(file, sha256, size)
    except ValueError as error:
        file.close()
        raise ShardError(f"{name}: {error}; {REMEDY}") from error


def fetch(url: str, path: Path) -> None:
    """Download the file at a URL to `path`, trying again after errors that may pass.

    Raises:
        FileNotFoundError: there is no such file.
        ShardError: it cannot be fetched.
        UserError: fsspec knows no such scheme.
    """

    def pause_s(attempt: int, error: OSError) -> float | None:
        final = attempt == ATTEMPTS or isinstance(error, FileNotFoundError | TimeoutError)
        return None if final else RETRY_SECONDS * 2 ** (attempt - 1)

    try:
        retried(partial(ObjectPath(url).download, path), OSError, pause_s)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ShardError(f"{url}: cannot be fetched in {ATTEMPTS} attempts ({error.strerror})") from error


def read_json(data: bytes, name: str) -> dict[str, object]:
    """Decode a JSON object. Raises UserError naming the file where it is none."""
    try:
        entries = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: damaged ({error})") from error
    if not isinstance(entries, dict):
        raise UserError(f"{name}: damaged (no JSON object)")
    return entries
