"""Layers of the transformer: norms, modulation, feed-forward, time and text embedding.

Module and parameter names are those of diffusers' WanTransformer3DModel, so that Wan and SeqTex checkpoints load as
they are. Norms, rotary positions, time embedding and modulation are computed in float32 (in float64 for a float64
model) whatever the precision of the rest.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def full_precision(x: Tensor) -> Tensor:
    """x as float32, or as float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class LayerNorm(nn.LayerNorm):
    """Layer norm in full precision, returned in the input's dtype."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = full_precision(x)
        weight, bias = self.weight.to(wide.dtype), self.bias.to(wide.dtype)
        return F.layer_norm(wide, self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class RmsNorm(nn.RMSNorm):
    """RMS norm in full precision, returned in full precision (rotary positions follow)."""

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        wide = full_precision(x)
        return F.rms_norm(wide, self.normalized_shape, self.weight.to(wide.dtype), self.eps)


def modulated_norm(
    x: Float[Tensor, "b n d"], shift: Float[Tensor, "b f d"], scale: Float[Tensor, "b f d"], eps: float
) -> Float[Tensor, "b n d"]:
    """norm(x) * (1 + scale) + shift, where each frame's n / f tokens share the frame's shift and scale."""
    normed = F.layer_norm(full_precision(x), x.shape[-1:], eps=eps).unflatten(1, (shift.shape[1], -1))
    return torch.addcmul(shift[:, :, None], normed, 1 + scale[:, :, None]).flatten(1, 2).to(x.dtype)


def gated_add(
    x: Float[Tensor, "b n d"], update: Float[Tensor, "b n d"], gate: Float[Tensor, "b f d"]
) -> Float[Tensor, "b n d"]:
    """x + gate * update, with one gate per frame."""
    frames = (gate.shape[1], -1)
    wide_x, wide_update = full_precision(x).unflatten(1, frames), full_precision(update).unflatten(1, frames)
    return torch.addcmul(wide_x, wide_update, gate[:, :, None]).flatten(1, 2).to(x.dtype)


class _GeluProjection(nn.Module):
    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), linear."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        # The empty place is Wan's dropout: it keeps the second layer's name "net.2".
        self.net = nn.ModuleList([_GeluProjection(dim, hidden_dim), nn.Identity(), nn.Linear(hidden_dim, dim)])

    def forward(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        return self.net[2](self.net[0](x))


class _TwoLayers(nn.Module):
    def __init__(self, in_dim: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, dim)
        self.linear_2 = nn.Linear(dim, dim)


def sinusoid(timestep: Float[Tensor, "*b"], dim: int) -> Float[Tensor, "*b dim"]:
    """Cosines, then sines, of the timestep at dim / 2 frequencies from 1 down to 1 / 10000 (exclusive), float32."""
    half = dim // 2
    exponents = -math.log(10000) / half * torch.arange(half, dtype=torch.float32, device=timestep.device)
    angles = timestep.float()[..., None] * exponents.exp()
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeTextEmbedding(nn.Module):
    """Embeds each frame's timestep and the text features."""

    def __init__(self, dim: int, freq_dim: int, text_dim: int) -> None:
        super().__init__()
        self.freq_dim = freq_dim
        self.time_embedder = _TwoLayers(freq_dim, dim)
        self.time_proj = nn.Linear(dim, 6 * dim)
        self.text_embedder = _TwoLayers(text_dim, dim)

    def time(self, timestep: Float[Tensor, "b f"]) -> tuple[Float[Tensor, "b f d"], Float[Tensor, "b f 6 d"]]:
        """Embedding and block modulation of each frame's timestep in [0, 1000], both in full precision."""
        mlp = self.time_embedder
        with torch.autocast(timestep.device.type, enabled=False):
            waves = sinusoid(timestep, self.freq_dim).to(mlp.linear_1.weight.dtype)
            embedding = mlp.linear_2(F.silu(mlp.linear_1(waves)))
            modulation = self.time_proj(F.silu(embedding).to(self.time_proj.weight.dtype))
        return full_precision(embedding), full_precision(rearrange(modulation, "b f (six d) -> b f six d", six=6))

    def text(self, features: Float[Tensor, "b l text_dim"]) -> Float[Tensor, "b l d"]:
        mlp = self.text_embedder
        hidden = mlp.linear_1(features.to(mlp.linear_1.weight.dtype))
        return mlp.linear_2(F.gelu(hidden, approximate="tanh"))
