"""Loss curves of the tiny preset on one batch of four samples of the pipeline, task by task.

`python -m tests.support.overfit` writes tests/assets/overfit.json anew: only after a change that is meant to change
training."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.procedural import procedural
from schemas.sample import TextureSample
from training.config import preset
from training.data.batch import LatentBatch, encode_batch, join, to_model
from training.diffusion.encoders import DctCodec
from training.diffusion.tasks import TASKS, TaskConfig, views_given
from training.model.optimizers import make_optimizer, trained_parameters
from training.module import TextureModule

CURVES = Path(__file__).resolve().parents[1] / "assets" / "overfit.json"
SAMPLES, STEPS = 4, 20


def four_samples(directory: Path) -> list[TextureSample]:
    """Procedural assets through the whole pipeline: 64-pixel views, 64-texel UV maps."""
    cfg = BuildConfig(views=RenderConfig(resolution=64), uv=BakeConfig(resolution=64))
    found = (process_asset(ref, cfg).result for ref in procedural(3 * SAMPLES, directory, clean=True))
    textured = [sample for sample in found if isinstance(sample, TextureSample) and sample.uv is not None]
    return textured[:SAMPLES]


def as_batch(samples: Sequence[TextureSample], tasks: TaskConfig, seed: int) -> LatentBatch:
    """The first batch of a run, with the view hints that go with it."""
    numbers = tuple(range(len(samples)))
    views = len(samples[0].views.rgb)
    given = [views_given(tasks, samples[0].regime, seed, 0, number, views) for number in numbers]
    batch = join([to_model(sample, each, ("hint",)) for sample, each in zip(samples, given, strict=True)])
    return replace(encode_batch(batch, DctCodec()), number=0, samples=numbers)


def curve(samples: Sequence[TextureSample], task: str, steps: int = STEPS) -> list[float]:
    """Losses of `steps` steps on the batch. Noise and noise level are the same in every step, so that the curve shows
    what was learnt and nothing else."""
    tiny = preset("tiny")
    weights = {task: 1.0}
    mv_only = weights if task in ("geo2mv", "img2mv") else tiny.tasks.mv_only
    cfg = replace(tiny, tasks=TaskConfig(textured=weights, mv_only=mv_only))
    assert task in TASKS
    module = TextureModule.of(cfg)
    optimizer = make_optimizer(cfg.optimizer, trained_parameters(module))
    fixed = as_batch(samples, cfg.tasks, cfg.run.seed)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = module.training_step(fixed, 0)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), cfg.optimizer.gradient_clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


def main() -> None:
    import tempfile

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as directory:
        samples = four_samples(Path(directory))
    curves = {task: [round(loss, 6) for loss in curve(samples, task)] for task in TASKS}
    CURVES.parent.mkdir(exist_ok=True)
    CURVES.write_text(json.dumps(curves, indent=0).replace(",\n", ", ") + "\n")


if __name__ == "__main__":
    main()
