"""The two-branch transformer block: attention of views and UV map, cross-attention to text, feed-forward."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from training.model.layers import FeedForward, LayerNorm, RmsNorm, gated_add, modulated_norm
from training.model.rope import Rope, rotate

GeometryAttention = Literal["off", "mv", "mv_uv"]
"""Tokens whose queries and keys carry the geometry embedding: none, the views', or all (released)."""
UvBranch = Literal["decoupled", "shared"]
"""UV tokens have weights of their own (released), or go through those of the views."""
SMALL_SCORES = 2**19
"""Queries x keys up to which, on a CPU, two plain products beat the fused attention (measured on one core)."""


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
            mixed = mix(queries.to(precision), keys.to(precision), values.to(precision))
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


def mix(
    queries: Float[Tensor, "b heads n c"], keys: Float[Tensor, "b heads m c"], values: Float[Tensor, "b heads m c"]
) -> Float[Tensor, "b heads n c"]:
    """Scaled dot-product attention. On a GPU torch chooses the kernel (cuDNN first on Hopper, then flash)."""
    if queries.device.type == "cpu" and queries.shape[2] * keys.shape[2] <= SMALL_SCORES:
        scores = torch.matmul(queries * queries.shape[-1] ** -0.5, keys.transpose(-1, -2))
        return torch.matmul(scores.softmax(dim=-1), values)
    return F.scaled_dot_product_attention(queries, keys, values)


@dataclass(frozen=True, slots=True)
class BranchInputs:
    """Inputs of a block for one branch (views or UV map) that all blocks share."""

    geometry: Float[Tensor, "b n d"] | None
    """Embedding of the position and normal maps; None where queries and keys do without."""
    modulation: Float[Tensor, "b f 6 d"]
    """Shift, scale, gate of attention, then of the feed-forward, before the block's own table is added."""
    rope: Rope


class Block(nn.Module):
    """One transformer block: view tokens see views and text; UV tokens see views, UV and text."""

    def __init__(
        self,
        dim: int,
        ffn_dim: int,
        heads: int,
        cross_attn_norm: bool,
        eps: float,
        *,
        geometry_attention: GeometryAttention = "mv_uv",
        uv_branch: UvBranch = "decoupled",
    ) -> None:
        super().__init__()
        self.eps = eps
        self.shared = uv_branch == "shared"
        self.attn1 = Attention(dim, heads, eps)
        self.attn2 = Attention(dim, heads, eps)
        self.norm2 = LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, ffn_dim)
        self.scale_shift_table = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        if geometry_attention != "off":
            self.geometry_caster = nn.Linear(dim, dim)
        if not self.shared:
            self.attnuv = Attention(dim, heads, eps)
            self.normuv2 = LayerNorm(dim, eps) if cross_attn_norm else nn.Identity()
            self.ffnuv = FeedForward(dim, ffn_dim)
            self.scale_shift_table_uv = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Any] | None = None

    def forward(
        self,
        mv: Float[Tensor, "b n d"],
        uv: Float[Tensor, "b m d"] | None,
        text: Float[Tensor, "b l d"],
        mv_branch: BranchInputs,
        uv_branch: BranchInputs | None,
        both_rope: Rope | None,
    ) -> tuple[Float[Tensor, "b n d"], Float[Tensor, "b m d"] | None]:
        """The two streams after the block. Without a UV stream its half of the work is left out."""
        arguments = (mv, uv, text, mv_branch, uv_branch, both_rope)
        # Inside the block, so that a compiled block holds the recomputation too.
        if self.gradient_checkpointing and self._gradient_checkpointing_func and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(self._streams, *arguments)
        return self._streams(*arguments)

    def _streams(
        self,
        mv: Tensor,
        uv: Tensor | None,
        text: Tensor,
        mv_branch: BranchInputs,
        uv_branch: BranchInputs | None,
        both_rope: Rope | None,
    ) -> tuple[Tensor, Tensor | None]:
        text_keys, text_values = self.attn2.keys(text), self.attn2.values(text)
        shift, scale, gate, *feed = (self.scale_shift_table + mv_branch.modulation).unbind(2)
        mv_geometry = self._cast(mv_branch.geometry)
        seen = modulated_norm(mv, shift, scale, self.eps)
        queries = self.attn1.queries(seen, mv_geometry, mv_branch.rope)
        keys = self.attn1.keys(seen, mv_geometry, mv_branch.rope)
        values = self.attn1.values(seen)
        mv = gated_add(mv, self.attn1.attend(queries, keys, values), gate)

        if uv is not None and uv_branch is not None and both_rope is not None:
            if self.shared:
                uv = self._uv_as_views(uv, uv_branch, (keys, values), (text_keys, text_values))
            else:
                uv = self._uv_on_its_own(uv, uv_branch, mv, mv_geometry, both_rope, (text_keys, text_values))

        mv = mv + self.attn2.read(self.norm2(mv), text_keys, text_values)
        return self._feed(mv, self.ffn, *feed), uv

    def _uv_on_its_own(
        self,
        uv: Tensor,
        branch: BranchInputs,
        mv: Tensor,
        mv_geometry: Tensor | None,
        both_rope: Rope,
        text: tuple[Tensor, Tensor],
    ) -> Tensor:
        """The UV stream through its own weights; mv is the view stream after its self-attention."""
        shift, scale, gate, *feed = (self.scale_shift_table_uv + branch.modulation).unbind(2)
        geometry = self._cast(branch.geometry)
        seen = modulated_norm(uv, shift, scale, self.eps)
        # The view stream enters after its update and without a norm, as in the released weights.
        context = torch.cat([mv, seen], dim=1)
        queries = self.attnuv.queries(seen, geometry, branch.rope)
        of_both = None
        if mv_geometry is not None:
            of_both = torch.cat([mv_geometry, torch.zeros_like(seen) if geometry is None else geometry], dim=1)
        keys = self.attnuv.keys(context, of_both, both_rope)
        uv = gated_add(uv, self.attnuv.attend(queries, keys, self.attnuv.values(context)), gate)
        uv = uv + self.attn2.read(self.normuv2(uv), *text)
        return self._feed(uv, self.ffnuv, *feed)

    def _uv_as_views(
        self, uv: Tensor, branch: BranchInputs, of_views: tuple[Tensor, Tensor], text: tuple[Tensor, Tensor]
    ) -> Tensor:
        """The UV stream through the views' weights, as further tokens of one sequence: it reads the views' own keys and
        values."""
        shift, scale, gate, *feed = (self.scale_shift_table + branch.modulation).unbind(2)
        geometry = self._cast(branch.geometry)
        seen = modulated_norm(uv, shift, scale, self.eps)
        queries = self.attn1.queries(seen, geometry, branch.rope)
        keys = torch.cat([of_views[0], self.attn1.keys(seen, geometry, branch.rope)], dim=2)
        values = torch.cat([of_views[1], self.attn1.values(seen)], dim=2)
        uv = gated_add(uv, self.attn1.attend(queries, keys, values), gate)
        uv = uv + self.attn2.read(self.norm2(uv), *text)
        return self._feed(uv, self.ffn, *feed)

    def _cast(self, geometry: Tensor | None) -> Tensor | None:
        return None if geometry is None else self.geometry_caster(geometry)

    def _feed(self, x: Tensor, feed_forward: FeedForward, shift: Tensor, scale: Tensor, gate: Tensor) -> Tensor:
        return gated_add(x, feed_forward(modulated_norm(x, shift, scale, self.eps)), gate)
