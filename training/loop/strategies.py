"""Strategies that spread a run over devices: one, copies that average their gradients (DDP), or shards of one model
(FSDP2)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch.optim import Optimizer

from schemas.errors import UsageError
from training.config import TrainConfig
from training.cost import USABLE, Cost
from training.model.fsdp import gathered, load_whole, load_whole_optimizer_state, local, whole_optimizer_state
from training.model.optimizers import import_torchao, trained_parameters

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
    """Choose the strategy that `run.strategy` names; for `auto` the simplest that the memory of the devices allows."""
    ranks = cfg.run.ranks
    needs = {name: bytes_needed(cfg, cost, name, ranks) for name in get_args(Name)}
    name: Name
    if cfg.run.strategy != "auto":
        name, reason = cfg.run.strategy, "as asked"
    elif ranks == 1:
        name, reason = "single", "one device"
    elif cfg.optimizer.muon_learning_rate is not None or cfg.optimizer.eight_bit:
        name, reason = "ddp", "the optimiser needs whole weights"
    elif device_bytes is None:
        name, reason = "ddp", "no GPU"
    elif needs["ddp"] <= USABLE * device_bytes:
        name, reason = "ddp", "a device holds all of it"
    else:
        name, reason = "fsdp", f"a copy per device would take {needs['ddp'] / 1e9:.0f} GB"
    return Choice(name=name, reason=reason, bytes_per_device=needs[name], device_bytes=device_bytes)


def check_run(cfg: TrainConfig) -> None:
    """Raises UsageError naming the options that contradict each other."""
    name, ranks = cfg.run.strategy, cfg.run.ranks
    parts = ranks * cfg.run.accumulate_grad_batches
    if name == "single" and ranks > 1:
        raise UsageError(f"run.strategy single is for one device; {ranks} are asked for (run.devices, run.nodes)")
    if name == "fsdp" and ranks == 1:
        raise UsageError("run.strategy fsdp shards over several devices; raise run.devices, or use single")
    if name == "fsdp" and cfg.optimizer.muon_learning_rate is not None:
        raise UsageError("Muon needs whole matrices: leave optimizer.muon_learning_rate out with run.strategy fsdp")
    if name == "fsdp" and cfg.optimizer.eight_bit:
        raise UsageError("optimizer.eight_bit is for whole weights; run.strategy fsdp spreads the moments instead")
    if cfg.optimizer.eight_bit:
        import_torchao()
    if cfg.data.keep_latents and not cfg.data.latents and cfg.latents.codec == "wan":
        raise UsageError(
            "data.keep_latents encodes in the processes that read, which have no GPU: with latents.codec wan run "
            "`seqtex encode` and set data.latents true, or set data.keep_latents false"
        )
    if cfg.data.batch_size % parts:
        raise UsageError(
            f"data.batch_size {cfg.data.batch_size} is not {ranks} devices x "
            f"run.accumulate_grad_batches {cfg.run.accumulate_grad_batches} "
            f"equal parts; use a multiple of {parts}"
        )


def bytes_needed(cfg: TrainConfig, cost: Cost, name: str, ranks: int) -> int:
    memory = cost.memory[cfg.model.activation_checkpointing]
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
    return Sharded(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)


class Sharded(ModelParallelStrategy):
    """FSDP2; rank 0 saves whole tensors, through the same checked and atomic files, so that any strategy and number of
    ranks can go on from them. (Lightning's own reads past the checks, and refuses parameters that no batch has used
    yet.)"""

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        trained = trained_parameters(self.lightning_module)
        return gathered({name: local(p.detach()) for name, p in trained.items()}, trained)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_whole(trained_parameters(self.lightning_module), checkpoint["state_dict"])

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return self.checkpoint_io.load_checkpoint(checkpoint_path, weights_only=True)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return whole_optimizer_state(optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            load_whole_optimizer_state(optimizer, state)


def own_device(accelerator: str) -> torch.device:
    """Return the device of this process, as torchrun, SLURM and Lightning number them."""
    if accelerator == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))))


def is_first_process() -> bool:
    """Return whether this process has rank 0, and so reports; known before the processes meet."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "NODE_RANK", "LOCAL_RANK", "SLURM_PROCID"))


def memory_of(device: torch.device) -> int | None:
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
