"""Files over HTTP, whole or not at all: tried again, resumed, checked, and shared between processes and machines."""

import contextlib
import fcntl
import http.client
import os
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from schemas.errors import UsageError, require_between
from schemas.storage import file_sha256, retried, sync_directory

_CHUNK = 1 << 18
_MIN_BYTES_PER_S = 1024
"""A request that brings less than this on average is given up once its time is over: a trickle never times out."""
_RETRIED = frozenset({404, 408, 409, 410, 416, 425, 429})
"""Answers of the 400s that may change; 404 is among them since mirrors give it for files on their way."""
_ABSENT = frozenset({404, 410})
_SHA256 = re.compile(r'(?:W/)?"?([0-9a-f]{64})"?')
_LINKED_ETAG = "X-Linked-Etag"
"""Header in which Hugging Face publishes the sha256 of a large file: on the redirect that leads to it."""

Check = Callable[[Path], str | None]
"""Function that describes what is wrong with a file, for a person; None where it is sound."""


class DownloadError(Exception):
    """A file could not be had; the message says what went wrong last."""

    def __init__(self, message: str, absent: bool) -> None:
        super().__init__(message)
        self.absent = absent
        """The server says that there is no such file."""


@dataclass(frozen=True, kw_only=True)
class DownloadConfig:
    """Options of downloading files. Not recorded: it decides when and whether they arrive, never what is in them."""

    timeout_s: float = 60.0
    """Seconds without a byte after which a request is given up (ours)."""
    attempts: int = 8
    """Most requests for a file (ours)."""
    backoff_s: float = 1.0
    """Seconds before the second attempt at most; twice as many before each further one, each drawn at random (ours)."""
    max_backoff_s: float = 60.0
    """Longest wait between two attempts, seconds; caps what a server asks for by Retry-After (ours)."""
    absent_attempts: int = 4
    """Consecutive answers that there is no such file after which a server is believed (ours)."""
    max_file_gb: float = 4.0
    """Largest file that is taken, 10^9 bytes (ours)."""
    concurrency: int = 4
    """Files under way at the same time, for each worker (ours)."""

    def __post_init__(self) -> None:
        require_between("timeout_s", self.timeout_s, 0.01, 1e5)
        require_between("backoff_s", self.backoff_s, 0, 1e4)
        require_between("max_backoff_s", self.max_backoff_s, 0, 1e5)
        require_between("max_file_gb", self.max_file_gb, 1e-6, 1e6)
        if min(self.attempts, self.absent_attempts, self.concurrency) < 1:
            raise UsageError("attempts, absent_attempts and concurrency are 1 or more")


class _AttemptError(Exception):
    """One attempt went wrong."""

    def __init__(self, detail: str, wait_s: float = 0.0, final: bool = False, absent: bool = False) -> None:
        super().__init__(detail)
        self.wait_s, self.final, self.absent = wait_s, final, absent


def download(url: str, path: Path, cfg: DownloadConfig, check: Check) -> None:
    """The file behind `url` at `path`; nothing is asked for where one that passes `check` is there already.

    What has come stays in `.NAME.part` and is resumed, by this process or another, where the server names a version
    of the file (ETag). A lock on that file (flock, which NFS passes on) keeps other processes and machines away.
    Raises DownloadError after `cfg.attempts`, OSError where `path` cannot be written."""
    if path.is_file() and check(path) is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with _locked(part) as file:
        if path.is_file() and check(path) is None:  # somebody else was quicker
            _discard(part)
            return
        patience = _Patience(cfg)
        try:
            retried(partial(_attempt, url, file, part, cfg, check), _AttemptError, patience.pause_s)
        except _AttemptError as error:
            message = f"{url}: {error} (attempt {patience.attempts} of {cfg.attempts})"
            raise DownloadError(message, error.absent) from error
        _version_path(part).unlink(missing_ok=True)  # before the rename: nobody looks for it once the file is whole
        part.replace(path)
        sync_directory(path.parent)


class _Patience:
    """The waits between the attempts at one file. Their jitter keeps machines that were turned away together from
    coming back together; no data depends on it."""

    def __init__(self, cfg: DownloadConfig) -> None:
        self.cfg, self.attempts, self._absent = cfg, 0, 0
        self._jitter = random.Random(os.urandom(8))

    def pause_s(self, attempt: int, error: _AttemptError) -> float | None:
        self.attempts, self._absent = attempt, self._absent + 1 if error.absent else 0
        if error.final or attempt == self.cfg.attempts or self._absent == self.cfg.absent_attempts:
            return None
        longest = min(self.cfg.max_backoff_s, self.cfg.backoff_s * 2 ** min(attempt - 1, 30))
        return max(longest * self._jitter.uniform(0.5, 1.0), min(error.wait_s, self.cfg.max_backoff_s))


