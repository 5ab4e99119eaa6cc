"""Model files in the released layout, the start from Wan's weights, LoRA merging, and what is trained.

A model directory holds `config.json` and `diffusion_pytorch_model.safetensors`, or its shards and their
`.safetensors.index.json`: what diffusers and the released SeqTex checkpoint use. Pickled weights are never read.
"""

import inspect
import json
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.configuration_utils import ConfigMixin
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from schemas.errors import UserError
from training.model.seqtex import SeqTexTransformer3DModel

WEIGHTS = "diffusion_pytorch_model.safetensors"
CLASS_NAMES = ("SeqTexTransformer3DModel", "WanT2TexTransformer3DModel")
"""Our class and the released checkpoint's."""
RELEASED_LORA_ALPHA = 64
UV_MODULES = {"attnuv": "attn1", "ffnuv": "ffn", "normuv2": "norm2", "scale_shift_table_uv": "scale_shift_table"}
"""UV branch, and the view branch's twin it starts as."""
GEOMETRY_EMBEDDINGS = {"pos_patch_embedding": "patch_embedding", "norm_patch_embedding": "patch_embedding"}
LISTED = 12
"""Names per kind that an error message spells out."""

logger = logging.getLogger(__name__)


def load_model(
    path: str | os.PathLike[str], *, subfolder: str = "", dtype: torch.dtype = torch.float32
) -> SeqTexTransformer3DModel:
    """The model in a local directory or, if there is none of that name, in a hub repository.

    A released config does not mention LoRA: the rank then follows from the tensors, and alpha is the released 64.
    Norms, time embedder and modulation tables stay float32 at any dtype.
    """
    directory = find_directory(path, subfolder)
    config = read_config(directory)
    if config.get("_class_name") not in CLASS_NAMES:
        raise UserError(
            f"{directory / 'config.json'}: _class_name is {config.get('_class_name')!r}, not one of {CLASS_NAMES}; "
            "start from Wan weights with from_wan instead"
        )
    state = read_tensors(directory)
    ranks = {tensor.shape[0] for name, tensor in state.items() if ".lora_A." in name}
    if "lora_rank" not in config and ranks:
        config |= {"lora_rank": max(ranks), "lora_alpha": config.get("lora_alpha", RELEASED_LORA_ALPHA)}
    model = empty_model(config)
    check_tensors(_shapes(model.state_dict()), _shapes(state), str(directory))
    return _fill(model, state, dtype)


