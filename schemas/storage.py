"""Location of a dataset: a folder (`pathlib.Path`), or a URL that fsspec knows (`s3://bucket/forge`, `gs://...`).
Both have the methods of `Location`; what a folder does by renaming, an object store does by uploading in one piece."""

import contextlib
import errno
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, Protocol, Self, runtime_checkable

from schemas.errors import UsageError, UserError

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Extra of this program that brings the client for a scheme."""
SCRATCH = "SEQTEX_SCRATCH"
"""Environment variable: folder for what a build into an object store keeps on this machine while it works."""


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
    """A place in an object store. Folders exist as far as something lies in them.

    Whatever a client raises comes out as an OSError that names the address: `FileNotFoundError` where nothing is."""

    url: str
    """Without a slash at the end."""

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
        with contextlib.suppress(FileNotFoundError), self._told() as store:
            return dict(store.info(self.url))
        return None

    def iterdir(self) -> Iterator["ObjectPath"]:
        """Empty where there is no such folder."""
        with contextlib.suppress(FileNotFoundError), self._told() as store:
            names = [entry.rstrip("/").rpartition("/")[2] for entry in store.ls(self.url, detail=False)]
            yield from (self / name for name in names)

    def open(self, mode: Literal["rb"] = "rb") -> BufferedReader:
        """The whole object in a temporary file of this machine, which goes when it is closed."""
        handle, name = tempfile.mkstemp(prefix="seqtex-")
        try:
            self.download(Path(name))
            return Path(name).open("rb")
        finally:
            os.close(handle)
            Path(name).unlink()

    def read_bytes(self) -> bytes:
        with self._told() as store:
            return bytes(store.cat_file(self.url))

    def write_bytes(self, data: bytes, *, new: bool = False) -> None:
        """One upload: readers see the old object or the new one. `new`: raises FileExistsError where there is one, as
        far as the store knows how to (`If-None-Match`, `ifGenerationMatch`)."""
        with self._told() as store:
            if new:
                store.pipe_file(self.url, data, mode="create")
            else:
                store.pipe_file(self.url, data)

    def download(self, file: Path) -> None:
        with self._told() as store:
            store.get_file(self.url, str(file))

    def upload(self, file: Path) -> None:
        """One upload, or one in parts that the store joins at its end: there is never a part of the object."""
        with self._told() as store:
            store.put_file(str(file), self.url)

    @property
    def scheme(self) -> str:
        return self.url.partition("://")[0]

    def copy_from(self, source: "ObjectPath") -> None:
        """A copy of another object of the same scheme, which the store makes: its bytes do not come by this machine."""
        with self._told() as store:
            store.cp_file(source.url, self.url)

    def unlink(self, missing_ok: bool = False) -> None:
        with contextlib.suppress(FileNotFoundError) if missing_ok else contextlib.nullcontext(), self._told() as store:
            store.rm_file(self.url)

    def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: an object store has no folders."""

    @contextlib.contextmanager
    def _told(self) -> Iterator[Any]:
        """The store, its errors as errors of this file. Clients raise what their libraries do."""
        try:
            yield file_system(self.url)
        except UserError:
            raise
        except OSError as error:
            number = next((number for kind, number in _NUMBERS.items() if isinstance(error, kind)), error.errno)
            raise OSError(number or errno.EIO, error.strerror or str(error), self.url) from error
        except Exception as error:  # every client has errors of its own, which we could only import with it
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise OSError(errno.EIO, reason, self.url) from error


def file_system(url: str) -> Any:
    """fsspec's file system behind an address. It keeps no listings: others write too.

    Raises UserError where fsspec knows no such scheme, or its client is not installed."""
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
    """The folder on this machine for what belongs to a build and not to its dataset: that of the dataset itself, for an
    object store one in $SEQTEX_SCRATCH (else ~/.cache/seqtex/builds), the same one for the same address."""
    if isinstance(out, Path):
        return out
    folder = Path(os.environ.get(SCRATCH, "~/.cache/seqtex/builds")).expanduser()
    return folder.absolute() / hashlib.sha256(str(out).encode()).hexdigest()[:16]


def working_folder(out: Location) -> Path:
    """For jobs in progress; whatever lies there may go when none is."""
    return workspace(out) / ".work"
