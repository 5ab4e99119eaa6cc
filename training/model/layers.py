"""Layers of the two-branch transformer: attention, feed-forward, rotary positions, time and text embedding.

Module and parameter names are those of diffusers' WanTransformer3DModel, so that Wan and SeqTex checkpoints load as
they are. Norms, rotary positions, time embedding and modulation are computed in float32 (in float64 for a float64
model) whatever the precision of the rest.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

ROPE_THETA = 10000.0


def full_precision(x: Tensor) -> Tensor:
    """x as float32, or as float64 if it already is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


@dataclass(frozen=True, slots=True)
class Rope:
    """Cosine and sine of every token's rotation angles, float32. Channel pairs (2i, 2i+1) turn together."""

    cos: Float[Tensor, "n 1 half"]
    sin: Float[Tensor, "n 1 half"]


def rope_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, height and width."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def _axis_angles(positions: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n half"]:
    frequencies = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    return torch.outer(positions, frequencies)


def _grid_angles(first_frame: int, frames: int, height: int, width: int, head_dim: int) -> Float[Tensor, "n half"]:
    """Angles of one branch's tokens in (frame, row, column) order; rows and columns count from 0."""
    time_dim, height_dim, width_dim = rope_dims(head_dim)
    counts = [torch.arange(count, dtype=torch.float64) for count in (frames, height, width)]
    time = repeat(_axis_angles(first_frame + counts[0], time_dim), "f d -> (f h w) d", h=height, w=width)
    rows = repeat(_axis_angles(counts[1], height_dim), "h d -> (f h w) d", f=frames, w=width)
    columns = repeat(_axis_angles(counts[2], width_dim), "w d -> (f h w) d", f=frames, h=height)
    return torch.cat([time, rows, columns], dim=1)


@lru_cache(maxsize=64)
def rope_of_grid(first_frame: int, frames: int, height: int, width: int, head_dim: int, device: torch.device) -> Rope:
    """Rotations of a grid of tokens whose first frame has time index first_frame; remembered per grid and device."""
    # A table first made in inference mode must still be usable in training.
    with torch.inference_mode(False), torch.device("cpu"):
        angles = _grid_angles(first_frame, frames, height, width, head_dim)[:, None]
        return Rope(angles.cos().float().to(device), angles.sin().float().to(device))


@lru_cache(maxsize=64)
def rope_of_both(views: tuple[int, int, int], uv: tuple[int, int], head_dim: int, device: torch.device) -> Rope:
    """Rotations of the view tokens (frames, height, width), then of the UV tokens at the next time index."""
    first = rope_of_grid(0, *views, head_dim, device)
    second = rope_of_grid(views[0], 1, *uv, head_dim, device)
    with torch.inference_mode(False):
        return Rope(torch.cat([first.cos, second.cos]), torch.cat([first.sin, second.sin]))


def rotate(x: Float[Tensor, "b n heads d"], rope: Rope) -> Float[Tensor, "b n heads d"]:
    """x with its channel pairs turned, each head's channels reordered to (all first members, all second members).

    The reordering saves an interleaving copy; queries and keys share it, so their products are unchanged.
    """
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([first * rope.cos - second * rope.sin, first * rope.sin + second * rope.cos], dim=-1)


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


