"""Configurations of backbones: of those that are known by their repository without a download, of others read."""

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from schemas.errors import UserError
from training.model.backbones.backbone import PATCH, Backbone, LatentLayout
from training.model.backbones.wan import TWO_EXPERTS, WAN21_1P3B, WAN21_14B, WAN22_5B, WAN22_A14B, WAN22_I2V_A14B
from training.model.files import find_directory, part_directory, read_config, read_shapes

KNOWN = {each.hub: each for each in (WAN21_1P3B, WAN21_14B, WAN22_5B, WAN22_A14B, WAN22_I2V_A14B)}
FOLDER = "transformer"
SECOND_FOLDER = "transformer_2"
"""The second transformer of pipelines with two experts."""
FIXED = {"patch_size": (1, PATCH, PATCH), "image_dim": None, "added_kv_proj_dim": None}
"""Settings that weights must have: one frame a patch, no images beside the text."""


def known(path: str) -> Backbone | None:
    """Return the backbone of a hub repository. Raises UserError with the reason if SeqTex cannot start from it."""
    found = KNOWN.get(path)
    reason = found.refused if found else TWO_EXPERTS if (Path(path) / SECOND_FOLDER).is_dir() else ""
    if reason:
        raise UserError(f"{path}: SeqTex cannot start from it: {reason}")
    return found


def transformer_config(path: str) -> Mapping[str, Any]:
    """Return the settings of a backbone's transformer.

    Raises:
        UserError: there is none, it has two experts, or it takes other inputs, such as Wan's image-to-video models.
    """
    found = known(path)
    config = found.transformer if found else {**WAN21_1P3B.transformer, **read_config(find_directory(path, FOLDER))}
    check_fixed(path, config)
    return config


def check_fixed(path: str, config: Mapping[str, Any]) -> None:
    """Raise UserError if weights are of a model with other inputs, such as Wan's image-to-video models."""
    for name, wanted in ({"in_channels": config["out_channels"]} | FIXED).items():
        value = config.get(name, wanted)
        if (tuple(value) if isinstance(value, list) else value) != wanted:
            raise UserError(
                f"{path}: {name} is {value}, SeqTex needs {wanted}: start from a text-to-video model of Wan2.1 (the "
                "default), or from Wan2.2-TI2V-5B"
            )


def vae_layout(path: str) -> LatentLayout:
    """Return the latents of a Wan VAE. path: as `part_directory` takes it. Raises UserError if there is none."""
    if path in KNOWN:
        return KNOWN[path].vae
    directory = part_directory(path, "vae")
    sizes = [prod(shape) for shape in read_shapes(directory).values()]
    return layout_of(read_config(directory), sum(sizes))


def layout_of(config: Mapping[str, Any], parameters: int = 0) -> LatentLayout:
    """Read the latents of a Wan VAE from its configuration in diffusers."""
    downscale = 2 ** (len(config["dim_mult"]) - 1) * (config.get("patch_size") or 1)
    return LatentLayout(channels=config["z_dim"], downscale=downscale, parameters=parameters)