def from_wan(
    wan: nn.Module | Mapping[str, Tensor],
    config: Mapping[str, Any] | None = None,
    *,
    lora_rank: int = 128,
    lora_alpha: int = RELEASED_LORA_ALPHA,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SeqTexTransformer3DModel:
    """A SeqTex model at the start of training: its view output is Wan's own for the same frames and timestep.

    wan is diffusers' WanTransformer3DModel, or its state with its config. The UV branch and the geometry embeddings are
    copies of their twins, the geometry casters and LoRA's B zero; seed draws LoRA's A. The weights are copied.
    """
    weights = wan.state_dict() if isinstance(wan, nn.Module) else wan
    if isinstance(wan, ConfigMixin):
        config = wan.config
    if config is None:
        raise ValueError("from_wan needs the config that belongs to a state dict (the heads do not follow from shapes)")
    model = empty_model(dict(config) | {"lora_rank": lora_rank, "lora_alpha": lora_alpha})
    shapes = _shapes(model.state_dict())
    sources = {name: source for name in shapes if (source := wan_name(name)) is not None}
    check_tensors({source: shapes[name] for name, source in sources.items()}, _shapes(weights), "Wan weights")
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name in sources:
            state[name] = weights[sources[name]].detach().clone()
        elif ".lora_A." in name:
            state[name] = nn.init.kaiming_uniform_(torch.empty(shape), a=5**0.5, generator=generator)
        else:
            state[name] = torch.zeros(shape)
    return _fill(model, state, dtype)


def load_wan(
    path: str | os.PathLike[str],
    *,
    subfolder: str = "",
    lora_rank: int = 128,
    lora_alpha: int = RELEASED_LORA_ALPHA,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> SeqTexTransformer3DModel:
    """`from_wan` of a diffusers Wan transformer on disk or on the hub (there, subfolder "transformer")."""
    directory = find_directory(path, subfolder)
    state, config = read_tensors(directory), read_config(directory)
    return from_wan(state, config, lora_rank=lora_rank, lora_alpha=lora_alpha, seed=seed, dtype=dtype)


def wan_name(name: str) -> str | None:
    """The Wan tensor that a SeqTex tensor starts as; None for LoRA and the geometry casters."""
    if ".lora_" in name or "geometry_caster" in name:
        return None
    twins = UV_MODULES | GEOMETRY_EMBEDDINGS
    return ".".join(twins.get(part, part) for part in name.split(".") if part != "base_layer")


def trainable_parameters(model: nn.Module, mode: Literal["released", "all"]) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; the others are frozen here (requires_grad off).

    released: LoRA, the UV branch and the geometry embeddings and casters, as SeqTex was trained from Wan. all:
    everything, for models that start from nothing.
    """
    trained_parts = {*UV_MODULES, *GEOMETRY_EMBEDDINGS, "geometry_caster", "lora_A", "lora_B"}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(mode == "all" or not trained_parts.isdisjoint(name.split(".")))
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def merge_lora(model: SeqTexTransformer3DModel) -> None:
    """Add each LoRA product to the weight below it, in place: faster sampling. The model cannot be saved meanwhile."""
    for layer in _lora_layers(model):
        if not layer.merged:
            layer.merge()


def unmerge_lora(model: SeqTexTransformer3DModel) -> None:
    """Undo `merge_lora` (up to rounding)."""
    for layer in _lora_layers(model):
        if layer.merged:
            layer.unmerge()


def save_model(model: SeqTexTransformer3DModel, directory: str | os.PathLike[str], max_shard_size: str = "5GB") -> None:
    """Write a model directory that `load_model` reads, whole or not at all; an earlier one of that name is replaced."""
    if any(layer.merged for layer in _lora_layers(model)):
        raise ValueError("LoRA is merged into the weights, so saving would count it twice; call unmerge_lora first")
    target = Path(directory).absolute()
    if target.exists() and not (target / "config.json").is_file():
        raise UserError(f"{target} exists and is not a model directory; choose another name or remove it")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as beside:
        fresh, old = Path(beside) / "fresh", Path(beside) / "old"
        model.save_pretrained(fresh, max_shard_size=max_shard_size, safe_serialization=True)
        for file in fresh.iterdir():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if target.exists():
            target.rename(old)
        fresh.rename(target)


def find_directory(path: str | os.PathLike[str], subfolder: str = "") -> Path:
    """A local model directory, downloaded first if path names a hub repository."""
    local = Path(path)
    if local.is_dir():
        return local / subfolder
    if not re.fullmatch(r"[\w-]+/[\w.-]+", str(path)):
        raise UserError(f"{path}: no such directory, nor the name of a hub repository (owner/name)")
    from huggingface_hub import snapshot_download  # only for repositories that are not on this machine

    prefix = f"{subfolder}/" if subfolder else ""
    patterns = [f"{prefix}*.json", f"{prefix}*.safetensors"]
    return Path(snapshot_download(str(path), allow_patterns=patterns)) / subfolder


def read_config(directory: Path) -> dict[str, Any]:
    file = directory / "config.json"
    if not file.is_file():
        raise UserError(
            f"{directory} has no config.json; give the directory of one model (for a pipeline: its transformer)"
        )
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not valid JSON ({error}); copy the model again") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} does not hold a JSON object; copy the model again")
    return config


def read_tensors(directory: Path) -> dict[str, Tensor]:
    """All tensors of a model directory, of one file or of the shards its index names."""
    index = directory / f"{WEIGHTS}.index.json"
    if index.is_file():
        try:
            names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not a shard index ({error!r}); copy the model again") from error
    else:
        names = [WEIGHTS]
    state: dict[str, Tensor] = {}
    for name in names:
        file = directory / name
        if Path(name).name != name or not file.is_file():
            raise UserError(f"{file} is not a file in the model directory; copy the model again (safetensors only)")
        try:
            state |= load_file(file)
        except SafetensorError as error:
            raise UserError(f"{file} cannot be read ({error}); copy it again") from error
    return state


def empty_model(config: Mapping[str, Any]) -> SeqTexTransformer3DModel:
    """The model of a config, on the meta device. Settings that the model does not have are left out with a warning."""
    known = set(inspect.signature(SeqTexTransformer3DModel.__init__).parameters) - {"self"}
    unknown = {key for key, value in config.items() if key not in known and key[0] != "_" and value is not None}
    if unknown:
        logger.warning("settings that SeqTexTransformer3DModel does not have are left out: %s", sorted(unknown))
    with torch.device("meta"):
        return SeqTexTransformer3DModel(**{key: value for key, value in config.items() if key in known})


def check_tensors(expected: Mapping[str, torch.Size], found: Mapping[str, torch.Size], source: str) -> None:
    """One error that lists every missing, unexpected and misshapen tensor with its shape."""
    missing = [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]
    extra = [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]
    misshapen = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems = {"missing": missing, "unexpected": extra, "of another shape": misshapen}
    if any(problems.values()):
        lines = [f"{len(names)} {kind}: {_shortened(names)}" for kind, names in problems.items() if names]
        raise UserError(f"{source}: tensors do not fit the model of this config\n  " + "\n  ".join(lines))


def _shortened(names: list[str]) -> str:
    rest = len(names) - LISTED
    return "; ".join(names[:LISTED]) + (f"; and {rest} more" if rest > 0 else "")


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in state.items()}


def _fill(model: SeqTexTransformer3DModel, state: Mapping[str, Tensor], dtype: torch.dtype) -> SeqTexTransformer3DModel:
    """Put tensors into a meta model without a second copy; sensitive parts stay float32."""
    wide = set(model._keep_in_fp32_modules)
    cast = {
        name: tensor.to(dtype if wide.isdisjoint(name.split(".")) else torch.promote_types(dtype, torch.float32))
        for name, tensor in state.items()
    }
    model.load_state_dict(cast, assign=True)
    return model


def _lora_layers(model: SeqTexTransformer3DModel) -> list[Any]:
    if not model.config["lora_rank"]:
        return []
    from peft.tuners.lora import LoraLayer  # seconds to import, and only LoRA models need it

    return [module for module in model.modules() if isinstance(module, LoraLayer)]
