"""How a run is spread over devices: one, copies that average their gradients (DDP), or shards of one model (FSDP2)."""

import os
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy

from schemas.errors import UsageError
from training.cost import USABLE, Cost
from training.presets import TrainConfig

Name = Literal["single", "ddp", "fsdp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A strategy, and what it takes."""

    name: Name
    reason: str
    bytes_per_device: int
    """Weights, gradients, optimiser, encoders and the activations of one batch."""
    device_bytes: int | None
    """Memory of a GPU of this machine; None on a CPU."""

    @property
    def words(self) -> str:
        """One line for people."""
        has = f" of {self.device_bytes / 1e9:.1f}" if self.device_bytes else ""
        return f"strategy {self.name} ({self.reason}): about {self.bytes_per_device / 1e9:.3g}{has} GB per device"


def choose(cfg: TrainConfig, cost: Cost, device_bytes: int | None) -> Choice:
    """What `run.strategy` names; for `auto` the simplest that the memory of the devices allows.

    Raises:
        UsageError: the options contradict each other.
    """
    ranks = cfg.run.ranks
    check(cfg, ranks)
    needs = {name: bytes_needed(cfg, cost, name, ranks) for name in get_args(Name)}
    name: Name
    if cfg.run.strategy != "auto":
        name, reason = cfg.run.strategy, "as asked"
    elif ranks == 1:
        name, reason = "single", "one device"
    elif cfg.optimizer.muon_learning_rate is not None:
        name, reason = "ddp", "Muon needs whole matrices"
    elif device_bytes is None:
        name, reason = "ddp", "no GPU"
    elif needs["ddp"] <= USABLE * device_bytes:
        name, reason = "ddp", "a device holds all of it"
    else:
        name, reason = "fsdp", f"a copy per device would take {needs['ddp'] / 1e9:.0f} GB"
    return Choice(name=name, reason=reason, bytes_per_device=needs[name], device_bytes=device_bytes)


def check(cfg: TrainConfig, ranks: int) -> None:
    """Raises UsageError naming the options that contradict each other."""
    name, parts = cfg.run.strategy, ranks * cfg.run.accumulate
    if name == "single" and ranks > 1:
        raise UsageError(f"run.strategy single is for one device; {ranks} are asked for (run.devices, run.nodes)")
    if name == "fsdp" and ranks == 1:
        raise UsageError("run.strategy fsdp shards over several devices; raise run.devices, or use single")
    if name == "fsdp" and cfg.optimizer.muon_learning_rate is not None:
        raise UsageError("Muon needs whole matrices: leave optimizer.muon_learning_rate out with run.strategy fsdp")
    if cfg.run.accumulate < 1 or cfg.data.batch_size % parts:
        raise UsageError(
            f"data.batch_size {cfg.data.batch_size} is not {ranks} devices x run.accumulate {cfg.run.accumulate} "
            f"equal parts; use a multiple of {max(parts, 1)}"
        )


def bytes_needed(cfg: TrainConfig, cost: Cost, name: str, ranks: int) -> int:
    memory = cost.memory[cfg.model.checkpointing]
    fixed = memory.fixed
    if name == "fsdp":
        fixed = (memory.fixed - memory.encoders) // ranks + memory.encoders
    return fixed + cost.batch_per_gpu * memory.activations_per_sample


def make_strategy(name: Name, device: torch.device, ranks: int) -> Strategy:
    if name == "single":
        return SingleDeviceStrategy(device=device)
    if name == "ddp":
        # Batches of views alone leave out the UV branch, captionless ones text attention. DDP then finds what takes no
        # part and leaves its gradient unset, as on one device: no decay, no momentum.
        return DDPStrategy(find_unused_parameters=True, gradient_as_bucket_view=True)
    return ModelParallelStrategy(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


def own_device(accelerator: str) -> torch.device:
    """Of this process, as torchrun, SLURM and Lightning number them."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))


def memory_of(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
