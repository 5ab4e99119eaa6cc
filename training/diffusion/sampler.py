"""From geometry, any number of given views and a prompt to all views and a UV map."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from geometry.nearest import Surface
from schemas.errors import require_between
from training.data.batch import BranchLatents, Extras, encode_geometry, surface_points
from training.diffusion.encoders import LatentCodec
from training.diffusion.flow import SHIFT, Slope, adams_step, euler_step, inference_sigmas, interpolate, seeded
from training.diffusion.tasks import CONDITION_SIGMA, Task, plan_frames, sampling_task
from training.diffusion.view_hint import encode_hint, view_hint

RELEASED_INPUT = Extras()


@runtime_checkable
class FlowModel(Protocol):
    """`SeqTexTransformer3DModel`, or anything that predicts the same flow."""

    def __call__(
        self,
        mv: Float[Tensor, "b c views h w"],
        uv: Float[Tensor, "b c 1 uv_h uv_w"] | None,
        timestep: Float[Tensor, "b frames"],
        text: Float[Tensor, "b l d"],
    ) -> tuple[Tensor, Tensor | None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What the meshes look like. Dataset frame, 0 outside the mask; UV maps have row 0 at v = 0 (`uv_to_model`)."""

    mv_position: Float[Tensor, "batch views h w 3"]
    mv_normal: Float[Tensor, "batch views h w 3"]
    uv_position: Float[Tensor, "batch 1 uv_h uv_w 3"] | None = None
    """None: views alone are wanted, and the UV branch does not run."""
    uv_normal: Float[Tensor, "batch 1 uv_h uv_w 3"] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The condition: what some of the views show."""

    rgb: Float[Tensor, "batch views h w 3"]
    """Over black, [0, 1]; not looked at where no view is given."""
    views: Bool[Tensor, " views"]
    """Which are given, the same for the whole batch; all False: text and geometry alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Text:
    """Features of the prompts, and of the empty prompt for guidance."""

    prompt: Float[Tensor, "batch l d"]
    empty: Float[Tensor, "batch l d"]


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How the noise is taken away."""

    steps: int = 30
    """Evaluations of the model, twice as many with guidance (released code)."""
    solver: Literal["euler", "adams"] = "euler"
    """`euler` (released code); `adams`: of second order, as exact with two thirds of the steps."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is off (released code)."""

    def __post_init__(self) -> None:
        require_between("steps", self.steps, 1, 1000)
        require_between("guidance", self.guidance, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Textured:
    """Colours in [0, 1]."""

    mv_rgb: Float[Tensor, "batch views h w 3"]
    """The given views come back as the codec keeps them."""
    uv_rgb: Float[Tensor, "batch 1 uv_h uv_w 3"] | None
    """Row 0 at v = 0 (`uv_to_image` turns it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One branch of a sampling run: what conditions it, and its current noisy colour."""

    conditions: Float[Tensor, "batch channels frames h w"]
    """Geometry, and what else the model takes (`BranchLatents.conditions`)."""
    rgb: Float[Tensor, "batch 16 frames h w"]
    before: Slope | None = None

    def input(self) -> Float[Tensor, "batch channels frames h w"]:
        return torch.cat([self.rgb, self.conditions], dim=1)

    def step(self, velocity: Tensor, sigma: float, sigma_next: float, solver: str) -> "Branch":
        if solver == "euler":
            return Branch(conditions=self.conditions, rgb=euler_step(self.rgb, velocity, sigma, sigma_next))
        rgb, before = adams_step(self.rgb, velocity, sigma, sigma_next, self.before)
        return Branch(conditions=self.conditions, rgb=rgb, before=before)


@contextmanager
def resident(part: Any, device: torch.device | str) -> Iterator[None]:
    """A model, codec or encoder on the device for the time of the block, on the CPU afterwards."""
    part.to(device)
    try:
        yield
    finally:
        part.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


class Noise:
    """Standard normal latents, each mesh of the batch from a generator of its own: what a mesh gets does not depend on
    the batch that it is in."""

    def __init__(self, seeds: Sequence[int], channels: int, device: torch.device) -> None:
        self.generators = [seeded(seed) for seed in seeds]
        self.channels = channels
        self.device = device

    def __call__(self, *shape: int) -> Float[Tensor, "batch c frames h w"]:
        drawn = [torch.randn(self.channels, *shape, generator=generator) for generator in self.generators]
        return torch.stack(drawn).to(self.device)


def prepare_image(image: UInt8[np.ndarray, "height width channels"], size: int) -> Float[Tensor, "size size 3"]:
    """A condition image (RGB, or RGBA with straight alpha) over black, resized to the views."""
    rgba = Image.fromarray(image).convert("RGBA")
    black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    rgb = Image.alpha_composite(black, rgba).convert("RGB").resize((size, size), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(rgb, dtype=np.float32) / 255)


@torch.no_grad()
def sample(
    model: FlowModel,
    codec: LatentCodec,
    geometry: Geometry,
    given: Given,
    text: Text,
    cfg: SamplerConfig,
    *,
    seeds: Sequence[int],
    shift: float = SHIFT,
    extras: Extras = RELEASED_INPUT,
    progress: Callable[[int], None] = lambda step: None,
    hold: Callable[[Any], AbstractContextManager[Any]] = nullcontext,
) -> Textured:
    """Views and UV maps of a batch of meshes, one seed each. Equal arguments give equal results on one machine.

    `extras`: what the model takes beyond the released one's input (`Extras.of` its configuration).
    `progress` hears of each step done. Codec and model are used inside `hold(part)` only, one after the other: on a
    small GPU a place to move them in and out (`resident`)."""
    with hold(codec):
        start = encode_condition(codec, geometry, given, extras)
    with hold(model):
        mv, uv = denoise(model, start, given, text, cfg, seeds=seeds, shift=shift, progress=progress)
    with hold(codec):
        mv_rgb = codec.decode(mv).float().clamp(0, 1)
        return Textured(mv_rgb=mv_rgb, uv_rgb=None if uv is None else codec.decode(uv).float().clamp(0, 1))


def denoise(
    model: FlowModel,
    start: tuple[Branch, Branch | None, Tensor],
    given: Given,
    text: Text,
    cfg: SamplerConfig,
    *,
    seeds: Sequence[int],
    shift: float,
    progress: Callable[[int], None],
) -> tuple[Float[Tensor, "batch 16 views h w"], Float[Tensor, "batch 16 1 uv_h uv_w"] | None]:
    """From noise to the latents of both branches. Given views are kept at the condition's noise level, with fresh noise
    every step, and come back as they were given."""
    mv, uv, clean = start
    task = sampling_task(int(given.views.sum()), len(given.views), uv is not None)
    noise = Noise(seeds, clean.shape[1], clean.device)
    mv = replace(mv, rgb=noise(*mv.rgb.shape[2:]))
    uv = replace(uv, rgb=noise(*uv.rgb.shape[2:])) if uv else None
    is_given = given.views.to(clean.device)
    frames = is_given[None, None, :, None, None]
    level = torch.full(clean.shape[:1] + clean.shape[2:3], CONDITION_SIGMA, device=clean.device)
    for step, (sigma, sigma_next) in enumerate(pairwise(inference_sigmas(cfg.steps, shift).tolist())):
        if bool(given.views.any()):
            renoised = interpolate(clean, noise(*clean.shape[2:]), level)
            mv = replace(mv, rgb=torch.where(frames, renoised, mv.rgb))
        timestep = timesteps(task, is_given, sigma, len(clean))
        mv_flow, uv_flow = guided_flow(model, mv, uv, timestep, text, cfg.guidance)
        mv = mv.step(mv_flow, sigma, sigma_next, cfg.solver)
        uv = uv.step(uv_flow, sigma, sigma_next, cfg.solver) if uv is not None and uv_flow is not None else None
        progress(step + 1)
    return torch.where(frames, clean, mv.rgb), uv.rgb if uv else None


def encode_condition(
    codec: LatentCodec, geometry: Geometry, given: Given, extras: Extras
) -> tuple[Branch, Branch | None, Float[Tensor, "batch 16 views h w"]]:
    """Both branches without noise yet, and the latents of the given views (0 for the others)."""
    places = given.views.nonzero().flatten().tolist()
    of_views, of_maps = carried(geometry, given, places) if extras.view_hint else (None, None)
    mv = encode_maps(codec, geometry.mv_position, geometry.mv_normal, of_views, extras)
    clean = torch.zeros_like(mv.rgb)
    if places:
        clean[:, :, places] = codec.encode(given.rgb[:, places]).to(clean)
    if geometry.uv_position is None or geometry.uv_normal is None:
        return mv, None, clean
    return mv, encode_maps(codec, geometry.uv_position, geometry.uv_normal, of_maps, extras), clean


def encode_maps(codec: LatentCodec, position: Tensor, normal: Tensor, hint: Tensor | None, extras: Extras) -> Branch:
    """A branch whose colour is still to come."""
    latents = encode_geometry(position, normal, codec)
    branch = BranchLatents(
        rgb=torch.zeros_like(latents[:, : codec.channels]),
        geometry=latents,
        points=surface_points(position, normal, codec.downscale),
        hint=None if hint is None else encode_hint(hint.to(position), codec),
    )
    return Branch(conditions=branch.conditions(extras), rgb=branch.rgb)


def carried(
    geometry: Geometry, given: Given, places: list[int]
) -> tuple[Float[Tensor, "batch views h w 4"], Float[Tensor, "batch 1 uv_h uv_w 4"] | None]:
    """View hints of a batch of meshes."""
    of_views, of_maps = [], []
    for mesh in range(len(given.rgb)):
        views = Surface(position=plain(geometry.mv_position[mesh]), normal=plain(geometry.mv_normal[mesh]))
        uv = None
        if geometry.uv_position is not None and geometry.uv_normal is not None:
            position, normal = plain(geometry.uv_position[mesh, 0]), plain(geometry.uv_normal[mesh, 0])
            uv = Surface(position=position[::-1], normal=normal[::-1])  # in image orientation, as in training
        of_mesh, of_map = view_hint(plain(given.rgb[mesh]), views, places, uv)
        of_views.append(torch.from_numpy(of_mesh))
        of_maps += [torch.from_numpy(of_map[::-1].copy())[None]] if of_map is not None else []
    return torch.stack(of_views), torch.stack(of_maps) if of_maps else None


def plain(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().cpu().numpy()


def timesteps(task: Task, given: Bool[Tensor, " views"], sigma: float, batch: int) -> Float[Tensor, "batch frames"]:
    level = torch.full((batch,), sigma, device=given.device)
    return plan_frames(task, given.expand(batch, -1), level).timestep


def guided_flow(
    model: FlowModel,
    mv: Branch,
    uv: Branch | None,
    timestep: Float[Tensor, "batch frames"],
    text: Text,
    guidance: float,
) -> tuple[Tensor, Tensor | None]:
    """The flow of both branches in float32; with guidance other than 1 moved away from that of the empty prompt."""

    def ask(features: Tensor) -> list[Tensor]:
        flows = model(mv.input(), uv.input() if uv else None, timestep, features)
        return [flow.float() for flow in flows if flow is not None]

    flows = ask(text.prompt)
    if guidance != 1.0:
        flows = [free + guidance * (flow - free) for flow, free in zip(flows, ask(text.empty), strict=True)]
    return flows[0], flows[1] if uv else None
