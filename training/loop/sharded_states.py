"""Trainer states as folders: each rank writes its own part, while training goes on (torch's distributed checkpoints).

`step-00000123.ckpt/` holds tensors as safetensors, a file for each rank, and everything else in `trainer.pt`, where
tensors are on the meta device. `step-00000123.ckpt.sha256` beside it, written last, has the sum of each file: without
it, or with other sums in it, the state does not count. Any number of ranks can read it, each rank its own part."""

import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from schemas.errors import UserError
from schemas.storage import file_sha256, sync_directory, write_file

SUM = ".sha256"
PLAIN = "trainer.pt"
"""File of a state's folder: its values, and the places of its tensors."""
Layout = Callable[[str], Tensor | None]
"""The tensor that one of a state is to be laid out like, by its place in the state; None: whole."""


def sum_path(path: Path) -> Path:
    """The file beside a trainer state that holds its sum, or those of its files, and name."""
    return path.with_name(path.name + SUM)


def is_sharded(path: Path) -> bool:
    """Return whether this is the folder of a trainer state."""
    return (path / PLAIN).is_file()


def sums_match(path: Path) -> bool:
    """Return whether a folder has the files that are written down beside it, all of them as they were saved."""
    lines = [line.partition("  ") for line in sum_path(path).read_text().splitlines()]
    sums = {Path(name).name: digest for digest, _, name in lines}
    return {file.name for file in path.iterdir()} == set(sums) and all(
        file_sha256(path / name) == digest for name, digest in sums.items()
    )


def delete_state(path: Path) -> None:
    """Delete a trainer state, or what is left of one; first its sum, without which it does not count."""
    sum_path(path).unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def replaced(value: Any, change: Callable[[str, Tensor], Tensor], place: str = "") -> Any:
    """Nested dictionaries and lists with other tensors in place of theirs. change: gets the place of each, such as
    optimizer_states/0/state/3/exp_avg, and the tensor."""
    if isinstance(value, Tensor):
        return change(place, value)
    if isinstance(value, dict):
        return {name: replaced(entry, change, f"{place}/{name}".lstrip("/")) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([replaced(entry, change, f"{place}/{number}") for number, entry in enumerate(value)])
    return value


def staged_copy(checkpoint: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Copy a state to the memory of this host: everything, with tensors on the meta device, and the tensors by place.
    Numbers, such as the optimiser's count of steps, stay where they are."""
    tensors: dict[str, Tensor] = {}

    def take(place: str, tensor: Tensor) -> Tensor:
        copied = tensor.detach().to("cpu", copy=True)
        if not tensor.ndim:
            return copied
        tensors[place] = copied
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")

    return replaced(checkpoint, take), tensors


def write_state(plain: dict[str, Any], tensors: dict[str, Tensor], path: Path, group: ProcessGroup | None) -> None:
    """Write a state, whole or not at all. All ranks of the group call it, each with its part of the tensors.

    Raises UserError if a rank cannot write."""
    rank = group.rank() if group else 0
    temporary = path.with_name(f".{path.name}.tmp")
    if rank == 0:
        for left in path.parent.glob(".step-*.tmp"):  # of a run that was killed while it saved
            delete_state(left)
        temporary.mkdir(parents=True)
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        reason = "; ".join(f"rank {rank}: {failure[0]!r}" for rank, failure in error.failures.items())
        raise UserError(
            f"{path}: the trainer state cannot be written ({reason}); make room, and start again"
        ) from error
    sums = {file.name: file_sha256(file) for file in temporary.glob(f"shard-{rank + 1:05d}-*")}
    of_all: list[dict[str, str] | None] = [sums] * (group.size() if group else 1)
    if group:
        torch.distributed.gather_object(sums, of_all if rank == 0 else None, group=group)
    if rank == 0:
        with (temporary / PLAIN).open("xb") as file:
            torch.save(plain, file)
            file.flush()
            os.fsync(file.fileno())
        sums = {PLAIN: file_sha256(temporary / PLAIN)}
        for of_rank in of_all:
            sums |= of_rank or {}
        sync_directory(temporary)
        delete_state(path)
        temporary.rename(path)
        sync_directory(path.parent)
        lines = "".join(f"{digest}  {path.name}/{name}\n" for name, digest in sorted(sums.items()))
        write_file(sum_path(path), lines.encode())


def read_state_folder(path: Path, layout: Layout = lambda place: None) -> dict[str, Any]:
    """Read a state of any number of ranks; of tensors that are sharded here, this rank's part alone. Nothing is
    unpickled. Raises UserError if it cannot be read."""
    places: dict[str, Tensor] = {}

    def target(place: str, tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        like = layout(place)
        is_like = isinstance(like, DTensor) and like.shape == tensor.shape
        places[place] = torch.empty_like(like.detach() if is_like and like is not None else tensor,
                                         dtype=tensor.dtype, device=None if is_like else "cpu")  # fmt: skip
        return places[place]

    try:
        checkpoint = replaced(torch.load(path / PLAIN, weights_only=True), target)
        with warnings.catch_warnings(action="ignore", category=UserWarning):
            dcp.load(places, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except CheckpointException as error:
        ((reason, _), *_) = error.failures.values()
        raise UserError(f"{path}: no trainer state ({reason!r}); delete it, or give another run.directory") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"{path}: no trainer state ({line}); delete it, or give another run.directory") from error
    return dict(checkpoint)
