"""The training loss on held-out samples, at fixed noise levels and with fixed noise, equal for all networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from schemas.sample import TextureSample
from training.data.batch import LatentBatch, encode_batch, to_model
from training.diffusion.flow import FlowConfig, shift_sigma
from training.diffusion.tasks import TaskConfig, views_given
from training.loop.checkpoints import Checkpoint
from training.model.optimizers import OptimizerConfig
from training.module import TextureModule

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


def held_out_losses(network: Checkpoint, samples: Sequence[TextureSample], task: str) -> list[dict[str, float]]:
    """Return flow_mv and flow_uv of each sample: mean squared errors of the flow over generated views and UV map."""
    tasks = TaskConfig(textured={task: 1.0})
    module = TextureModule(
        network.model,
        network.codec,
        network.text_encoder,
        flow=FlowConfig(),
        tasks=tasks,
        optimizer=OptimizerConfig(),
        seed=0,
    )
    rows = []
    for place, sample in enumerate(samples):
        views, losses = len(sample.views.rgb), []
        encoded: dict[tuple[int, ...] | None, LatentBatch] = {}
        for draw, level in enumerate(level for level in QUARTERS for _ in range(DRAWS)):
            module.flow = FixedNoise(shift=network.card.shift, text_dropout=0.0, level=level)
            number = place * len(QUARTERS) * DRAWS + draw
            given = views_given(tasks, sample.regime, 0, 0, number, views) if module.extras.view_hint else None
            if given not in encoded:
                encoded[given] = encode_batch(to_model(sample, given=given), network.codec)
            with torch.no_grad():
                losses.append(module.training_step(replace(encoded[given], samples=(number,)), 0))
        names = ("mv", "uv") if "loss_uv" in losses[0] else ("mv",)
        rows.append({f"flow_{name}": fmean(float(each[f"loss_{name}"]) for each in losses) for name in names})
    return rows
