"""Where jobs in progress work: a folder each, locked by whoever works in it. The kernel lets go of a lock when its
holder ends, however that happens: so it shows what a killed one has left."""

import contextlib
import fcntl
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from schemas.locations import Location, working_folder

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
    """Whether nobody works in it."""
    try:
        with (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except FileNotFoundError:  # it was being removed
        return True
    return True
