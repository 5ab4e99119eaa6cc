"""The loss of a batch: draw noise, plan the frames, interpolate, predict the flow, compare; for training with random
noise levels, for held-out samples at fixed ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from schemas.sample import TextureSample
from training.data.batch import LatentBatch, encode_batch, to_device, to_model
from training.diffusion.encoders import LatentCodec
from training.diffusion.flow import CPU, FlowConfig, draw, interpolate, masked_mse, shift_sigma, velocity
from training.diffusion.latents import Extras
from training.diffusion.tasks import TASKS, Task, TaskConfig, given_views, plan_frames, views_given

Predict = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor | None]]
"""(views, UV map or None, timesteps, text) to the flows of views and UV map."""
EncodeText = Callable[[list[str]], Tensor]
"""Prompts to their features [batch, length, dim]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """The loss of a batch and its parts, mean squared errors of the flow over generated frames."""

    loss: Float[Tensor, ""]
    """What is minimised: the parts by their weights."""
    mv: Float[Tensor, ""] | None
    """Of the views; None: the task generates none."""
    uv: Float[Tensor, ""] | None
    """Of the UV map; None: the task generates none."""

    def parts(self) -> dict[str, Tensor]:
        """Return the parts that there are, by their names in logs."""
        found = {"loss_mv": self.mv, "loss_uv": self.uv}
        return {name: part.detach() for name, part in found.items() if part is not None}


def flow_losses(
    latents: LatentBatch,
    task: Task,
    predict: Predict,
    encode_text: EncodeText,
    *,
    flow: FlowConfig,
    extras: Extras,
    seed: int,
) -> Losses:
    """Return the losses of a batch on a task. Its random numbers are functions of `seed` and the samples' numbers."""
    device = latents.mv.rgb.device
    branches = [latents.mv, latents.uv] if task.needs_uv and latents.uv else [latents.mv]
    draws = draw(seed, latents.samples, [branch.rgb.shape[1:] for branch in branches], device)
    dropped = draws.drop_image < flow.image_dropout
    plan = plan_frames(task, given_views(task, draws.view_order), flow.sigma(draws.level), dropped)
    views = latents.mv.rgb.shape[2]
    generates_views = bool(plan.generated[:, :views].any())  # on the CPU, as all that decides: no GPU is waited for
    plan, dropped = plan.to(device), dropped.to(device, non_blocking=True)
    branches[0] = latents.given(plan.condition[:, :views]).mv
    branches = [branch.without_hint(dropped) for branch in branches]
    frames = [slice(0, views), slice(views, None)]

    inputs = [
        torch.cat([interpolate(branch.rgb, noise, plan.sigma[:, at]), branch.conditions(extras)], dim=1)
        for branch, noise, at in zip(branches, draws.noise, frames, strict=False)
    ]
    kept = [number >= flow.text_dropout for number in draws.drop_text.tolist()]
    text = text_features(latents, kept, encode_text, device)
    flows = predict(inputs[0], inputs[1] if len(inputs) == 2 else None, plan.timestep, text)
    losses = [
        masked_mse(predicted, velocity(branch.rgb, noise), plan.generated[:, at])
        for predicted, branch, noise, at in zip(flows, branches, draws.noise, frames, strict=False)
        if predicted is not None
    ]
    return Losses(
        loss=losses[0] + flow.uv_weight * losses[1] if len(losses) == 2 else losses[0],
        mv=losses[0] if generates_views else None,
        uv=losses[1] if len(losses) == 2 else None,
    )


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
class Network:
    """The networks that predict and encode, and their device."""

    predict: Predict
    codec: LatentCodec
    encode_text: EncodeText
    extras: Extras
    shift: float
    device: torch.device


@torch.no_grad()
def flow_errors(network: Network, sample: TextureSample, place: int, task: str) -> dict[str, float]:
    """Return flow_mv and flow_uv of a sample, those that the task generates: mean squared errors of the flow, means
    over noise levels. place: number of the sample, which seeds its noise and given views."""
    tasks = TaskConfig(textured={task: 1.0}, mv_only={task: 1.0} if not TASKS[task].needs_uv else {})
    views, found = len(sample.views.rgb), dict[str, list[float]]()
    encoded: dict[tuple[int, ...] | None, LatentBatch] = {}
    for nth, level in enumerate(level for level in QUARTERS for _ in range(DRAWS)):
        flow = FixedNoise(shift=network.shift, text_dropout=0.0, level=level)
        number = place * len(QUARTERS) * DRAWS + nth
        given = views_given(tasks, sample.regime, 0, 0, number, views) if network.extras.view_hint else None
        if given not in encoded:
            encoded[given] = encode_batch(to_device(to_model(sample, given=given), network.device), network.codec)
        losses = flow_losses(
            replace(encoded[given], samples=(number,)), TASKS[task], network.predict, network.encode_text,
            flow=flow, extras=network.extras, seed=0,
        )  # fmt: skip
        for name, part in losses.parts().items():
            found.setdefault(name.replace("loss", "flow"), []).append(float(part))
    return {name: fmean(values) for name, values in found.items()}
