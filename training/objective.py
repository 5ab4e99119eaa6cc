"""The loss of a batch: draw noise, plan the frames, interpolate, predict the flow, compare; for training with random
noise levels, for held-out samples at fixed ones."""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from schemas.sample import TextureSample
from training.conditions.images import GIVEN_VIEW, find_image
from training.data.batch import LatentBatch, encode_batch, to_device, to_model
from training.diffusion.encoders import LatentCodec
from training.diffusion.flow import (
    CPU,
    FlowConfig,
    FlowModel,
    draw,
    draw_view_order,
    interpolate,
    masked_mse,
    seeded,
    shift_sigma,
    velocity,
)
from training.diffusion.latents import Extensions
from training.diffusion.tasks import TASKS, Task, TaskConfig, given_views, plan_frames, views_given

EncodeText = Callable[[list[str]], Tensor]
"""Prompts to their features [batch, length, dim]."""
DROP_STREAM = 17
"""Keeps dropout of condition images apart from other draws by (seed, sample number)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The loss of a batch and its parts, mean squared errors of the flow over generated frames."""

    loss: Float[Tensor, ""]
    """The number that is minimised: the parts by their weights."""
    mv: Float[Tensor, ""] | None
    """Mean of the views; None: the task generates none."""
    uv: Float[Tensor, ""] | None
    """Mean of the UV maps; None: the task generates none."""
    maps: dict[str, Float[Tensor, ""]] = field(default_factory=dict)
    """Part of each UV map by name, where there are several."""

    def parts(self) -> dict[str, Tensor]:
        """Return the parts that there are, by their names in logs."""
        found = {"loss_mv": self.mv, "loss_uv": self.uv} | {f"loss_{name}": part for name, part in self.maps.items()}
        return {name: part.detach() for name, part in found.items() if part is not None}


def flow_losses(
    latents: LatentBatch,
    task: Task,
    model: FlowModel,
    encode_text: EncodeText,
    *,
    flow: FlowConfig,
    extras: Extensions,
    seed: int,
    drops_images: bool = True,
) -> Losses:
    """Return the losses of a batch on a task. Its random numbers are functions of `seed` and the samples' numbers.
    drops_images: condition images are dropped at their own rates. The mean of the losses of equal parts of a global
    batch, over ranks or accumulated batches, is its loss."""
    device = latents.mv.rgb.device
    branches = [latents.mv, latents.uv] if task.needs_uv and latents.uv else [latents.mv]
    draws = draw(seed, latents.samples, [branch.rgb.shape[1:] for branch in branches], device)
    dropped = draws.drop_image < flow.image_dropout
    plan = plan_frames(task, given_views(task, draws.view_order), flow.sigma(draws.level), dropped, len(extras.maps))
    views = latents.mv.rgb.shape[2]
    generates_views = bool(plan.generated[:, :views].any())  # on the CPU, as all that decides: no GPU is waited for
    without = dropped_images(extras.images, dropped, seed, latents.samples, drops_images)
    absent = {name: samples.to(device, non_blocking=True) for name, samples in without.items()}
    plan = plan.to(device)
    branches[0] = branches[0].given(plan.condition[:, :views])
    branches = [branch.without(absent) for branch in branches]
    frames = [slice(0, views), slice(views, None)]

    inputs = [
        torch.cat([interpolate(branch.rgb, noise, plan.sigma[:, at]), branch.beside(extras)], dim=1)
        for branch, noise, at in zip(branches, draws.noise, frames, strict=False)
    ]
    kept = [number >= flow.text_dropout for number in draws.drop_text.tolist()]
    text = text_features(latents, kept, encode_text, device)
    flows = model(inputs[0], inputs[1] if len(inputs) == 2 else None, plan.timestep, text)
    counts = [generated_views(task, latents, seed), None]
    losses = [
        masked_mse(predicted, velocity(branch.rgb, noise), plan.generated[:, at], count)
        for predicted, branch, noise, at, count in zip(flows, branches, draws.noise, frames, counts, strict=False)
        if predicted is not None
    ]
    of_uv = flows[1]
    return Losses(
        loss=losses[0] + flow.uv_weight * losses[1] if len(losses) == 2 else losses[0],
        mv=losses[0] if generates_views else None,
        uv=losses[1] if len(losses) == 2 else None,
        maps={} if of_uv is None else map_losses(of_uv, velocity(branches[1].rgb, draws.noise[1]), extras.maps),
    )


