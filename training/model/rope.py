"""Rotary positions on three axes (time, height, width), in float32 arithmetic."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from einops import rearrange, repeat
from jaxtyping import Complex, Float
from torch import Tensor

ROPE_THETA = 10000.0
POINT_TURNS = 16.0
"""Radians that the fastest pair turns from the middle of the object to its side (ours: between two tokens of the tiny
preset's maps it turns about as far as between two rows)."""
POINT_THETA = 100.0
"""Ratio of the fastest to what would be the next slower than the slowest (ours)."""


@dataclass(frozen=True, slots=True)
class Rope:
    """Cosine and sine of every token's rotation angles, for all samples or of each. Channel pairs (2i, 2i+1) turn
    together."""

    cos: Float[Tensor, "*b n 1 half"]
    sin: Float[Tensor, "*b n 1 half"]
    turn: Complex[Tensor, "*b n 1 half"]
    """cos + i sin, complex64."""


def rope_dims(head_dim: int) -> tuple[int, int, int]:
    """Split a head's channels into those that rotate with time, height and width."""
    spatial = 2 * (head_dim // 6)
    return head_dim - 2 * spatial, spatial, spatial


def _axis_angles(positions: Float[Tensor, " n"], dim: int) -> Float[Tensor, "n half"]:
    frequencies = ROPE_THETA ** -(torch.arange(0, dim, 2, dtype=torch.float64, device=positions.device) / dim)
    return torch.outer(positions, frequencies)


def _grid_angles(first_frame: int, frames: int, height: int, width: int, head_dim: int) -> Float[Tensor, "n half"]:
    """Angles of one branch's tokens in (frame, row, column) order; rows and columns count from 0."""
    time_dim, height_dim, width_dim = rope_dims(head_dim)
    counts = [torch.arange(count, dtype=torch.float64, device="cpu") for count in (frames, height, width)]
    time = repeat(_axis_angles(first_frame + counts[0], time_dim), "f d -> (f h w) d", h=height, w=width)
    rows = repeat(_axis_angles(counts[1], height_dim), "h d -> (f h w) d", f=frames, w=width)
    columns = repeat(_axis_angles(counts[2], width_dim), "w d -> (f h w) d", f=frames, h=height)
    return torch.cat([time, rows, columns], dim=1)


@lru_cache(maxsize=64)
def rope_of_grid(first_frame: int, frames: int, height: int, width: int, head_dim: int, device: torch.device) -> Rope:
    """Rotations of a grid of tokens whose first frame has time index first_frame; remembered per grid and device."""
    # A table first made in inference mode must still be usable in training.
    with torch.inference_mode(False):
        angles = _grid_angles(first_frame, frames, height, width, head_dim)[:, None]
        cos, sin = angles.cos().float(), angles.sin().float()
        return Rope(cos.to(device), sin.to(device), torch.complex(cos, sin).to(device))


@lru_cache(maxsize=64)
def rope_of_both(views: tuple[int, int, int], uv: tuple[int, int, int], head_dim: int, device: torch.device) -> Rope:
    """Rotations of the view tokens (frames, height, width), then of the UV tokens at the next time indices."""
    with torch.inference_mode(False):
        return joined(rope_of_grid(0, *views, head_dim, device), rope_of_grid(views[0], *uv, head_dim, device))


def joined(first: Rope, second: Rope) -> Rope:
    """Rotations of the tokens of one branch, then of those of another."""
    parts = [torch.cat([getattr(rope, name) for rope in (first, second)], dim=-3) for name in ("cos", "sin", "turn")]
    return Rope(*parts)


def mean_points(points: Float[Tensor, "b f n cells 4"]) -> Float[Tensor, "b f n 3"]:
    """Mean position of the surface that each token shows, from position and covered share of its cells; 0, the middle
    of the object's bounding box, for a token without surface."""
    share = points[..., 3:]
    return (points[..., :3] * share).sum(dim=-2) / share.sum(dim=-2).clamp(min=1e-6)


def rope_of_points(first_frame: int, positions: Float[Tensor, "b f n 3"], head_dim: int) -> Rope:
    """Rotations of tokens at these positions in [-1, 1]. The channels that turn with the frame stay; those of height
    and width are shared out among x, y and z, and what is left over does not turn."""
    time_dim, height_dim, width_dim = rope_dims(head_dim)
    pairs = (height_dim + width_dim) // 2
    per_axis = pairs // 3
    frequencies = POINT_TURNS * POINT_THETA ** -(torch.arange(per_axis, device=positions.device) / max(1, per_axis))
    space = rearrange(positions[..., None] * frequencies, "b f n three k -> b (f n) (three k)")
    frames = torch.arange(first_frame, first_frame + positions.shape[1], dtype=torch.float64, device=positions.device)
    time = repeat(_axis_angles(frames, time_dim).float(), "f k -> b (f n) k", b=len(positions), n=positions.shape[2])
    angles = torch.cat([time, space, space.new_zeros(*space.shape[:2], pairs - 3 * per_axis)], dim=-1)[:, :, None]
    cos, sin = angles.cos(), angles.sin()
    return Rope(cos, sin, torch.complex(cos, sin))


def rotate(x: Float[Tensor, "b n heads d"], rope: Rope) -> Float[Tensor, "b n heads d"]:
    """x with its channel pairs turned.

    Eager on a CPU this is one complex64 product, five times faster than real ones. Elsewhere it is real, which
    compilers fuse, and each head's channels come out as (all first members, all second members), which saves an
    interleaving copy. Queries and keys are turned the same way, so their products are equal.
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rope.turn).flatten(-2)
    first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.cat([first * rope.cos - second * rope.sin, first * rope.sin + second * rope.cos], dim=-1)
