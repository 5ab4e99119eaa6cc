"""Sample views and UV maps of a batch of meshes from geometry, given views and prompts."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from PIL import Image
from torch import Tensor

from geometry.nearest import Surface
from schemas.errors import require_between
from training.conditions.images import Pixels, Scene, find_image
from training.diffusion.encoders import LatentCodec, TextEncoder
from training.diffusion.flow import SHIFT, FlowModel, Slope, inference_sigmas, interpolate, seeded, solver_step
from training.diffusion.latents import BranchLatents, Extensions, encode_branch, stack, to_uint8, uv_to_image
from training.diffusion.tasks import CONDITION_SIGMA, Task, plan_frames, sampling_task
from training.maps import BASE_COLOR, without_noise

RELEASED_INPUT = Extensions()


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturingInput:
    """Geometry of one mesh, and what its texture should look like."""

    views: Surface
    """The surface in each view [views, h, w, 3]; views are square."""
    uv: Surface | None
    """The UV map [uv_h, uv_w, 3] in image orientation (row 0 is v = 1); None: only views are generated."""
    images: dict[int, UInt8[np.ndarray, "_ _ _"]] = field(default_factory=dict)
    """The given views: RGB, or RGBA with straight alpha, of any size, by number of the view. None given: text and
    geometry alone decide."""
    condition_images: dict[str, Pixels] = field(default_factory=dict)
    """Condition images by name, those that do not follow from geometry and given views."""
    prompt: str = ""
    seed: int = 0
    """Decides the noise: a mesh gets the same noise alone and in any batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturingResult:
    """Generated colours of one mesh, sRGB, and what else its model generates."""

    views: UInt8[np.ndarray, "views h w 3"]
    """Given views come back as the codec keeps them."""
    uv: UInt8[np.ndarray, "uv_h uv_w 3"] | None
    """Image orientation, row 0 at v = 1."""
    maps: dict[str, UInt8[np.ndarray, "uv_h uv_w 3"]] = field(default_factory=dict)
    """Maps beside the base colour by name, each a texture as glTF packs it (`training.maps`)."""


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """Options of denoising."""

    steps: int = 30
    """Denoising steps (released code): an evaluation of the model each, and one more for each guidance."""
    solver: Literal["euler", "adams"] = "euler"
    """`euler` (released code); `adams`: of second order, as exact with two thirds of the steps."""
    guidance: float = 1.0
    """Classifier-free guidance; 1 is off (released code)."""
    image_guidance: float = 1.0
    """The same over the given views, for models trained with `flow.image_dropout`; 1 is off."""

    def __post_init__(self) -> None:
        require_between("steps", self.steps, 1, 1000)
        require_between("guidance", self.guidance, 0, 100)
        require_between("image_guidance", self.image_guidance, 0, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """Everything that a batch is conditioned on, encoded."""

    branches: list[Float[Tensor, "batch channels _ _ _"]]
    """The model's input beside the noisy colours of the views and, if it is wanted, of the UV map."""
    blind: list[Float[Tensor, "batch channels _ _ _"]]
    """The same without what follows the given views, for image guidance."""
    clean: Float[Tensor, "batch z views h w"]
    """Latents of the given views, 0 for the others."""
    given: Bool[Tensor, " views"]
    maps: int
    """Frames of the UV branch."""
    prompt: Float[Tensor, "batch l d"]
    empty: Float[Tensor, "batch l d"]
    """Features of the empty prompt, for guidance."""


@torch.no_grad()
def sample(
    model: FlowModel,
    codec: LatentCodec,
    text_encoder: TextEncoder,
    inputs: Sequence[TexturingInput],
    cfg: SamplerConfig,
    *,
    shift: float = SHIFT,
    extras: Extensions = RELEASED_INPUT,
    device: torch.device | str = "cpu",
    offload: bool = False,
    progress: Callable[[int], None] = lambda step: None,
) -> list[TexturingResult]:
    """Generate the views and UV maps of a batch of meshes. Equal arguments give equal results on one machine.

    Args:
        inputs: meshes of equal sizes that give the same views
        extras: what the model takes beyond the released one's input (`Extensions.of` its configuration)
        device: where model, codec and text encoder are, or with `offload` where they work
        offload: text encoder, codec and model are on the device one at a time, for small GPUs
        progress: called with the number of steps done
    """
    hold = partial(resident, device=device) if offload else nullcontext
    with hold(text_encoder):
        prompt = text_encoder.encode([one.prompt for one in inputs]).to(device)
        empty = text_encoder.encode([""] * len(inputs)).to(device)
    with hold(codec):
        condition = encode_condition(codec, inputs, prompt, empty, extras)
    with hold(model):
        latents = denoise(model, condition, cfg, seeds=[one.seed for one in inputs], shift=shift, progress=progress)
    with hold(codec):
        mv, *uv = (codec.decode(branch).float() for branch in latents)
    results = []
    for nth, views in enumerate(to_uint8(mv)):
        images = [uv_to_image(image[None]) for image in uv[0][nth]] if uv else []
        maps = dict(zip(extras.maps, images, strict=bool(images)))
        color = maps.pop(BASE_COLOR, None)
        further = {name: without_noise(name, image) for name, image in maps.items()}
        results.append(TexturingResult(views=views, uv=color, maps=further))
    return results


@contextmanager
def resident(part: Any, device: torch.device | str) -> Iterator[None]:
    """Keep a model, codec or encoder on the device during the block, on the CPU afterwards."""
    part.to(device)
    try:
        yield
    finally:
        part.to("cpu")
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def encode_condition(
    codec: LatentCodec, inputs: Sequence[TexturingInput], prompt: Tensor, empty: Tensor, extras: Extensions
) -> Condition:
    """Encode geometry, given views and the condition images that the model takes, on the device of the prompts."""
    given, shape = sorted(inputs[0].images), inputs[0].views.position.shape
    if any(sorted(one.images) != given for one in inputs):
        raise ValueError("meshes of one batch must give the same views")
    rgb = np.zeros((len(inputs), *shape), np.float32)
    for row, one in zip(rgb, inputs, strict=True):
        for view, image in one.images.items():
            row[view] = prepare_image(image, shape[1])
    made = [condition_images(one, row, extras) for one, row in zip(inputs, rgb, strict=True)]

    def encoded(surfaces: list[Surface], nth: Literal[0, 1]) -> BranchLatents:
        def tensor(images: list[np.ndarray]) -> Tensor:
            stacked = stack(images, upside_down=nth == 1).to(prompt.device)
            return stacked[:, None] if nth == 1 else stacked

        position, normal = tensor([each.position for each in surfaces]), tensor([each.normal for each in surfaces])
        pixels = {name: [image for each in made if (image := each[name][nth]) is not None] for name in made[0]}
        conditions = {name: tensor(images) for name, images in pixels.items()}
        return encode_branch(None, position, normal, conditions, codec, len(extras.maps) if nth == 1 else 1)

    branches = [encoded([one.views for one in inputs], 0)]
    if maps := [one.uv for one in inputs if one.uv is not None]:
        branches.append(encoded(maps, 1))
    clean = torch.zeros_like(branches[0].rgb)
    if given:
        clean[:, :, given] = codec.encode(torch.from_numpy(rgb[:, given]).to(clean.device)).to(clean)
    is_given = torch.zeros(shape[0], dtype=torch.bool, device=clean.device)
    is_given[given] = True
    every = torch.ones(len(inputs), dtype=torch.bool, device=clean.device)
    follow = {name: every for name in extras.images if find_image(name).follows_views}
    return Condition(
        branches=[branch.beside(extras) for branch in branches],
        blind=[branch.without(follow).beside(extras) for branch in branches],
        clean=clean,
        given=is_given,
        maps=len(extras.maps),
        prompt=prompt,
        empty=empty,
    )


def condition_images(
    one: TexturingInput, colors: Float32[np.ndarray, "views h w 3"], extras: Extensions
) -> dict[str, Pixels]:
    """Return the condition images beside the noisy colours of a mesh by name: its own, or made of what is given."""
    scene = Scene(views=one.views, uv=one.uv, colors=colors, given=tuple(sorted(one.images)))
    wanted = [image for image in map(find_image, extras.images) if image.place == "beside"]
    return {image.name: image.draw(scene, one.condition_images.get(image.name)) for image in wanted}


def prepare_image(image: UInt8[np.ndarray, "height width channels"], size: int) -> Float32[np.ndarray, "size size 3"]:
    """Lay an image (RGB, or RGBA with straight alpha) over black, in the middle of a square of its longer side, and
    resize it to the size of the views: nothing is squeezed or cut off."""
    rgba = Image.fromarray(image).convert("RGBA")
    side = max(rgba.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 255))
    square.alpha_composite(rgba, ((side - rgba.width) // 2, (side - rgba.height) // 2))
    rgb = square.convert("RGB").resize((size, size), Image.Resampling.BOX)
    return np.asarray(rgb, dtype=np.float32) / 255


def denoise(
    model: FlowModel,
    condition: Condition,
    cfg: SamplerConfig,
    *,
    seeds: Sequence[int],
    shift: float = SHIFT,
    progress: Callable[[int], None] = lambda step: None,
) -> list[Float[Tensor, "batch z _ _ _"]]:
    """Turn noise into latents of the views and, if it is wanted, of the UV map. Given views are kept at the condition's
    noise level, with fresh noise every step, and come back as they were given.

    Raises ValueError on image guidance without given views."""
    clean, given = condition.clean, condition.given
    count, generators = int(given.sum()), [seeded(seed) for seed in seeds]
    if cfg.image_guidance != 1.0 and not count:
        raise ValueError("image guidance needs given views")

    def noise(shape: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(clean.device)

    latents = [noise((clean.shape[1], *branch.shape[2:])) for branch in condition.branches]
    slopes: list[Slope | None] = [None] * len(latents)
    task = sampling_task(count, len(given), len(latents) == 2)
    frames = given[None, None, :, None, None]
    level = torch.full(clean.shape[:1] + clean.shape[2:3], CONDITION_SIGMA, device=clean.device)
    for step, (sigma, sigma_next) in enumerate(pairwise(inference_sigmas(cfg.steps, shift).tolist())):
        fresh = noise(clean.shape[1:]) if count else clean
        latents[0] = torch.where(frames, interpolate(clean, fresh, level), latents[0])
        blind = [torch.where(frames, fresh, latents[0]), *latents[1:]]
        sigmas = torch.full((len(clean),), sigma, device=clean.device)
        for branch, velocity in enumerate(guided_flow(model, latents, blind, condition, task, sigmas, cfg)):
            before = slopes[branch] if cfg.solver == "adams" else None
            latents[branch], slopes[branch] = solver_step(latents[branch], velocity, sigma, sigma_next, before)
        progress(step + 1)
    latents[0] = torch.where(frames, clean, latents[0])
    return latents


def guided_flow(
    model: FlowModel,
    latents: list[Float[Tensor, "batch z _ _ _"]],
    blind: list[Float[Tensor, "batch z _ _ _"]],
    condition: Condition,
    task: Task,
    sigma: Float[Tensor, " batch"],
    cfg: SamplerConfig,
) -> list[Tensor]:
    """Predict the flow of each branch, float32; with guidance other than 1 moved away from that of the empty prompt,
    with image guidance from that without the given views. blind: the latents with pure noise in their place."""
    given = condition.given.expand(len(sigma), -1)

    def predict(
        latents: list[Tensor], branches: list[Tensor], text: Tensor, dropped: Tensor | None = None
    ) -> list[Tensor]:
        mv, *uv = (torch.cat(pair, dim=1) for pair in zip(latents, branches, strict=True))
        timestep = plan_frames(task, given, sigma, dropped, condition.maps).timestep
        return [flow.float() for flow in model(mv, uv[0] if uv else None, timestep, text) if flow is not None]

    flows = guided = predict(latents, condition.branches, condition.prompt)
    if cfg.guidance != 1.0:
        wordless = predict(latents, condition.branches, condition.empty)
        guided = [free + cfg.guidance * (flow - free) for flow, free in zip(flows, wordless, strict=True)]
    if cfg.image_guidance != 1.0:
        unseen = predict(blind, condition.blind, condition.prompt, torch.ones_like(given[:, 0]))
        away = [flow - free for flow, free in zip(flows, unseen, strict=True)]
        guided = [flow + (cfg.image_guidance - 1) * move for flow, move in zip(guided, away, strict=True)]
    return guided
