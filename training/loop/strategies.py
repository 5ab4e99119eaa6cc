"""Strategies that spread a run over devices: one, copies that average their gradients (DDP), or shards of one model
(FSDP2), in one group or in several (HSDP)."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from schemas.errors import UsageError
from schemas.sample import Regime
from training.config import TrainConfig
from training.cost import USABLE, Cost
from training.loop.states import Layout, ShardedCheckpointIO, load_state
from training.model.fsdp import HYBRID, gathered, load_whole, load_whole_optimizer_state, whole_optimizer_state
from training.model.optimizers import import_torchao
from training.module import TextureModule

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
    if cfg.run.shard_size and (name != "fsdp" or ranks % cfg.run.shard_size):
        raise UsageError(
            f"run.shard_size {cfg.run.shard_size} is for run.strategy fsdp, and must divide its {ranks} devices into "
            "equal groups; leave it out, or give the GPUs of a node"
        )
    if cfg.optimizer.eight_bit and cfg.run.state_format == "sharded":
        raise UsageError("optimizer.eight_bit has moments that run.state_format sharded cannot hold; use one_file")
    if cfg.optimizer.eight_bit:
        import_torchao()
    if cfg.data.keep_latents and not cfg.data.latents and cfg.latents.codec == "wan":
        raise UsageError(
            "data.keep_latents encodes in the processes that read, which have no GPU: with latents.codec wan run "
            "`seqtex encode` and set data.latents true, or set data.keep_latents false"
        )
    for regime, share in ((Regime.TEXTURED, 1 - cfg.data.mv_only_ratio), (Regime.MV_ONLY, cfg.data.mv_only_ratio)):
        if share and not cfg.tasks.weights(regime):
            raise UsageError(
                f"tasks.{regime} is empty, and {share:g} of all batches are of that regime: name a task, or set "
                "data.mv_only_ratio"
            )
    if cfg.data.batch_size % parts:
        raise UsageError(
            f"data.batch_size {cfg.data.batch_size} is not {ranks} devices x "
            f"run.accumulate_grad_batches {cfg.run.accumulate_grad_batches} "
            f"equal parts; use a multiple of {parts}"
        )


def bytes_needed(cfg: TrainConfig, cost: Cost, name: str, ranks: int) -> int:
    shards = (cfg.run.shard_size or ranks) if name == "fsdp" else 1
    return cost.bytes_needed(cfg.model.activation_checkpointing, shards)


def make_strategy(name: Name, device: torch.device, ranks: int, shard_size: int = 0) -> Strategy:
    """shard_size: ranks that hold one copy of the model together, with fsdp; 0: all of them."""
    if name == "single":
        return SingleDeviceStrategy(device=device)
    if name == "ddp":
        # Batches of views alone leave out the UV branch, captionless ones text attention. DDP then finds what takes no
        # part and leaves its gradient unset, as on one device: no decay, no momentum.
        return Copies(find_unused_parameters=True, gradient_as_bucket_view=True)
    return Sharded(ranks, shard_size or ranks)


class Copies(DDPStrategy):
    """DDP whose ranks all write a part of a sharded state."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if self.is_global_zero or isinstance(self.checkpoint_io, ShardedCheckpointIO):
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)


class Sharded(ModelParallelStrategy):
    """FSDP2, over all ranks or over groups of them that hold copies (HSDP). Rank 0 saves whole tensors, or each rank
    its own, through the same checked and atomic files, so that any strategy and number of ranks can go on from them.
    (Lightning's own reads past the checks, and refuses parameters that no batch has used yet.)"""

    def __init__(self, ranks: int, shard_size: int) -> None:
        super().__init__(data_parallel_size=ranks, tensor_parallel_size=1, save_distributed_checkpoint=False)
        self.groups = (ranks // shard_size, shard_size)

    def setup_environment(self) -> None:
        super().setup_environment()
        if self.groups[0] > 1:
            self._device_mesh = init_device_mesh(self.root_device.type, self.groups, mesh_dim_names=HYBRID)
            assert self.lightning_module is not None
            self.lightning_module._device_mesh = self._device_mesh

    @property
    def keeps_shards(self) -> bool:
        """True if each rank writes its own part of a state."""
        return isinstance(self.checkpoint_io, ShardedCheckpointIO)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert isinstance(self.lightning_module, TextureModule)
        tensors = self.lightning_module.saved_tensors()
        return dict(tensors) if self.keeps_shards else gathered(tensors)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert isinstance(self.lightning_module, TextureModule)
        load_whole(self.lightning_module.saved_tensors(), checkpoint["state_dict"])

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        return load_state(Path(checkpoint_path), self._layout())

    def _layout(self) -> Layout:
        """Weights, their averages and moments lie where the weights do."""
        assert isinstance(self.lightning_module, TextureModule)
        named = self.lightning_module.saved_tensors()
        numbered = [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

        def layout(place: str) -> Tensor | None:
            parts = place.split("/")
            return numbered[int(parts[3])] if parts[0] == "optimizer_states" else named.get(parts[-1])

        return layout

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if self.is_global_zero or self.keeps_shards:
            self.checkpoint_io.save_checkpoint(checkpoint, filepath)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return optimizer.state_dict() if self.keeps_shards else whole_optimizer_state(optimizer)

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
