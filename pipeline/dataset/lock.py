"""One build at a time on a dataset. In a folder the kernel keeps the lock; in an object store an object does, which its
owner renews."""

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TextIO

from schemas.dataset import canonical_json
from schemas.errors import UserError
from schemas.storage import Location, ObjectPath, working_folder

LOCK_TRIES, LOCK_PAUSE_S = 5, 0.1
"""`running_since` holds the lock for a moment: whoever wants it asks more than once."""
BEAT_S = 30.0
"""Seconds between signs of life in an object store."""
EXPIRY_S = 600.0
"""Without a sign of life for so long, an owner is taken for dead: far more than clocks of two machines differ."""
WATCH_S = 5.0
"""Seconds between looks at the lock of another machine."""
SETTLE_S = 2.0
"""Before a lock counts whose creation the store may not have kept exclusive."""


def lock(out: Location, tell: Callable[[str], None] = lambda detail: None) -> contextlib.AbstractContextManager[None]:
    """One build at a time. Raises UserError where another one is at work on `out`. `tell` hears what is waited for."""
    if isinstance(out, ObjectPath):
        return _object_lock(out, tell)
    assert isinstance(out, Path)
    return _folder_lock(out)


def running_since(out: Location) -> float | None:
    """When the build that is at work on `out` began, in seconds since the epoch; None where there is none."""
    if isinstance(out, ObjectPath):
        owner = _read(out / ".lock")
        return owner.since if owner is not None and not owner.is_dead(time.time()) else None
    assert isinstance(out, Path)
    return _folder_since(out / ".lock")


# folders


@contextlib.contextmanager
def _folder_lock(out: Path) -> Iterator[None]:
    """The kernel lets go of the lock when its holder ends, however that happens."""
    with (out / ".lock").open("a+") as file:
        if not _try_lock(file):
            file.seek(0)
            raise UserError(
                f"{out}: another build (process {file.read().strip() or 'unknown'}) is at work here; wait for it to "
                "end, or give another --out"
            )
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _try_lock(file: TextIO) -> bool:
    for attempt in range(LOCK_TRIES):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if attempt + 1 < LOCK_TRIES:
            time.sleep(LOCK_PAUSE_S)
    return False


def _folder_since(path: Path) -> float | None:
    if not path.is_file():
        return None
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return path.stat().st_mtime  # its holder wrote its process id when it got it
    return None


# object stores


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The content of a lock object."""

    token: str
    """Of one build alone."""
    machine: str
    """Where the process id says something (`_machine`)."""
    process: int
    since: float
    """Seconds since the epoch."""
    seen: float
    """Last sign of life, seconds since the epoch."""

    def is_dead(self, now: float) -> bool:
        """Known to have ended, on this machine, or not heard of for long."""
        gone = self.machine == _machine() and not Path(f"/proc/{self.process}").exists()
        return gone or now - self.seen > EXPIRY_S


def _machine() -> str:
    """Host, boot, process namespace and user: who shares all four sees all of each other's processes. Containers may
    share the host's name, and /proc may hide the processes of other users."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"


def _read(path: ObjectPath) -> Owner | None:
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: no lock of this program ({error}); delete it if no build is at work") from error


@contextlib.contextmanager
def _object_lock(out: ObjectPath, tell: Callable[[str], None]) -> Iterator[None]:
    """Created where none is, and renewed by a thread. Taken from an owner that is dead. A build that finds another
    owner in its lock, or cannot renew it in time, stops."""
    path = out / ".lock"
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's job beside a script: `_renew` needs it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    mine = _take(path, tell)
    ended, lost = threading.Event(), threading.Event()
    beat = threading.Thread(target=_renew, args=(path, mine, ended, lost), daemon=True)
    beat.start()
    try:
        yield
    except KeyboardInterrupt:
        if not lost.is_set():
            raise
        raise UserError(
            f"{path}: this build could not renew its lock, or another one has taken it; run the same command again, "
            "finished jobs are kept"
        ) from None
    finally:
        ended.set()
        beat.join()
        with contextlib.suppress(OSError):
            if (owner := _read(path)) is not None and owner.token == mine.token:
                path.unlink()


def _take(path: ObjectPath, tell: Callable[[str], None]) -> Owner:
    """A driver that was killed leaves its lock, and whatever starts it again may do so on another machine, a few times
    in as many minutes: so an owner elsewhere is watched until it gives a sign of life or has given none for too
    long."""
    machine, began = _machine(), time.monotonic()
    found = owner = _read(path)
    while owner is not None and not owner.is_dead(time.time()):
        if owner.machine == machine or owner != found:
            raise _refusal(path, owner)
        if time.monotonic() - began > EXPIRY_S:
            break  # its clock is ahead of ours
        if owner is found:
            rest = min(owner.seen + EXPIRY_S - time.time(), EXPIRY_S)
            tell(f"{path}: held by {_who(owner)}; waiting up to {rest:.0f} s to see whether it is alive")
        time.sleep(WATCH_S)
        owner = _read(path)
    if owner is not None:
        path.unlink(missing_ok=True)
    now = time.time()
    mine = Owner(token=uuid.uuid4().hex, machine=machine, process=os.getpid(), since=now, seen=now)
    with contextlib.suppress(FileExistsError):
        path.write_bytes(canonical_json(asdict(mine)), new=True)
    time.sleep(SETTLE_S)  # a store that overwrites what it should not, or two that take over: the last one has it
    if (owner := _read(path)) is None or owner.token != mine.token:
        raise _refusal(path, owner)
    return mine


def _who(owner: Owner) -> str:
    ago = max(0.0, time.time() - owner.seen)
    return f"process {owner.process} on {owner.machine.partition(' ')[0]}, last seen {ago:.0f} s ago"


def _refusal(path: ObjectPath, owner: Owner | None) -> UserError:
    who = f"another build ({_who(owner)})" if owner is not None else "another build"
    return UserError(
        f"{path.parent}: {who} is at work here; wait for it to end, or give another --out. If it is dead, its lock "
        f"ends {EXPIRY_S:.0f} s after it was last seen; or delete {path}"
    )


def _renew(path: ObjectPath, mine: Owner, ended: threading.Event, lost: threading.Event) -> None:
    """A sign of life every `BEAT_S`, until the build ends. What may pass in the store is waited for."""
    renewed = time.monotonic()
    while not ended.wait(BEAT_S):
        try:
            owner = _read(path)
            taken = owner is None or owner.token != mine.token
            if not taken:
                path.write_bytes(canonical_json(asdict(replace(mine, seen=time.time()))))
                renewed = time.monotonic()
        except (OSError, UserError):
            taken = time.monotonic() - renewed > EXPIRY_S / 2
        if taken:
            lost.set()
            if (main := threading.main_thread().ident) is not None:
                signal.pthread_kill(main, signal.SIGINT)
            return


_LOCK = ".lock"


@contextlib.contextmanager
def job_folder(out: Location, job: int) -> Iterator[Path]:
    """A folder for one job, gone afterwards. What killed jobs have left on this machine goes first: of a build into an
    object store nobody else comes by."""
    scratch = working_folder(out)
    scratch.mkdir(parents=True, exist_ok=True)
    ours = f"{socket.gethostname()}.job-"  # a lock may say nothing on another machine that sees the folder
    for left in [path for path in scratch.glob(f"{ours}*") if _is_left(path)]:
        shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=scratch))
    with (new / _LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder = new.rename(scratch / f"{ours}{job:06d}-{new.name.removeprefix('new-')}")  # never seen unlocked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _is_left(folder: Path) -> bool:
    """Return whether nobody works in it."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # it was being removed
        return True
    return True
