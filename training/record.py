"""What a run was made with: code, packages, machine, data."""

import hashlib
import json
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from schemas.dataset import code_version, file_sha256, part_paths, write_file
from training.arithmetic import decisions
from training.data import open_datasets
from training.presets import TrainConfig, as_json

PACKAGES = ("torch", "lightning", "numpy", "diffusers", "transformers", "peft", "safetensors", "webdataset", "pyarrow")


def write_record(cfg: TrainConfig, device: torch.device) -> None:
    """`config.json`, every option, and `environment.json`."""
    data = {files.location: dataset_hash(files.folder) for files in open_datasets(cfg.data)}
    made_with = environment(device, cfg.run.ranks) | {"dataset_sha256": data}
    made_with["arithmetic"] = decisions(device.type, cfg.run.precision)
    for name, entries in (("config.json", as_json(cfg)), ("environment.json", made_with)):
        write_file(cfg.run.directory / name, json.dumps(entries, indent=2).encode() + b"\n")


def environment(device: torch.device, world_size: int) -> dict[str, Any]:
    """Of this process."""
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