def _version_path(part: Path) -> Path:
    return part.with_suffix(".etag")


def _discard(part: Path) -> None:
    _version_path(part).unlink(missing_ok=True)
    part.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The partial file, ours alone. Whoever waited while it was renamed away opens the new one."""
    while True:
        with part.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _is_at(file, part):
                yield file
                return


def _is_at(file: IO[bytes], path: Path) -> bool:
    """Return whether an open file still has its name."""
    try:
        return os.fstat(file.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Remembers the sha256 that a redirect names."""

    published: str | None = None

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        self.published = self.published or headers.get(_LINKED_ETAG)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _attempt(url: str, file: IO[bytes], part: Path, cfg: DownloadConfig, check: Check) -> None:
    """Send one request. `file` is whole and sound afterwards; at an `_AttemptError` it holds what is worth keeping."""
    redirects = _Redirects()
    try:
        request = _request(url, file, part)
        opener = urllib.request.build_opener(redirects)
        with _opened(opener, request, cfg.timeout_s) as response:
            total = _start(response, file, part)
            _receive(response, file, cfg)
            published = _sha256_of(redirects.published or response.headers.get(_LINKED_ETAG))
    except urllib.error.HTTPError as error:
        if error.code == 416:
            file.truncate(0)
        final = 400 <= error.code < 500 and error.code not in _RETRIED
        wait = error.headers.get("Retry-After", "")
        wait_s, absent = float(wait) if wait.isdigit() else 0.0, error.code in _ABSENT
        raise _AttemptError(f"HTTP {error.code} {error.reason}", wait_s, final, absent) from error
    os.fsync(file.fileno())
    size = os.fstat(file.fileno()).st_size
    if total is not None and size < total:
        raise _AttemptError(f"cut off at {size} of {total} bytes")
    wrong = check(part)
    if published is not None and file_sha256(part) != published:
        wrong = f"its sha256 is not {published[:12]}..., which is published"
    if wrong is not None:
        file.truncate(0)
        raise _AttemptError(wrong)


def _opened(opener: urllib.request.OpenerDirector, request: urllib.request.Request, timeout_s: float) -> Any:
    try:
        return opener.open(request, timeout=timeout_s)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _AttemptError(str(error) or type(error).__name__) from error


def _sha256_of(tag: str | None) -> str | None:
    match = _SHA256.fullmatch(tag or "")
    return match[1] if match else None


def _request(url: str, file: IO[bytes], part: Path) -> urllib.request.Request:
    """For the whole file, or the rest of it where the version of what we have is known."""
    have = os.fstat(file.fileno()).st_size
    headers = {"User-Agent": "seqtex-forge", "Accept-Encoding": "identity"}
    version = _version_path(part)
    if have and version.is_file() and (tag := version.read_text("latin-1")):
        headers |= {"Range": f"bytes={have}-", "If-Range": tag}
    return urllib.request.Request(url, headers=headers)


def _start(response: http.client.HTTPResponse, file: IO[bytes], part: Path) -> int | None:
    """Make `file` end where the answer begins; length of the whole file, where it is stated."""
    have = os.fstat(file.fileno()).st_size
    stated = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == 206 and stated and int(stated[1]) == have:
        return int(stated[2])
    file.truncate(0)
    if response.status != 200:
        raise _AttemptError(f"HTTP {response.status} with the wrong part of the file")
    tag = response.headers.get("ETag", "")
    _version_path(part).write_text("" if tag.startswith("W/") else tag, "latin-1")
    length = response.headers.get("Content-Length", "")
    return int(length) if length.isdigit() else None


def _receive(response: http.client.HTTPResponse, file: IO[bytes], cfg: DownloadConfig) -> None:
    began, received, have = time.monotonic(), 0, os.fstat(file.fileno()).st_size
    try:
        while chunk := _read(response):
            file.write(chunk)
            received += len(chunk)
            elapsed = time.monotonic() - began
            if have + received > cfg.max_file_gb * 1e9:
                file.truncate(0)
                raise _AttemptError(f"more than {cfg.max_file_gb:g} GB, the largest file that is taken", final=True)
            if elapsed > cfg.timeout_s and received < elapsed * _MIN_BYTES_PER_S:
                raise _AttemptError(f"{received} bytes in {elapsed:.1f} seconds")
    finally:
        file.flush()


def _read(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:  # apart from errors of the disk, which no retry fixes
        raise _AttemptError(str(error) or type(error).__name__) from error
