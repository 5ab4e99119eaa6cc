"""Locations of datasets, and whole files in them. A location is a folder (`pathlib.Path`) or a URL that fsspec knows
(`s3://bucket/forge`, `gs://...`); both have the methods of `Location`. A file is whole or not there: in a folder it is
written beside and renamed, to an object store it is uploaded in one piece."""

import contextlib
import errno
import hashlib
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol, Self, TypeVar, runtime_checkable

from schemas.errors import UsageError, UserError
from schemas.patience import ATTEMPTS, Alive, answered

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Extra of this program that brings the client for a scheme."""
SCRATCH = "SEQTEX_SCRATCH"
"""Environment variable: folder for the local files of a build into an object store while it works."""
OTHERS = "wandb"
"""Folder of a run that another program fills, with links of its own."""
Result = TypeVar("Result")
Error = TypeVar("Error", bound=Exception)


class Facts(Protocol):
    """Facts on a file that are known without reading it."""

    @property
    def st_size(self) -> int: ...

    @property
    def st_mtime(self) -> float: ...


@runtime_checkable
class Location(Protocol):
    """A file or folder of a dataset: the part of `pathlib.Path` that reading a dataset takes."""

    @property
    def name(self) -> str: ...

    @property
    def stem(self) -> str: ...

    @property
    def parent(self) -> Self: ...

    def __truediv__(self, name: str, /) -> Self: ...

    def __lt__(self, other: Self, /) -> bool: ...

    def expanduser(self) -> Self: ...

    def absolute(self) -> Self: ...

    def exists(self) -> bool: ...

    def is_file(self) -> bool: ...

    def is_dir(self) -> bool: ...

    def stat(self) -> Facts: ...

    def iterdir(self) -> Iterator[Self]: ...

    def open(self, mode: Literal["rb"]) -> BufferedReader: ...

    def read_bytes(self) -> bytes: ...

    def unlink(self, missing_ok: bool = False) -> None: ...

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None: ...


_NUMBERS = {FileNotFoundError: errno.ENOENT, FileExistsError: errno.EEXIST, PermissionError: errno.EACCES}


@dataclass(frozen=True, slots=True)
class _Found:
    st_size: int
    st_mtime: float


@dataclass(frozen=True, order=True)
class ObjectPath:
    """A URL in an object store. A folder exists while something lies in it.

    Every error of a client is raised as an OSError that names the URL; `FileNotFoundError` if nothing is there."""

    url: str
    """URL without a slash at the end."""

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def parent(self) -> "ObjectPath":
        return ObjectPath(self.url.rpartition("/")[0])

    def __truediv__(self, name: str, /) -> "ObjectPath":
        return ObjectPath(f"{self.url}/{name}")

    def expanduser(self) -> "ObjectPath":
        return self

    def absolute(self) -> "ObjectPath":
        return self

    def exists(self) -> bool:
        return self._info() is not None

    def is_file(self) -> bool:
        info = self._info()
        return info is not None and info["type"] == "file"

    def is_dir(self) -> bool:
        return next(self.iterdir(), None) is not None

    def stat(self) -> Facts:
        if (info := self._info()) is None:
            raise FileNotFoundError(errno.ENOENT, "no such object", self.url)
        at = next((info[key] for key in ("LastModified", "mtime", "created") if info.get(key)), 0.0)
        return _Found(int(info["size"]), at if isinstance(at, float) else at.timestamp())

    def _info(self) -> dict[str, Any] | None:
        """Return facts on a file, None where there is none. fsspec's own `exists` and `isfile` take any error for
        that."""
        with contextlib.suppress(FileNotFoundError):
            return dict(self._ask(lambda store, alive: store.info(self.url)))
        return None

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Yield what lies in a folder; nothing if there is no such folder."""
        with contextlib.suppress(FileNotFoundError):
            found = self._ask(lambda store, alive: store.ls(self.url, detail=False))
            yield from (self / entry.rstrip("/").rpartition("/")[2] for entry in found)

    def open(self, mode: Literal["rb"] = "rb") -> BufferedReader:
        """Open a local copy of the whole object, which is removed when it is closed."""
        handle, name = tempfile.mkstemp(prefix="seqtex-")
        try:
            self.download(Path(name))
            return Path(name).open("rb")
        finally:
            os.close(handle)
            Path(name).unlink()

    def read_bytes(self) -> bytes:
        return bytes(self._ask(lambda store, alive: store.cat_file(self.url)))

    def write_bytes(self, data: bytes, *, new: bool = False) -> None:
        """Write in one upload: readers see the old object or the new one. `new`: raise FileExistsError if there is one,
        in stores that support it (`If-None-Match`, `ifGenerationMatch`)."""
        options = {"mode": "create"} if new else {}
        self._ask(lambda store, alive: store.pipe_file(self.url, data, **options), attempts=1 if new else ATTEMPTS)

    def download(self, file: Path) -> None:
        """Copy the object to a local file."""
        self._ask(lambda store, alive: store.get_file(self.url, str(file), callback=_heard(alive)))

    def upload(self, file: Path) -> None:
        """Upload a file at once, or in parts that the store joins at the end: there is never a part of the object."""
        self._ask(lambda store, alive: store.put_file(str(file), self.url, callback=_heard(alive)))

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    def copy_from(self, source: "ObjectPath") -> None:
        """Copy another object of the same scheme inside the store: its bytes do not pass through this machine."""
        self._ask(lambda store, alive: store.cp_file(source.url, self.url))

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext():
            self._ask(lambda store, alive: store.rm_file(self.url))

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: an object store has no folders."""

    def _ask(self, request: Callable[[Any, Alive], Any], attempts: int = ATTEMPTS) -> Any:
        """Return the answer of the store, which does not wait for it for ever (`schemas.patience`), with every error of
        its client as an OSError that names this URL."""
        try:
            return answered(self.url, lambda alive: request(file_system(self.url), alive), attempts)
        except UserError:
            raise
        except OSError as error:
            number = next((number for kind, number in _NUMBERS.items() if isinstance(error, kind)), error.errno)
            raise OSError(number or errno.EIO, error.strerror or str(error), self.url) from error
        except Exception as error:  # every client has errors of its own, which we could only import with it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OSError(errno.EIO, reason, self.url) from error


def _heard(alive: Alive) -> Any:
    """Return a callback of fsspec that calls `alive` for every piece of a file."""
    from fsspec.callbacks import Callback  # a third of a second, which only remote datasets need

    class Heard(Callback):
        def call(self, *arguments: Any, **options: Any) -> None:
            alive()

    return Heard()


def file_system(url: str) -> Any:
    """Return fsspec's file system for a URL. It caches no listings: others write too.

    Raises UserError if fsspec knows no such scheme, or its client is not installed."""
    import fsspec  # a third of a second, which only remote datasets need

    scheme = url.partition("://")[0]
    try:
        store, _ = fsspec.core.url_to_fs(url, use_listings_cache=False)
    except ImportError as error:
        extra = EXTRAS.get(scheme)
        ours = f"in this program's folder, pip install -c constraints.txt '.[{extra}]' (`make setup` brings it)"
        remedy = ours if extra else "install the package that fsspec asks for"
        raise UserError(f"{url}: cannot be read, its client is not installed ({error}); {remedy}") from error
    except ValueError as error:
        raise UserError(f"{url}: cannot be read ({error}); give a folder, s3://..., gs://...") from error
    return store


def location(text: str | Path) -> Path | ObjectPath:
    """Parse the location of a dataset that a user gives. Raises UsageError where a URL names no bucket."""
    if "://" not in str(text):
        return Path(text)
    scheme, _, rest = str(text).partition("://")
    if scheme == "file":
        return Path(rest)
    if not rest.strip("/"):
        raise UsageError(f"{text}: names no bucket; give e.g. {scheme}://bucket/forge")
    return ObjectPath(str(text).rstrip("/"))


def workspace(out: Location) -> Path:
    """Return the local folder for files of a build that are not part of its dataset: that of the dataset itself; for an
    object store one in $SEQTEX_SCRATCH (else ~/.cache/seqtex/builds), always the same one for a URL."""
    if isinstance(out, Path):
        return out
    folder = Path(os.environ.get(SCRATCH, "~/.cache/seqtex/builds")).expanduser()
    return folder.absolute() / hashlib.sha256(str(out).encode()).hexdigest()[:16]


def working_folder(out: Location) -> Path:
    """Return the folder for jobs in progress; its content may be removed when none is running."""
    return workspace(out) / ".work"


def retried(attempt: Callable[[], Result], error: type[Error], pause_s: Callable[[int, Error], float | None]) -> Result:
    """Return what `attempt` returns, calling it again after each `error` that it raises: `pause_s(number, error)` gives
    the seconds to wait after attempt `number`, counted from 1, or None to raise the error."""
    for number in itertools.count(1):
        try:
            return attempt()
        except error as raised:
            if (pause := pause_s(number, raised)) is None:
                raise
            time.sleep(pause)
    raise AssertionError("unreachable")


def refuse_links(folder: Location) -> None:
    """Raise UserError where a local folder that is about to be written to or published holds a link: a stranger may
    have made it, and what lies behind a link is none of it. The folder itself may be one."""
    todo = [folder] if isinstance(folder, Path) and folder.is_dir() else []
    while todo:
        for path in os.scandir(todo.pop()):
            if path.is_dir(follow_symlinks=False) and path.name != OTHERS:
                todo.append(Path(path))
            if path.is_symlink():
                raise UserError(f"{path.path}: a link, which could lead anywhere; put a file or folder in its place")


def write_in_place(path: Path, text: str) -> None:
    """Write a file that must keep its inode, such as a lock; never through a link. Raises OSError."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    with os.fdopen(handle, "w") as file:
        if os.fstat(handle).st_nlink > 1:
            raise OSError(errno.EMLINK, "has another name elsewhere; delete it", str(path))
        file.truncate()
        file.write(text)


