"""One run at a time in a run directory."""

import errno
import fcntl
import hashlib
import json
import logging
import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import lightning
import torch

from schemas.dataset import code_version, file_sha256, part_paths, write_file
from schemas.errors import UserError
from training.arithmetic import decisions
from training.config import TrainConfig, as_json
from training.data.mixture import open_datasets

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


PACKAGES = ("torch", "lightning", "numpy", "diffusers", "transformers", "peft", "safetensors", "webdataset", "pyarrow")


def write_record(cfg: TrainConfig, device: torch.device) -> None:
    """`config.json`, every option, and `environment.json`."""
    data = {files.location: dataset_hash(files.folder) for files in open_datasets(cfg.data)}
    made_with = environment(device, cfg.run.ranks) | {"dataset_sha256": data}
    made_with["arithmetic"] = decisions(device.type, cfg.run.precision)
    for name, entries in (("config.json", as_json(cfg)), ("environment.json", made_with)):
        write_file(cfg.run.directory / name, json.dumps(entries, indent=2).encode() + b"\n")


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Describe this process: code, packages, machine and ranks, for the record of a run."""
    return {
        "code_version": code_version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def dataset_hash(directory: Path) -> str:
    """sha256 over a dataset's description and ledger parts, which name the sha256 of every shard: equal if and only if
    the samples are."""
    digest = hashlib.sha256(file_sha256(directory / "dataset.json").encode())
    for path in part_paths(directory):
        digest.update(f"{path.name} {file_sha256(path)}\n".encode())
    return digest.hexdigest()
