"""Weights in and out: models of the released layout, the start from Wan's weights, and what is trained."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor, nn

from schemas.errors import UserError
from training.model.backbones.backbone import CONDITIONS, GEOMETRY_EMBEDDINGS, HINT, MAPS, UV_MODULES, wan_name
from training.model.block import GeometryAttention, UvBranch
from training.model.files import (
    CONFIG,
    RELEASED_CLASS,
    RELEASED_LORA_ALPHA,
    check_tensors,
    find_directory,
    read_config,
    read_tensors,
    replaced_directory,
)
from training.model.files import shapes as shapes_of
from training.model.lora import check_unmerged, merged_state
from training.model.seqtex import SeqTexTransformer3DModel

FINGERPRINT = "frozen_sha256"
"""Entry of a trainer state: the fingerprint of the frozen weights."""


def frozen_fingerprint(model: nn.Module) -> str:
    """sha256 over names, shapes and values of the parameters that do not train; on whole weights, before sharding."""
    frozen = {name: p.detach() for name, p in model.named_parameters() if not p.requires_grad}
    with ThreadPoolExecutor() as pool:
        sums = pool.map(tensor_sha256, frozen.values())
        lines = [f"{name} {tuple(p.shape)} {sum_}" for (name, p), sum_ in zip(frozen.items(), sums, strict=True)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tensor_sha256(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data).hexdigest()


def check_frozen(state: Mapping[str, Any], fingerprint: str) -> None:
    """Raises UserError where a trainer state was made from other frozen weights than those that are loaded."""
    if state.get(FINGERPRINT) != fingerprint:
        raise UserError(
            "the trainer state was made from other frozen weights than those that are loaded: give model.start_path "
            "(and run.seed, where LoRA starts from it) as they were, or another run.directory"
        )


RELEASED_LORA_RANK = 128
OUR_SETTINGS = ("lora_rank", "lora_alpha", "geometry_attention", "uv_branch", "view_hint", "position_rope",
                "condition_channels", "maps")  # fmt: skip
"""Settings that a released config does not mention."""


def from_wan(
    wan: nn.Module | Mapping[str, Tensor] | str | os.PathLike[str],
    config: Mapping[str, Any] | None = None,
    *,
    subfolder: str = "",
    lora_rank: int = RELEASED_LORA_RANK,
    lora_alpha: int = RELEASED_LORA_ALPHA,
    geometry_attention: GeometryAttention = "mv_uv",
    uv_branch: UvBranch = "decoupled",
    rope_max_seq_len: int = 1024,
    view_hint: bool = False,
    condition_channels: Mapping[str, int] | None = None,
    maps: Sequence[str] = (),
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SeqTexTransformer3DModel:
    """A SeqTex model at the start of training: its view output is Wan's own for the same frames and timestep.

    wan is diffusers' WanTransformer3DModel, its state with its config, its directory, or a hub repository (there,
    subfolder "transformer"). The UV branch and the geometry embeddings are copies of their twins; the geometry casters,
    the layers of view hint and condition images, the embeddings of further maps and LoRA's B are zero; seed draws
    LoRA's A. The weights are copied.
    """
    if isinstance(wan, str | os.PathLike):
        directory = find_directory(wan, subfolder)
        weights: Mapping[str, Tensor] = read_tensors(directory)
        config = read_config(directory) if config is None else config
    else:
        weights = wan.state_dict() if isinstance(wan, nn.Module) else wan
        config = wan.config if isinstance(wan, ConfigMixin) else config
    if config is None:
        raise ValueError("from_wan needs the config that belongs to a state dict (the heads do not follow from shapes)")
    switches = {
        "geometry_attention": geometry_attention,
        "uv_branch": uv_branch,
        "rope_max_seq_len": rope_max_seq_len,
        "view_hint": view_hint,
        "condition_channels": dict(condition_channels) if condition_channels else None,
        "maps": list(maps) or None,
    }
    model = SeqTexTransformer3DModel.empty(dict(config) | {"lora_rank": lora_rank, "lora_alpha": lora_alpha} | switches)
    shapes = shapes_of(model.state_dict())
    sources = {name: source for name in shapes if (source := wan_name(name)) is not None}
    expected = {source: shapes[name] for name, source in sources.items()}
    check_tensors(expected, shapes_of(weights), str(wan) if isinstance(wan, str | os.PathLike) else "Wan weights")
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name in sources:
            state[name] = weights[sources[name]].detach().clone()
        elif ".lora_A." in name:
            state[name] = nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=generator)
        else:
            state[name] = torch.zeros(shape)
    return model.filled(state, dtype)


def mark_trained(model: nn.Module, mode: Literal["released", "all"]) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; the others are frozen here (requires_grad off).

    released: LoRA, the UV branch, the geometry embeddings and casters, as SeqTex was trained from Wan, and the
    layers of view hint, condition images and further maps. all: everything, for models that start from nothing.
    """
    trained_parts = {*UV_MODULES, *GEOMETRY_EMBEDDINGS, "geometry_caster", HINT, CONDITIONS, MAPS, "lora_A", "lora_B"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mode == "all" or not trained_parts.isdisjoint(name.split(".")))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen_matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the frozen weights and biases that enter matrix products alone, by name: not those of norms, nor of the
    time embedding, which stays in full precision."""
    return {
        f"{name}.{own}": parameter
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv3d) and not {"time_embedder", "time_proj"} & set(name.split("."))
        for own, parameter in layer.named_parameters(recurse=False)
        if not parameter.requires_grad
    }


def narrow_frozen(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Keep the frozen matrices in a narrow dtype, in place, and return them as they were. Under autocast to that dtype,
    which would narrow them for every product, no result changes by a bit."""
    wide = {}
    for name, parameter in frozen_matrices(model).items():
        wide[name] = parameter.data
        parameter.data = parameter.data.to(dtype)
    return wide


