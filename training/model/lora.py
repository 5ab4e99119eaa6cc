"""LoRA of the view branch: its layers, merging it into the weights, and files of its own for peft and diffusers."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from safetensors.torch import save_file
from torch import Tensor, nn

from schemas.errors import UserError
from training.model.files import check_tensors, find_directory, read_config, read_tensors, replaced_directory, shapes

LORA_TARGETS = r"blocks\.\d+\.(attn1\.(to_q|to_k|to_v|to_out\.0)|ffn\.net\.(0\.proj|2))"
"""Layers of the view branch that carry LoRA in the released weights (regular expression on module names)."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def lora_config(rank: int, alpha: int) -> Any:
    """peft's description of the released LoRA."""
    from peft import LoraConfig  # seconds to import, and only LoRA models need it

    return LoraConfig(r=rank, lora_alpha=alpha, target_modules=LORA_TARGETS, lora_dropout=0.0, bias="none")


def add_lora(model: nn.Module, rank: int, alpha: int) -> None:
    """Wrap the layers of LORA_TARGETS in peft's LoRA, with all parameters left trainable (the caller freezes)."""
    from peft import inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    inject_adapter_in_model(lora_config(rank, alpha), model, adapter_name="default")
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False  # autocast narrows what it reads; a wide copy would be made for it
    model.requires_grad_(True)


def lora_layers(model: ModelMixin) -> list[Any]:
    if not model.config["lora_rank"]:
        return []
    from peft.tuners.lora import LoraLayer  # seconds to import, and only LoRA models need it

    return [module for module in model.modules() if isinstance(module, LoraLayer)]


def merge_lora(model: ModelMixin) -> None:
    """Add each LoRA product to the weight below it, in place: faster sampling. The model cannot be saved meanwhile."""
    for layer in lora_layers(model):
        if not layer.merged:
            layer.merge()


def unmerge_lora(model: ModelMixin) -> None:
    """Undo `merge_lora` (up to rounding)."""
    for layer in lora_layers(model):
        if layer.merged:
            layer.unmerge()


def check_unmerged(model: ModelMixin) -> None:
    if any(layer.merged for layer in lora_layers(model)):
        raise ValueError("LoRA is merged into the weights, so saving would count it twice; call unmerge_lora first")


def merged_state(state: Mapping[str, Tensor], scale: float) -> dict[str, Tensor]:
    """A state without LoRA whose weights include it: W + scale * B A, under the names that Wan's layers have."""
    merged = {}
    for name, tensor in state.items():
        if ".lora_" in name:
            continue
        if name.endswith(".base_layer.weight"):
            layer = name.removesuffix(".base_layer.weight")
            down, up = (state[f"{layer}.{part}.default.weight"].float() for part in ("lora_A", "lora_B"))
            tensor = (tensor.float() + scale * (up @ down)).to(tensor.dtype)
        merged[name.replace(".base_layer", "")] = tensor
    return merged


def save_lora(model: ModelMixin, directory: str | os.PathLike[str]) -> None:
    """Write LoRA alone, in two layouts: as a peft adapter, which `peft.PeftModel.from_pretrained` puts onto a Wan
    transformer, and as `pytorch_lora_weights.safetensors`, which `WanPipeline.load_lora_weights` and the transformer's
    `load_lora_adapter` read, rank and alpha with it."""
    check_unmerged(model)
    rank, alpha = model.config["lora_rank"], model.config["lora_alpha"]
    if not rank:
        raise UserError("this model has no LoRA to write; export its weights instead")
    with replaced_directory(directory, ADAPTER_CONFIG) as fresh:
        adapter = lora_config(rank, alpha)
        adapter.save_pretrained(str(fresh))
        tensors = {
            name.replace(".default.", "."): tensor.detach().cpu().contiguous()
            for name, tensor in model.state_dict().items()
            if ".lora_" in name
        }
        peft_names = {f"base_model.model.{name}": tensor for name, tensor in tensors.items()}
        save_file(peft_names, fresh / ADAPTER_WEIGHTS, metadata={"format": "pt"})
        from diffusers.loaders import WanLoraLoaderMixin  # seconds to import, and only exports need it

        WanLoraLoaderMixin.save_lora_weights(
            fresh, transformer_lora_layers=tensors, transformer_lora_adapter_metadata=adapter.to_dict()
        )


def load_lora(model: ModelMixin, path: str | os.PathLike[str], subfolder: str = "") -> None:
    """Put a peft adapter of the model's own rank, from a directory or the hub, in the place of its LoRA weights."""
    directory = find_directory(path, subfolder)
    config, tensors = read_config(directory, ADAPTER_CONFIG), read_tensors(directory, ADAPTER_WEIGHTS)
    found = {
        name.removeprefix("base_model.model.").replace(".weight", ".default.weight"): tensor
        for name, tensor in tensors.items()
    }
    own = {name: tensor for name, tensor in model.state_dict().items() if ".lora_" in name}
    check_tensors(shapes(own), shapes(found), str(directory))
    alpha = config.get("lora_alpha", model.config["lora_alpha"])
    with torch.no_grad():
        for name, tensor in own.items():
            share = alpha / model.config["lora_alpha"] if ".lora_B." in name else 1.0
            tensor.copy_(found[name] * share)