def map_losses(
    predicted: Float[Tensor, "b c maps h w"], target: Float[Tensor, "b c maps h w"], names: Sequence[str]
) -> dict[str, Float[Tensor, ""]]:
    """Return the mean squared error of each map, by name; nothing where there is one alone."""
    errors = (predicted.detach().float() - target.float()).square().mean(dim=(0, 1, 3, 4))
    return dict(zip(names, errors, strict=True)) if len(names) > 1 else {}


def dropped_images(
    names: Sequence[str], without_views: Bool[Tensor, " batch"], seed: int, samples: Sequence[int], with_own: bool
) -> dict[str, Bool[Tensor, " batch"]]:
    """Choose the samples that go without each image: those `without_views` for an image that follows the given views,
    others by a number of their own for each sample and image. with_own: the images' own dropout, too."""
    found = {}
    for image in map(find_image, names):
        if image.follows_views:
            found[image.name] = without_views
        elif image.dropout and with_own:
            stream = (DROP_STREAM, zlib.crc32(image.name.encode()))
            drawn = torch.cat([torch.rand(1, generator=seeded(seed, sample, *stream)) for sample in samples])
            found[image.name] = (drawn < image.dropout).to(without_views.device)
    return found


def generated_views(task: Task, latents: LatentBatch, seed: int) -> float | None:
    """Count the views that the global batch generates, per part of it as large as this one; None: this part's own
    number is that, as all samples have the same. Computed alike on every rank, without communication."""
    size, views = latents.global_size, latents.mv.rgb.shape[2]
    if not task.draws_count or size <= len(latents.samples):
        return None
    numbers = range(latents.number * size, (latents.number + 1) * size)
    orders = torch.stack([draw_view_order(seed, number, views) for number in numbers])
    return int((~given_views(task, orders)).sum()) * len(latents.samples) / size


def text_features(
    latents: LatentBatch, kept: Sequence[bool], encode: EncodeText, device: torch.device = CPU
) -> Float[Tensor, "batch length dim"]:
    """Return features of the captions, stored ones where there are any; "" replaces a caption that is not kept."""
    if latents.text is not None:
        return latents.text.tokens(kept, device)
    prompts = [caption if keep else "" for caption, keep in zip(latents.captions, kept, strict=True)]
    return encode(prompts).to(device, non_blocking=True)


QUARTERS = (0.125, 0.375, 0.625, 0.875)
"""Middles of the quarters of training's noise levels, before the shift."""
DRAWS = 2
"""Draws of the noise and of the given view, for each sample and noise level."""


@dataclass(frozen=True, kw_only=True)
class FixedNoise(FlowConfig):
    """Options with one noise level instead of a distribution."""

    level: float
    """Noise level before the shift."""

    def sigma(self, uniform: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        return shift_sigma(torch.full_like(uniform, self.level), self.shift)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOutModel:
    """A model and the encoders of its input, to be measured on held-out samples."""

    model: FlowModel
    codec: LatentCodec
    encode_text: EncodeText
    extras: Extensions
    shift: float
    device: torch.device


@torch.no_grad()
def flow_errors(
    parts: HeldOutModel, sample: TextureSample, number: int, task: str, *, lit: bool = False
) -> dict[str, float]:
    """Return flow_mv and flow_uv of a sample, and of each of several UV maps, those that the task generates: mean
    squared errors of the flow, means over noise levels. number: that of the sample, which seeds its noise and given
    views. lit: the views under light are given."""
    tasks = TaskConfig(textured={task: 1.0}, mv_only={task: 1.0} if not TASKS[task].needs_uv else {})
    images = (GIVEN_VIEW.name,) * lit + parts.extras.images
    views, extras, found = len(sample.views.rgb), parts.extras, dict[str, list[float]]()
    encoded: dict[tuple[int, ...], LatentBatch] = {}
    for nth, level in enumerate(level for level in QUARTERS for _ in range(DRAWS)):
        flow = FixedNoise(shift=parts.shift, text_dropout=0.0, level=level)
        seeded_by = number * len(QUARTERS) * DRAWS + nth
        given = views_given(tasks, sample.regime, 0, 0, seeded_by, views) if extras.follow_views else ()
        if given not in encoded:
            batch = to_device(
                to_model(sample, given, images, extras.maps, sample.views.lit if lit else None), parts.device
            )
            encoded[given] = encode_batch(batch, parts.codec, TASKS[task].needs_uv)
        losses = flow_losses(
            replace(encoded[given], samples=(seeded_by,)), TASKS[task], parts.model, parts.encode_text,
            flow=flow, extras=extras, seed=0, drops_images=False,
        )  # fmt: skip
        for name, part in losses.parts().items():
            found.setdefault(name.replace("loss", "flow"), []).append(float(part))
    return {name: fmean(values) for name, values in found.items()}
