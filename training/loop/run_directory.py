"""One run at a time in a run directory."""

import hashlib
import json
import logging
import os
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from filelock import FileLock, Timeout

from schemas.dataset import code_version, part_paths
from schemas.errors import UserError, redacted
from schemas.storage import file_sha256, write_file, write_in_place
from training.arithmetic import decisions
from training.config import TrainConfig, as_json
from training.data.mixture import open_datasets

log = logging.getLogger(__name__)

LOCK = ".lock"
"""In the run directory; holds the name of who trains there, or trained last."""
PACKAGES = ("torch", "lightning", "numpy", "diffusers", "transformers", "peft", "safetensors", "webdataset", "pyarrow")
"""Packages whose versions a run records."""


class RunLock(lightning.Callback):
    """Keep other runs out of a directory while this one is at work in it. The
    kernel releases the lock when its holder ends; filelock closes it in forked children, since the loader's processes
    live on for some seconds where this one is killed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._lock = FileLock(directory / LOCK, blocking=False, fallback_to_soft=False)
        self._refusal: str | None = None

    def take(self) -> None:
        """Take the lock, on rank 0 before it looks into the directory; `setup` reports the result to all ranks."""
        if self._lock.is_locked:
            return
        path = self.directory / LOCK
        try:
            self._lock.acquire()
        except Timeout:
            holder = path.read_text().strip() or "of unknown name"
            self._refusal = (
                f"{self.directory}: another run ({holder}) trains here; wait for it, or give another run.directory"
            )
        except OSError as error:
            log.warning("%s: no lock (%s); start no second run there", path, error.strerror)
        else:
            write_in_place(path, f"process {os.getpid()} on {socket.gethostname()}\n")

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        refusal = trainer.strategy.broadcast(self._refusal)
        if refusal is not None:
            raise UserError(refusal)

    def close(self) -> None:
        self._lock.release(force=True)


def write_record(cfg: TrainConfig, device: torch.device) -> None:
    """`config.json`, every option, and `environment.json`; paths are as seen from the run's directory."""
    data = {redacted(files.location): dataset_hash(files.folder) for files in open_datasets(cfg.data)}
    made_with = environment(device, cfg.run.ranks) | {"dataset_sha256": data}
    made_with["arithmetic"] = decisions(device.type, cfg.run.precision)
    for name, entries in (("config.json", as_json(cfg)), ("environment.json", made_with)):
        text = json.dumps(as_seen_from(cfg.run.directory.absolute(), entries), indent=2)
        write_file(cfg.run.directory / name, text.encode() + b"\n")


def as_seen_from(directory: Path, value: Any) -> Any:
    """Make absolute paths in nested values relative to a run's directory, so that its record names none of this
    machine; names of entries included."""
    if isinstance(value, dict):
        return {as_seen_from(directory, name): as_seen_from(directory, entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [as_seen_from(directory, entry) for entry in value]
    is_path = isinstance(value, str) and Path(value).is_absolute()
    return os.path.relpath(value, directory) if is_path else value


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