class Attention(nn.Module):
    """Multi-head attention with RMS norm of queries and keys over all heads together.

    An optional geometry embedding is added to normalised queries and keys before they are rotated.
    """

    def __init__(self, dim: int, heads: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.ModuleList([nn.Linear(dim, dim)])
        self.norm_q = RmsNorm(dim, eps=eps)
        self.norm_k = RmsNorm(dim, eps=eps)

    def queries(
        self, x: Float[Tensor, "b n d"], geometry: Float[Tensor, "b n d"] | None = None, rope: Rope | None = None
    ) -> Float[Tensor, "b heads n c"]:
        return self._place(self.to_q(x), self.norm_q, geometry, rope)

    def keys(
        self, x: Float[Tensor, "b n d"], geometry: Float[Tensor, "b n d"] | None = None, rope: Rope | None = None
    ) -> Float[Tensor, "b heads n c"]:
        return self._place(self.to_k(x), self.norm_k, geometry, rope)

    def values(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b heads n c"]:
        return self.to_v(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def attend(
        self,
        queries: Float[Tensor, "b heads n c"],
        keys: Float[Tensor, "b heads m c"],
        values: Float[Tensor, "b heads m c"],
    ) -> Float[Tensor, "b n d"]:
        # On a CPU the half-precision backward is several times slower than the float32 one. Autocast would choose it.
        precision = queries.dtype if queries.device.type == "cpu" else values.dtype
        with torch.autocast(queries.device.type, enabled=False):
            mixed = F.scaled_dot_product_attention(queries.to(precision), keys.to(precision), values.to(precision))
        return self.to_out[0](rearrange(mixed, "b heads n c -> b n (heads c)").to(values.dtype))

    def read(
        self, x: Float[Tensor, "b n d"], keys: Float[Tensor, "b heads m c"], values: Float[Tensor, "b heads m c"]
    ) -> Float[Tensor, "b n_or_1 d"]:
        """Cross-attention of x to a context's keys and values; one row for all x if it is a single token."""
        if keys.shape[2] == 1:
            return self.to_out[0](rearrange(values, "b heads 1 c -> b 1 (heads c)"))
        return self.attend(self.queries(x), keys, values)

    def _place(self, x: Tensor, norm: RmsNorm, geometry: Tensor | None, rope: Rope | None) -> Tensor:
        placed = norm(x)
        if geometry is not None:
            placed = placed + geometry
        placed = placed.unflatten(-1, (self.heads, -1))
        if rope is not None:
            placed = rotate(placed, rope)
        return placed.transpose(1, 2)


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


@dataclass(frozen=True, slots=True)
class Branch:
    """What a block needs to know of one branch (views or UV map) and does not change."""

    geometry: Float[Tensor, "b n d"]
    """Embedding of the position and normal maps."""
    modulation: Float[Tensor, "b f 6 d"]
    """Shift, scale, gate of attention, then of the feed-forward, before the block's own table is added."""
    rope: Rope


class Block(nn.Module):
    """One transformer block: view tokens see views and text; UV tokens see views, UV and text."""

    def __init__(self, dim: int, ffn_dim: int, heads: int, cross_attn_norm: bool, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.attn1 = Attention(dim, heads, eps)
        self.attn2 = Attention(dim, heads, eps)
        self.norm2 = LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.geometry_caster = nn.Linear(dim, dim)
        self.attnuv = Attention(dim, heads, eps)
        self.normuv2 = LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.ffnuv = FeedForward(dim, ffn_dim)
        self.scale_shift_table_uv = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(
        self,
        mv: Float[Tensor, "b n d"],
        uv: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b l d"],
        mv_branch: Branch,
        uv_branch: Branch | None,
        both_rope: Rope | None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"] | None]:
        """The two streams after the block. Without a UV stream its half of the work is left out."""
        text_keys, text_values = self.attn2.keys(text), self.attn2.values(text)
        shift, scale, gate, *feed = (self.scale_shift_table + mv_branch.modulation).unbind(2)
        mv_geometry = self.geometry_caster(mv_branch.geometry)
        seen = modulated_norm(mv, shift, scale, self.eps)
        queries = self.attn1.queries(seen, mv_geometry, mv_branch.rope)
        keys = self.attn1.keys(seen, mv_geometry, mv_branch.rope)
        mv = gated_add(mv, self.attn1.attend(queries, keys, self.attn1.values(seen)), gate)

        if uv is not None and uv_branch is not None and both_rope is not None:
            shift, scale, gate, *feed_uv = (self.scale_shift_table_uv + uv_branch.modulation).unbind(2)
            uv_geometry = self.geometry_caster(uv_branch.geometry)
            seen = modulated_norm(uv, shift, scale, self.eps)
            # The view stream enters after its update and without a norm, as in the released weights.
            context = torch.cat([mv, seen], dim=1)
            queries = self.attnuv.queries(seen, uv_geometry, uv_branch.rope)
            keys = self.attnuv.keys(context, torch.cat([mv_geometry, uv_geometry], dim=1), both_rope)
            uv = gated_add(uv, self.attnuv.attend(queries, keys, self.attnuv.values(context)), gate)
            uv = uv + self.attn2.read(self.normuv2(uv), text_keys, text_values)
            uv = self._feed(uv, self.ffnuv, *feed_uv)

        mv = mv + self.attn2.read(self.norm2(mv), text_keys, text_values)
        return self._feed(mv, self.ffn, *feed), uv

    def _feed(self, x: Tensor, feed_forward: FeedForward, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return gated_add(x, feed_forward(modulated_norm(x, shift, scale, self.eps)), gate)
