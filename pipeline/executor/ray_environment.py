"""The environment of a Ray that a build starts on this machine, which Ray reads when it is imported: it listens on
loopback addresses alone and asks everybody for a token. Does not import Ray."""

import atexit
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from schemas.errors import UserError

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token"}
"""The first is Ray's name for a Ray without other machines, on any system."""
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


@contextmanager
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
