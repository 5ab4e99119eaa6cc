"""Trainer states that survive a crash: written beside, then renamed, and counted only with their sums.

A state is `step-00000123.ckpt`, a file; or a folder of that name, of which each rank writes its own part while training
goes on (torch's distributed checkpoints): tensors as safetensors, a file for each rank, and everything else in
`trainer.pt`, where tensors are on the meta device. Any number of ranks can read it, each rank its own part.
`step-00000123.ckpt.sha256` beside it, written last, has the sum of each file: without it, or with other sums in it, the
state does not count."""

import pickle
import shutil
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.fabric.plugins import CheckpointIO
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.tensor import DTensor

from schemas.errors import UserError
from schemas.storage import file_sha256, place, staged, staging, sync_directory, write_file

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


def is_complete(path: Path) -> bool:
    """Return whether a trainer state was written to its end, of which this reads no more than names."""
    return path.exists() and sum_path(path).is_file()


def verified(path: Path) -> bool:
    """Return whether a trainer state is there, whole, and as it was saved: a folder has the files that are recorded
    beside it, and no others."""
    if not is_complete(path):
        return False
    files = {file.name: file for file in path.iterdir()} if path.is_dir() else {"": path}
    lines = [line.partition("  ") for line in sum_path(path).read_text().splitlines()]
    recorded = {name.partition("/")[2]: digest for digest, _, name in lines}
    return files.keys() == recorded.keys() and all(file_sha256(files[name]) == recorded[name] for name in files)


def trainer_states(directory: Path) -> list[Path]:
    """Trainer states of a run, oldest first, verified or not."""
    return sorted(directory.glob("step-*.ckpt"))


def newest_state(directory: Path, is_good: Callable[[Path], bool] = verified) -> Path | None:
    """The newest trainer state that verifies, or of which `is_good` returns so."""
    return next((path for path in reversed(trainer_states(directory)) if is_good(path)), None)


def delete_state(path: Path) -> None:
    """Delete a trainer state, or what is left of one; first its sum, without which it does not count."""
    sum_path(path).unlink(missing_ok=True)
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def delete_unfinished(directory: Path) -> None:
    """Delete what a run that was killed while it saved left there: as large as a state."""
    for left in directory.glob(".step-*.tmp"):
        delete_state(left)


def commit(written: Path, path: Path, sums: dict[str, str]) -> None:
    """Give a state that is written, and flushed, its name, and then the sums of its files, with which it counts."""
    delete_state(path)
    written.rename(path)
    sync_directory(path.parent)
    write_file(sum_path(path), "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode())


class AtomicCheckpointIO(CheckpointIO):
    """Saves beside, flushes, renames; loads what `newest_state` has verified. Nothing is unpickled."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        delete_unfinished(path.parent)
        with staging(path) as file:
            torch.save(checkpoint, file)
        commit(staged(path), path, {path.name: file_sha256(staged(path))})

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        return load_state(Path(path))

    def remove_checkpoint(self, path: str | Path) -> None:
        delete_state(Path(path))


class ShardedCheckpointIO(AtomicCheckpointIO):
    """Saves states as folders, in the background: a state is copied to the memory of the host, and training goes on
    while each rank writes its own part. The next save, and the end of training, wait for it. Every rank saves."""

    def __init__(self) -> None:
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # where one process is meant
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._group: ProcessGroup | None = None
        """Group of its own, so that what it sends does not mix with what training sends."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        self.teardown()
        if torch.distributed.is_initialized() and self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        self._pending = self._writer.submit(write_state, *staged_copy(checkpoint), Path(path), self._group)

    def teardown(self) -> None:
        """Wait until the state that was handed over last is there. Raises UserError if it could not be written."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


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
        delete_unfinished(path.parent)
        temporary.mkdir(parents=True)
    try:
        writer = HuggingFaceStorageWriter(str(temporary), save_distributed=True)
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=group is None)
    except CheckpointException as error:
        reason = "; ".join(f"rank {rank}: {failure[0]!r}" for rank, failure in error.failures.items())
        raise UserError(
            f"{path}: the trainer state cannot be written ({reason}); make room, and start again"
        ) from error
    sums = {f"{path.name}/{file.name}": file_sha256(file) for file in temporary.glob(f"shard-{rank + 1:05d}-*")}
    of_all: list[Any] = [sums] * (group.size() if group else 1)
    if group:
        torch.distributed.gather_object(sums, of_all if rank == 0 else None, group=group)
    if rank == 0:
        with staging(temporary / PLAIN) as file:
            torch.save(plain, file)
        place(temporary / PLAIN)
        sums = {f"{path.name}/{PLAIN}": file_sha256(temporary / PLAIN)}
        for of_rank in of_all:
            sums |= of_rank
        commit(temporary, path, sums)


def load_state(path: Path, layout: Layout = lambda place: None) -> dict[str, Any]:
    """Load a trainer state onto the CPU; of a folder's tensors that are sharded here, this rank's part alone. Nothing
    is unpickled. Raises UserError if it cannot be read."""
    places: dict[str, Tensor] = {}

    def target(place: str, tensor: Tensor) -> Tensor:
        if not tensor.is_meta:
            return tensor
        like = layout(place)
        is_like = isinstance(like, DTensor) and like.shape == tensor.shape
        places[place] = torch.empty_like(like.detach() if is_like and like is not None else tensor,
                                         dtype=tensor.dtype, device=None if is_like else "cpu")  # fmt: skip
        return places[place]

    file = path / PLAIN if is_sharded(path) else path
    try:
        # mapped, so that the ranks of a node share its pages
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if is_sharded(path):
            state = replaced(state, target)
            with warnings.catch_warnings(action="ignore", category=UserWarning):
                dcp.load(places, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except pickle.UnpicklingError as error:  # moments in 8 bits are of a type that their package makes known
        raise UserError(
            f"{path}: holds more than plain tensors, as with optimizer.eight_bit: give the options in config.json of "
            "its run, another state, or another run.directory"
        ) from error
    except (CheckpointException, RuntimeError, EOFError) as error:  # no archive of `torch.save`, such as a plain pickle
        first = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        reason = str(first).strip().partition("\n")[0]
        raise UserError(
            f"{path}: no trainer state of plain tensors ({reason}); delete it, or give another state or "
            "another run.directory"
        ) from error
    return state


def read_state(path: Path) -> dict[str, Any]:
    """Read a trainer state of `seqtex train`, or of Lightning's `ModelCheckpoint`. Raises UserError if it is damaged or
    holds anything else."""
    if sum_path(path).is_file() and not verified(path):
        raise UserError(
            f"{path}: damaged, or cut off (it has not the sum in {sum_path(path).name}); give another state"
        )
    state = load_state(path)
    if not isinstance(state, dict) or not isinstance(state.get("hyper_parameters"), dict):
        raise UserError(f"{path}: no trainer state of a TextureModule; give one, or a checkpoint's folder")
    return state