# whole files


def file_sha256(path: Location) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_file(path: Location, data: bytes) -> None:
    """Write all of `data` under `path`, or nothing."""
    if isinstance(path, ObjectPath):
        path.write_bytes(data)
        return
    with staging(path) as file:
        file.write(data)
    place(path)


def staged(path: Location) -> Path:
    """Return the local file that is written before `place` gives it the name `path`."""
    name = f".{path.name}.{os.getpid()}.tmp"
    if isinstance(path, Path):
        return path.with_name(name)
    folder = working_folder(path.parent.parent)
    folder.mkdir(parents=True, exist_ok=True)
    return folder / name


@contextlib.contextmanager
def staging(path: Location) -> Iterator[BinaryIO]:
    """Open the staged file of `path` for writing. It is flushed to the disk at the end, and removed after an error."""
    temporary = staged(path)
    with _named(path, temporary):
        temporary.unlink(missing_ok=True)
        try:
            with temporary.open("xb") as file:  # new, never through a link of that name
                yield file
                file.flush()
                os.fsync(file.fileno())
        except BaseException:  # also an interrupt leaves nothing half-written
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def _named(path: Location, temporary: Path) -> Iterator[None]:
    """Let errors about a staged file name the file that is to be written."""
    try:
        yield
    except OSError as error:
        if error.filename == os.fspath(temporary):
            error.filename = str(path)
        raise


def place(path: Location) -> None:
    """Give the staged file of `path`, flushed before, its final name in one step. It is removed after an error."""
    temporary = staged(path)
    try:
        if isinstance(path, ObjectPath):
            path.upload(temporary)
        else:
            assert isinstance(path, Path)
            with _named(path, temporary):
                temporary.replace(path)
            sync_directory(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def sync_directory(directory: Path) -> None:
    """Make renames in `directory` survive a power cut."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
