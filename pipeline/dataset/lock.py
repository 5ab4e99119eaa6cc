"""Locks of a build: one build at a time on a dataset, one job in a folder. In a folder the kernel keeps the lock
(`filelock`); in an object store an object does, which its owner renews."""

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

from filelock import FileLock, Timeout

from schemas.dataset import canonical_json
from schemas.errors import UserError
from schemas.storage import Location, ObjectPath, working_folder, write_in_place

LOCK = ".lock"
"""Name of the lock file in a dataset's and a job's folder."""
LOCK_WAIT_S = 0.4
"""`running_since` holds a lock for a moment: a build that wants it waits so long."""
BEAT_S = 30.0
"""Seconds between signs of life in an object store."""
EXPIRY_S = 600.0
"""An owner without a sign of life for so long counts as dead: far more than clocks of two machines differ."""
WATCH_S = 5.0
"""Seconds between looks at the lock of another machine."""
SETTLE_S = 2.0
"""Seconds before a lock counts whose creation the store may not have kept exclusive."""


def lock(out: Location, notify: Callable[[str], None] = lambda detail: None) -> contextlib.AbstractContextManager[None]:
    """Hold the build lock of a dataset. Raises UserError where another build is at work on `out`; `notify` is called
    with the reason of a wait."""
    if isinstance(out, ObjectPath):
        return _object_lock(out, notify)
    assert isinstance(out, Path)
    return _folder_lock(out)


def running_since(out: Location) -> float | None:
    """Return when the build that is at work on `out` began, in seconds since the epoch; None if there is none."""
    path = out / LOCK
    if isinstance(path, ObjectPath):
        owner = _read(path)
        return owner.since if owner is not None and not owner.is_dead(time.time()) else None
    assert isinstance(path, Path)
    return path.stat().st_mtime if _is_held(path) else None  # its holder writes its process id when it gets it


# folders


@contextlib.contextmanager
def _folder_lock(out: Path) -> Iterator[None]:
    """Hold a lock that the kernel releases when its holder ends, however that happens. No child inherits it."""
    path = out / LOCK
    try:
        held = FileLock(path, timeout=LOCK_WAIT_S, fallback_to_soft=False).acquire()
    except Timeout as error:
        holder = path.read_text().strip() or "unknown"
        raise UserError(
            f"{out}: another build (process {holder}) is at work here; wait for it to end, or give another --out"
        ) from error
    with held:
        write_in_place(path, str(os.getpid()))
        yield


def _is_held(path: Path) -> bool:
    """Return whether a process holds a lock file. Unlike filelock, this neither creates the file nor writes to it: the
    dataset may be another user's, the folder may be going."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False


@contextlib.contextmanager
def job_folder(out: Location, job: int) -> Iterator[Path]:
    """Make a folder for one job, and remove it afterwards. The folders of this machine's killed jobs are removed first:
    for a build into an object store nobody else does it."""
    scratch = working_folder(out)
    scratch.mkdir(parents=True, exist_ok=True)
    ours = f"{socket.gethostname()}.job-"  # a lock may not count on another machine that sees the folder
    for other in list(scratch.glob(f"{ours}*")):
        if not _is_held(other / LOCK):
            shutil.rmtree(other, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="new-", dir=scratch))
    with FileLock(new / LOCK, fallback_to_soft=False):
        folder = new.rename(scratch / f"{ours}{job:06d}-{new.name.removeprefix('new-')}")  # never seen unlocked
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


# object stores


@dataclass(frozen=True, kw_only=True)
class Owner:
    """The content of a lock object."""

    token: str
    """Random text of one build alone."""
    machine: str
    """The machine on which the process id counts (`_machine`)."""
    process: int
    since: float
    """Seconds since the epoch."""
    seen: float
    """Last sign of life, seconds since the epoch."""

    def is_dead(self, now: float) -> bool:
        """Return whether the owner has ended, on this machine, or has given no sign of life for `EXPIRY_S`."""
        gone = self.machine == _machine() and not Path(f"/proc/{self.process}").exists()
        return gone or now - self.seen > EXPIRY_S


def _machine() -> str:
    """Name this machine by host, boot, process namespace and user: processes that share all four see each other.
    Containers may share the host's name, and /proc may hide the processes of other users."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{socket.gethostname()} {boot} {Path('/proc/self/ns/pid').readlink()} {os.getuid()}"


def _read(path: ObjectPath) -> Owner | None:
    """Read a lock object; None if there is none. Raises UserError where it is not one."""
    try:
        return Owner(**json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path}: no lock of this program ({error}); delete it if no build is at work") from error


@contextlib.contextmanager
def _object_lock(out: ObjectPath, notify: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock object, which a thread renews. A dead owner's lock is taken over. A build that finds another owner in
    its lock, or cannot renew it in time, stops."""
    path = out / LOCK
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's job beside a script: `_renew` needs it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    mine = _take(path, notify)
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


def _take(path: ObjectPath, notify: Callable[[str], None]) -> Owner:
    """Create the lock object. A killed driver leaves its lock, and may be started again on another machine within
    minutes: so an owner elsewhere is watched until it gives a sign of life, or has given none for `EXPIRY_S`."""
    machine, began = _machine(), time.monotonic()
    found = owner = _read(path)
    while owner is not None and not owner.is_dead(time.time()):
        if owner.machine == machine or owner != found:
            raise _refusal(path, owner)
        if time.monotonic() - began > EXPIRY_S:
            break  # its clock is ahead of ours
        if owner is found:
            rest = min(owner.seen + EXPIRY_S - time.time(), EXPIRY_S)
            notify(f"{path}: held by {_who(owner)}; waiting up to {rest:.0f} s to see whether it is alive")
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
    """Give a sign of life every `BEAT_S`, until the build ends. Errors of the store may pass for `EXPIRY_S` / 2."""
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
