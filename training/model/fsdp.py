"""One model over many GPUs: fully sharded blocks (FSDP2), in one group or in several that hold copies of each other
(HSDP), and whole tensors from shards and back.

Every function here is called by all ranks together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from schemas.errors import UserError
from training.model.optimizers import check_optimizer
from training.model.seqtex import SeqTexTransformer3DModel

HYBRID = ("replicate", "shard")
"""Dimensions of the mesh of groups that hold copies of each other: the groups, and the ranks of each."""


def shard(model: SeqTexTransformer3DModel, mesh: DeviceMesh, dtype: torch.dtype | None = None) -> None:
    """Spreads weights, gradients and optimiser state over the ranks of the mesh, block by block, from the weights of
    rank 0; on the others the model may be on the meta device. Does nothing the second time.

    mesh: Lightning's, or one with the dimensions `HYBRID`. dtype: blocks are gathered in it, their gradients reduced in
    float32; what is outside of them stays float32, and so does every shard. None: all of it is float32. Batches that
    leave the UV branch out reduce no gradient of it: which ones do is known to every rank."""
    if isinstance(model, FSDPModule):
        return
    ranks = mesh if mesh.mesh_dim_names == HYBRID else mesh["data_parallel"]
    whole = model.state_dict() if torch.distributed.get_rank() == 0 else {}
    nn.Module.to(model, "meta")
    narrow = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in model.blocks:
        fully_shard(block, mesh=ranks, mp_policy=narrow)
    fully_shard(model, mesh=ranks, reshard_after_forward=True)  # so that sampling, too, leaves shards behind
    model.to_empty(device=mesh.device_type)
    set_model_state_dict(model, whole, options=StateDictOptions(full_state_dict=True, broadcast_from_rank0=True))


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is. Shares memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def as_shards(parts: Mapping[str, Tensor], likes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of which this rank holds these parts, in the layout of `likes`. Shares memory."""
    return {
        name: DTensor.from_local(
            part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
        if isinstance(like := likes[name], DTensor)
        else part
        for name, part in parts.items()
    }


def gathered(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Assembles whole tensors: those that are sharded on rank 0 in its memory, and none of them on the others."""
    full = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            full[name] = tensor
            continue
        whole = tensor.full_tensor()
        if torch.distributed.get_rank() == 0:
            full[name] = whole.cpu()
    return full


def laid_out(full: Tensor, like: Tensor) -> Tensor:
    """A whole tensor that every rank holds, sharded like another one, and on its device; one that is sharded already as
    it is."""
    if isinstance(full, DTensor):
        return full
    if not isinstance(like, DTensor):
        return full.to(like.device)
    full = full.to(like.device_mesh.device_type)
    return distribute_tensor(full, like.device_mesh, like.placements, src_data_rank=None)


def part_of_whole(full: Tensor, like: Tensor) -> Tensor:
    """The inverse of `gathered` for one tensor: this rank's part of `laid_out`."""
    return local(laid_out(full, like))


def check_whole(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raises UserError where whole tensors are not those of these parameters."""
    other = sorted(targets.keys() ^ state.keys()) or [n for n, p in targets.items() if p.shape != state[n].shape]
    if other:
        raise UserError(
            f"the trainer state is of another model, or of other trained parts ({len(other)} tensors differ, the first "
            f"is {other[0]}): give the options in config.json of run.directory, or another run.directory"
        )


def load_whole(targets: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Fills parameters, sharded or not, from whole tensors that every rank holds, or from tensors in their layout."""
    with torch.no_grad():
        for name, target in targets.items():
            local(target).copy_(part_of_whole(state[name], target))


def whole_optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimiser's state as one device would have it, on rank 0; on the others without its tensors. What never had a
    gradient has none here either."""
    state = optimizer.state_dict()
    full = {number: gathered(entries) for number, entries in state["state"].items()}
    return state | {"state": full}


def load_whole_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """The inverse of `whole_optimizer_state`, from a state that every rank holds."""
    check_optimizer({"param_groups": optimizer.param_groups}, state)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def spread(value: Any, like: Tensor) -> Any:
        return laid_out(value, like) if isinstance(value, Tensor) and value.shape == like.shape else value

    sharded = {
        number: {name: spread(value, parameters[number]) for name, value in entries.items()}
        for number, entries in state["state"].items()
    }
    optimizer.load_state_dict(state | {"state": sharded})


def whole_model(model: SeqTexTransformer3DModel) -> SeqTexTransformer3DModel:
    """The model with all of its weights: itself, or on rank 0 of a sharded run a copy on the CPU (elsewhere nothing is
    in it)."""
    if not isinstance(model, FSDPModule):
        return model
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = get_model_state_dict(model, options=options)
    with torch.device("meta"):
        copy = SeqTexTransformer3DModel(**{name: value for name, value in model.config.items() if name[0] != "_"})
    copy.load_state_dict(state, assign=True, strict=bool(state))
    return copy
