"""The SeqTex transformer written out line by line from its description, slow on purpose.

It shares no code with `training.model`: an oracle for the tests and the opponent of `benchmarks.model`. Weights are a
dict with the released checkpoint's names, LoRA in peft's layout. Rotary positions are complex128, every projection and
every attention is a call of its own, nothing is fused, cached or compiled.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = Mapping[str, Tensor]


def literal_forward(
    state: State, config: Mapping[str, Any], mv: Tensor, uv: Tensor, timestep: Tensor, text: Tensor
) -> tuple[Tensor, Tensor]:
    """Flow of views [b, c, v, h, w] and of the UV map [b, c, 1, h, w]; the arguments of our model's forward."""
    heads, eps = config["num_attention_heads"], config["eps"]
    views, channels = mv.shape[2], config["in_channels"]
    rgb, position, normal = zip(mv.split(channels, dim=1), uv.split(channels, dim=1), strict=True)
    x_mv, x_uv = (embed(state, "patch_embedding", latents) for latents in rgb)
    g_mv, g_uv = (
        embed(state, "pos_patch_embedding", p) + embed(state, "norm_patch_embedding", n)
        for p, n in zip(position, normal, strict=True)
    )
    n_mv = x_mv.shape[1]
    geometry = torch.cat([g_mv, g_uv], dim=1)

    grids = [[size // patch for size, patch in zip(x.shape[3:], config["patch_size"][1:], strict=True)] for x in rgb]
    turns_mv = rotations(0, views, grids[0], config["attention_head_dim"])
    turns_uv = rotations(views, 1, grids[1], config["attention_head_dim"])
    turns = torch.cat([turns_mv, turns_uv])

    temb, modulation = embed_time(state, timestep, config["freq_dim"])
    per_token = [n_mv // views] * views + [x_uv.shape[1]]
    temb = temb.repeat_interleave(torch.tensor(per_token), dim=1)
    modulation = modulation.repeat_interleave(torch.tensor(per_token), dim=1)
    text = linear(state, "condition_embedder.text_embedder.linear_1", text)
    text = linear(state, "condition_embedder.text_embedder.linear_2", F.gelu(text, approximate="tanh"))

    for index in range(config["num_layers"]):
        block = under(state, f"blocks.{index}.")
        shift, scale, gate, c_shift, c_scale, c_gate = (block["scale_shift_table"] + modulation[:, :n_mv]).unbind(2)
        uv_table = block["scale_shift_table_uv"] + modulation[:, n_mv:]
        uv_shift, uv_scale, uv_gate, uv_c_shift, uv_c_scale, uv_c_gate = uv_table.unbind(2)
        gk = linear(block, "geometry_caster", geometry)
        gk_mv, gk_uv = gk[:, :n_mv], gk[:, n_mv:]

        a_mv = norm(x_mv, eps) * (1 + scale) + shift
        q = rotate(rms(block, "attn1.norm_q", linear(block, "attn1.to_q", a_mv), eps) + gk_mv, turns_mv, heads)
        k = rotate(rms(block, "attn1.norm_k", linear(block, "attn1.to_k", a_mv), eps) + gk_mv, turns_mv, heads)
        v = split(linear(block, "attn1.to_v", a_mv), heads)
        x_mv = x_mv + linear(block, "attn1.to_out.0", attend(q, k, v)) * gate

        a_uv = norm(x_uv, eps) * (1 + uv_scale) + uv_shift
        both = torch.cat([x_mv, a_uv], dim=1)  # the view stream as it is: updated, without a norm
        q = rotate(rms(block, "attnuv.norm_q", linear(block, "attnuv.to_q", a_uv), eps) + gk_uv, turns_uv, heads)
        k = rotate(rms(block, "attnuv.norm_k", linear(block, "attnuv.to_k", both), eps) + gk, turns, heads)
        v = split(linear(block, "attnuv.to_v", both), heads)
        x_uv = x_uv + linear(block, "attnuv.to_out.0", attend(q, k, v)) * uv_gate

        x_mv = x_mv + cross_attend(block, affine_norm(block, "norm2", x_mv, eps), text, heads, eps)
        x_uv = x_uv + cross_attend(block, affine_norm(block, "normuv2", x_uv, eps), text, heads, eps)

        x_mv = x_mv + feed_forward(block, "ffn", norm(x_mv, eps) * (1 + c_scale) + c_shift) * c_gate
        x_uv = x_uv + feed_forward(block, "ffnuv", norm(x_uv, eps) * (1 + uv_c_scale) + uv_c_shift) * uv_c_gate

    flows = []
    for x, table, time, grid in (
        (x_mv, "scale_shift_table", temb[:, :n_mv], (views, *grids[0])),
        (x_uv, "scale_shift_table_uv", temb[:, n_mv:], (1, *grids[1])),
    ):
        shift, scale = (state[table] + time[:, :, None]).unbind(2)
        out = linear(state, "proj_out", norm(x, eps) * (1 + scale) + shift)
        _, p, q = config["patch_size"]
        b, (f, h, w) = out.shape[0], grid
        flows.append(out.reshape(b, f, h, w, p, q, -1).permute(0, 6, 1, 2, 4, 3, 5).reshape(b, -1, f, h * p, w * q))
    return flows[0], flows[1]


def under(state: State, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def linear(state: State, name: str, x: Tensor) -> Tensor:
    """A linear layer, with its LoRA (alpha / rank = `lora_scale`) where it has one."""
    if f"{name}.base_layer.weight" not in state:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])
    base = F.linear(x, state[f"{name}.base_layer.weight"], state[f"{name}.base_layer.bias"])
    low = F.linear(x, state[f"{name}.lora_A.default.weight"])
    return base + F.linear(low, state[f"{name}.lora_B.default.weight"]) * LORA_SCALE


LORA_SCALE = 0.5
"""Released alpha / rank: 64 / 128."""


def embed(state: State, name: str, latents: Tensor) -> Tensor:
    weight = state[f"{name}.weight"]
    patches = F.conv3d(latents, weight, state[f"{name}.bias"], stride=weight.shape[2:])
    return patches.flatten(2).transpose(1, 2)


def embed_time(state: State, timestep: Tensor, freq_dim: int) -> tuple[Tensor, Tensor]:
    """Embedding [b, f, d] and modulation [b, f, 6, d] of each frame's timestep."""
    half = freq_dim // 2
    angles = timestep.float()[..., None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    waves = torch.cat([angles.cos(), angles.sin()], dim=-1).to(timestep.dtype)
    hidden = F.silu(linear(state, "condition_embedder.time_embedder.linear_1", waves))
    temb = linear(state, "condition_embedder.time_embedder.linear_2", hidden)
    return temb, linear(state, "condition_embedder.time_proj", F.silu(temb)).unflatten(-1, (6, -1))


def rotations(first_frame: int, frames: int, grid: list[int], head_dim: int) -> Tensor:
    """Unit complex numbers [tokens, head_dim / 2]: time, then height, then width of `grid`."""
    height, width = grid
    spatial = 2 * (head_dim // 6)
    axes = []
    for start, count, dim in (
        (first_frame, frames, head_dim - 2 * spatial),
        (0, height, spatial),
        (0, width, spatial),
    ):
        frequencies = 10000.0 ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.outer(torch.arange(start, start + count, dtype=torch.float64), frequencies)
        axes.append(torch.polar(torch.ones_like(angles), angles))
    t, h, w = axes
    shape = (frames, height, width, -1)
    return torch.cat(
        [t[:, None, None].expand(shape), h[None, :, None].expand(shape), w[None, None].expand(shape)], dim=-1
    ).flatten(0, 2)


def split(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def rotate(x: Tensor, turns: Tensor, heads: int) -> Tensor:
    pairs = torch.view_as_complex(split(x, heads).double().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * turns).flatten(-2).type_as(x)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)


def cross_attend(block: State, x: Tensor, text: Tensor, heads: int, eps: float) -> Tensor:
    q = split(rms(block, "attn2.norm_q", linear(block, "attn2.to_q", x), eps), heads)
    k = split(rms(block, "attn2.norm_k", linear(block, "attn2.to_k", text), eps), heads)
    v = split(linear(block, "attn2.to_v", text), heads)
    return linear(block, "attn2.to_out.0", attend(q, k, v))


def feed_forward(block: State, name: str, x: Tensor) -> Tensor:
    return linear(block, f"{name}.net.2", F.gelu(linear(block, f"{name}.net.0.proj", x), approximate="tanh"))


def norm(x: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)


def affine_norm(block: State, name: str, x: Tensor, eps: float) -> Tensor:
    return norm(x, eps) * block[f"{name}.weight"] + block[f"{name}.bias"]


def rms(block: State, name: str, x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps) * block[f"{name}.weight"]
