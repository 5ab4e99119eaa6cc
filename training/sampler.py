"""From geometry, one image and a prompt to views and a UV map (task `img2tex`)."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from training.batch import encode_geometry
from training.flow import SHIFT, euler_step, inference_sigmas, interpolate, seeded
from training.latents import LatentCodec
from training.tasks import CONDITION_SIGMA, TASKS, plan_frames


@runtime_checkable
class FlowModel(Protocol):
    """`SeqTexTransformer3DModel`, or anything that predicts the same flow."""

    def __call__(
        self,
        mv: Float[Tensor, "b c views h w"],
        uv: Float[Tensor, "b c 1 uv_h uv_w"],
        timestep: Float[Tensor, "b frames"],
        text: Float[Tensor, "b l d"],
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """What the meshes look like. Dataset frame, 0 outside the mask; UV maps have row 0 at v = 0 (`uv_to_model`)."""

    mv_position: Float[Tensor, "batch views h w 3"]
    mv_normal: Float[Tensor, "batch views h w 3"]
    uv_position: Float[Tensor, "batch 1 uv_h uv_w 3"]
    uv_normal: Float[Tensor, "batch 1 uv_h uv_w 3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Textured:
    """Colours in [0, 1]."""

    mv_rgb: Float[Tensor, "batch views h w 3"]
    uv_rgb: Float[Tensor, "batch 1 uv_h uv_w 3"]
    """Row 0 at v = 0 (`uv_to_image` turns it)."""


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
    image: Float[Tensor, "batch h w 3"],
    view: int,
    text: Float[Tensor, "batch l d"],
    *,
    seed: int,
    steps: int = 30,
    shift: float = SHIFT,
    guidance: float = 1.0,
    no_text: Float[Tensor, "batch l d"] | None = None,
) -> Textured:
    """Views and UV maps that continue `image`, which is what view number `view` shows, over black.

    Equal arguments give equal results on one machine. With guidance other than 1 every step asks the model twice, the
    second time with `no_text`, the features of the empty prompt.
    """
    device = image.device
    mv_geometry = encode_geometry(geometry.mv_position, geometry.mv_normal, codec)
    uv_geometry = encode_geometry(geometry.uv_position, geometry.uv_normal, codec)
    given = codec.encode(image[:, None])
    batch, channels, views = len(image), given.shape[1], mv_geometry.shape[2]
    generator = seeded(seed)

    def noise(*shape: int) -> Tensor:
        return torch.randn(batch, channels, *shape, generator=generator).to(device)

    def flow(mv: Tensor, uv: Tensor, timestep: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        flows = model(torch.cat([mv, mv_geometry], dim=1), torch.cat([uv, uv_geometry], dim=1), timestep, features)
        return flows[0].float(), flows[1].float()

    mv, uv = noise(*mv_geometry.shape[2:]), noise(*uv_geometry.shape[2:])
    is_given = (torch.arange(views, device=device) == view).expand(batch, views)
    sigmas = inference_sigmas(steps, shift).tolist()
    for sigma, sigma_next in pairwise(sigmas):
        plan = plan_frames(TASKS["img2tex"], is_given, torch.full((batch,), sigma, device=device))
        level = torch.full((batch, 1), CONDITION_SIGMA, device=device)
        mv[:, :, view : view + 1] = interpolate(given, noise(*given.shape[2:]), level)
        mv_flow, uv_flow = flow(mv, uv, plan.timestep, text)
        if guidance != 1.0 and no_text is not None:
            mv_free, uv_free = flow(mv, uv, plan.timestep, no_text)
            mv_flow, uv_flow = mv_free + guidance * (mv_flow - mv_free), uv_free + guidance * (uv_flow - uv_free)
        mv, uv = euler_step(mv, mv_flow, sigma, sigma_next), euler_step(uv, uv_flow, sigma, sigma_next)
    mv[:, :, view : view + 1] = given
    return Textured(mv_rgb=codec.decode(mv).float().clamp(0, 1), uv_rgb=codec.decode(uv).float().clamp(0, 1))