def is_released(directory: Path) -> bool:
    """Return whether the directory says that it holds weights in the released layout, not a checkpoint of ours."""
    return (directory / CONFIG).is_file() and read_config(directory).get("_class_name") == RELEASED_CLASS


def save_model(model: SeqTexTransformer3DModel, directory: str | os.PathLike[str], max_shard_size: str = "5GB") -> None:
    """Write a model directory for `SeqTexTransformer3DModel.from_pretrained`, whole or not at all. Replaces an earlier
    one."""
    with replaced_directory(directory) as fresh:
        write_model(model, fresh, max_shard_size)


def write_model(model: SeqTexTransformer3DModel, directory: Path, max_shard_size: str = "5GB") -> None:
    """Into a directory that is there."""
    check_unmerged(model)
    model.save_pretrained(directory, max_shard_size=max_shard_size, safe_serialization=True)


def export_released(
    model: SeqTexTransformer3DModel,
    directory: str | os.PathLike[str],
    lora: Literal["separate", "merged"] = "separate",
    max_shard_size: str = "5GB",
) -> None:
    """Write the model as the released code reads it: its class name and settings, and LoRA in peft's names or merged.

    The released code builds LoRA at rank 128, alpha 64. A smaller rank is filled up with zeros and another alpha goes
    into B, so that the product stays the same.
    """
    check_unmerged(model)
    _check_exportable(model, lora)
    state, config = dict(model.state_dict()), dict(model.config)
    rank = config["lora_rank"]
    if rank and lora == "merged":
        state = merged_state(state, config["lora_alpha"] / rank)
    elif rank:
        state = {name: _at_released_rank(name, tensor, config) for name, tensor in state.items()}
    settings = {
        "lora_rank": RELEASED_LORA_RANK if rank and lora == "separate" else 0,
        "lora_alpha": RELEASED_LORA_ALPHA,
    }
    twin = SeqTexTransformer3DModel.empty(config | settings)
    twin.load_state_dict(state, assign=True)
    with replaced_directory(directory) as fresh:
        twin.save_pretrained(fresh, max_shard_size=max_shard_size, safe_serialization=True)
        written = read_config(fresh) | {"_class_name": RELEASED_CLASS}
        released = {name: value for name, value in written.items() if name not in OUR_SETTINGS}
        (fresh / CONFIG).write_text(json.dumps(released, indent=2) + "\n")


OUR_LAYOUT = "export it in the layout of a checkpoint (seqtex weights --layout checkpoint)"


def _check_exportable(model: SeqTexTransformer3DModel, lora: str) -> None:
    released_settings: dict[str, Any] = {"geometry_attention": "mv_uv", "uv_branch": "decoupled"}
    for name, released in (released_settings | {"view_hint": False, "position_rope": False}).items():
        if model.config[name] != released:
            raise UserError(
                f"the released layout has {name}={released} alone, this model {model.config[name]}; {OUR_LAYOUT}"
            )
    if names := model.config["condition_channels"]:
        raise UserError(
            f"the released layout has no condition images, this model takes {', '.join(names)}; {OUR_LAYOUT}"
        )
    if names := model.config["maps"]:
        raise UserError(f"the released layout has one UV map, this model generates {', '.join(names)}; {OUR_LAYOUT}")
    if lora == "separate" and model.config["lora_rank"] > RELEASED_LORA_RANK:
        raise UserError(
            f"the released layout has LoRA of rank {RELEASED_LORA_RANK}, this model {model.config['lora_rank']}; "
            "export it merged"
        )


def _at_released_rank(name: str, tensor: Tensor, config: Mapping[str, Any]) -> Tensor:
    missing = RELEASED_LORA_RANK - config["lora_rank"]
    if ".lora_A." in name:
        return nn.functional.pad(tensor, (0, 0, 0, missing))
    if ".lora_B." in name:
        scale = config["lora_alpha"] / config["lora_rank"] * RELEASED_LORA_RANK / RELEASED_LORA_ALPHA
        return nn.functional.pad(tensor * scale, (0, missing))
    return tensor
