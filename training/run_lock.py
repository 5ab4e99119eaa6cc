"""One run at a time in a run directory."""

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path
from typing import IO

import lightning

from schemas.errors import UserError

LOCK = ".lock"
"""In the run directory; holds the name of who trains there, or trained last."""

log = logging.getLogger(__name__)


class RunLock(lightning.Callback):
    """Keeps other runs out of a directory while this one is at work in it. Must stand first among the callbacks.
    Nothing else may open the file: who closes a file gives up all locks that his process has on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._file: IO[str] | None = None
        self._refusal: str | None = None

    def take(self) -> None:
        """To be called by rank 0 before it looks what is in the directory; `setup` tells all ranks how it went."""
        if self._file is not None:
            return
        self._file = (self.directory / LOCK).open("a+")
        try:
            # Not flock: the loader's processes inherit those, and live on for some seconds where this one is killed.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                log.warning("%s: no lock (%s); start no second run there", self.directory / LOCK, error.strerror)
                return
            self._file.seek(0)
            holder = self._file.read().strip() or "of unknown name"
            self._refusal = (
                f"{self.directory}: another run ({holder}) trains here; wait for it, or give another run.directory"
            )
        else:
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            self._file.flush()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        refusal = trainer.strategy.broadcast(self._refusal)
        if refusal is not None:
            raise UserError(refusal)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
