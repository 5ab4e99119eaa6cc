"""A video model in diffusers' layout as the two-branch model takes it: its sizes, its latents, and the names of its
tensors."""

from collections.abc import Mapping
from dataclasses import dataclass, field

PATCH = 2
"""Latent pixels a side of one token, in every backbone."""
UV_MODULES = {"attnuv": "attn1", "ffnuv": "ffn", "normuv2": "norm2", "scale_shift_table_uv": "scale_shift_table"}
"""UV branch, and the view branch's twin it starts as."""
GEOMETRY_EMBEDDINGS = {"pos_patch_embedding": "patch_embedding", "norm_patch_embedding": "patch_embedding"}
HINT = "hint_patch_embedding"
"""The layer of the view hint, which no released weights have."""
CONDITIONS = "condition_patch_embeddings"
"""The layers of other condition images."""
MAPS = "uv_map_embeddings"
"""The embeddings of generated maps beside the base colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentLayout:
    """The latents of a codec, and the size of its network."""

    channels: int
    downscale: int
    """Pixels a side of one latent pixel."""
    parameters: int = 0

    @property
    def token(self) -> int:
        """Pixels a side of what becomes one token."""
        return self.downscale * PATCH


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """Released weights whose configuration is known without a download."""

    hub: str
    """Repository with the folders `transformer` and `vae`."""
    vae: LatentLayout
    transformer: Mapping[str, int] = field(default_factory=dict, hash=False)
    """Settings of its transformer, by diffusers' names."""
    refused: str = ""
    """Reason why SeqTex cannot start from it."""


def wan_name(name: str) -> str | None:
    """The backbone's tensor that a SeqTex tensor starts as; None for LoRA, geometry casters, condition images
    and maps."""
    if ".lora_" in name or "geometry_caster" in name or name.startswith((HINT, CONDITIONS, MAPS)):
        return None
    twins = UV_MODULES | GEOMETRY_EMBEDDINGS
    return ".".join(twins.get(part, part) for part in name.split(".") if part != "base_layer")
