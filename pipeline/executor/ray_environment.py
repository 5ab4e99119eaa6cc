"""The environment of a Ray that a build starts on this machine, which Ray reads when it is imported: it listens on
loopback addresses alone and asks everybody for a token; its start on a busy machine, and the error where it does not
start. Does not import Ray."""

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from schemas.errors import UserError

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""The first is Ray's name for a Ray without other machines, on any system."""
STARTS = 3
"""Attempts to start Ray on a machine that is busy."""
TIMED_OUT = "timed out during startup"
"""Words of Ray for a part of it that has not started within 30 s, a time that no option changes."""
MAX_FOLDER = 36
"""Characters of a folder for Ray's sockets: their whole path may have 107."""


def close_to_others() -> None:
    """Prepare this process for a Ray of its own, before it imports Ray; its token is in a file that only this user can
    read. Raises UserError where Ray was imported without that."""
    if all(os.environ.get(name) == value for name, value in LOOPBACK.items()):
        return
    if "ray" in sys.modules:
        raise UserError(
            "Ray was imported here before the build, so that a Ray of its own would listen to the whole network "
            "without a token: build in a process of its own, or give the address of a cluster"
        )
    os.environ.update(LOOPBACK)
    if not {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        folder = Path(tempfile.mkdtemp(prefix="seqtex-ray-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        with open(os.open(folder / "token", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123
            file.write(secrets.token_hex(32))
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(folder / "token")


@contextlib.contextmanager
def socket_folder() -> Iterator[dict[str, str]]:
    """The variable that names a short folder for Ray's sockets, where the folder for temporary files is too long for
    them, as in many jobs of SLURM. Raises UserError where there is none."""
    if "RAY_TMPDIR" in os.environ or len(os.environ.get("TMPDIR", "")) <= MAX_FOLDER:
        yield {}
        return
    try:
        folder = tempfile.mkdtemp(prefix="seqtex-", dir="/tmp")
    except OSError as error:
        raise UserError(
            f"TMPDIR is {os.environ['TMPDIR']}, too long for Ray's sockets, and /tmp cannot be written to "
            f"({error.strerror}): set RAY_TMPDIR to a folder of at most {MAX_FOLDER} characters"
        ) from error
    try:
        yield {"RAY_TMPDIR": folder}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Variables of the environment, for the processes that are started meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
            os.environ.update({name: before[name]} if name in before else {})


def patiently(start: Callable[[], Any]) -> Any:
    """Start Ray, again where the machine was too busy for the time that Ray gives itself; what an attempt has left is
    ended before the next."""
    for _ in range(STARTS - 1):
        before = _children()
        try:
            return start()
        except Exception as error:  # Ray raises a plain one where its time is over; any other goes on
            if TIMED_OUT not in str(error):
                raise
            for pid in _children() - before:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):  # one that has ended by itself
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
    return start()


def _children() -> set[int]:
    """Return the processes that this thread has started and nobody has waited for."""
    return set(map(int, Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()))


def no_ray(address: str | None, why: str) -> UserError:
    """Return the error for a Ray that is not there, or does not start on this machine."""
    why = why.strip().partition("\n")[0]
    if address:
        return UserError(f"no Ray cluster at {address!r} ({why}); leave the address out to work on this machine alone")
    logs = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir())) / "ray/session_latest/logs"
    return UserError(
        f"Ray does not start on this machine ({why}); see {logs}, free memory, processes or space in that folder, and "
        "run the same command again"
    )
