"""Validation while training goes on: a few samples textured by the averaged weights, as pictures and PSNR."""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import lightning
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from schemas.sample import TextureSample
from training.arithmetic import StepCallback
from training.config import TrainConfig
from training.data.batch import to_model, to_uint8, uv_to_image
from training.diffusion.sampler import Geometry, Given, SamplerConfig, Text, sample
from training.loop.callbacks import AveragedWeights
from training.loop.loggers import Curves
from training.loop.throughput import Meter
from training.metrics.images import baselines, psnr
from training.module import TextureModule

Render = Callable[[TextureSample, UInt8[np.ndarray, "uv uv 3"]], UInt8[np.ndarray, "h w 3"]]
"""A sample's mesh with a UV map on it, from where none of its own cameras stands."""
FOLDER = "pictures"
FRAME = 40
"""Grey between the cells of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """What is textured while training goes on."""

    samples: Sequence[TextureSample]
    """With UV maps."""
    render: Render


def texture(
    module: TextureModule, stored: TextureSample, steps: int, seed: int
) -> tuple[UInt8[np.ndarray, "views h w 3"], UInt8[np.ndarray, "uv uv 3"]]:
    """Views and UV map of a sample from its first view."""
    batch = to_model(stored).to(module.device)
    assert batch.uv is not None
    geometry = Geometry(
        mv_position=batch.mv.position,
        mv_normal=batch.mv.normal,
        uv_position=batch.uv.position,
        uv_normal=batch.uv.normal,
    )
    views = torch.arange(batch.mv.rgb.shape[1]) == 0
    encoder = module.text_encoder
    assert encoder is not None
    text = Text(
        prompt=encoder.encode(list(batch.captions)).to(module.device), empty=encoder.encode([""]).to(module.device)
    )
    result = sample(
        module.predict,
        module.codec,
        geometry,
        Given(rgb=batch.mv.rgb, views=views),
        text,
        SamplerConfig(steps=steps),
        seeds=[seed],
        shift=module.flow.shift,
        extras=module.extras,
    )
    assert result.uv_rgb is not None
    return to_uint8(result.mv_rgb[0]), uv_to_image(result.uv_rgb[0])


def grid(
    stored: TextureSample,
    views: UInt8[np.ndarray, "views h w 3"],
    uv: UInt8[np.ndarray, "uv uv 3"],
    render: Render,
) -> UInt8[np.ndarray, "height width 3"]:
    """Two rows, generated and true: condition, views, UV map, and the mesh that wears it from a new viewpoint."""
    assert stored.uv is not None
    size = stored.views.rgb.shape[1]
    rows = []
    for made, texels in ((views, uv), (stored.views.rgb, stored.uv.rgb)):
        cells = [stored.views.rgb[0], *made, texels, render(stored, texels)]
        rows.append(np.concatenate([framed(cell, size) for cell in cells], axis=1))
    return np.concatenate(rows)


def framed(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "cell cell 3"]:
    """The image at this size, with a line around it."""
    scaled = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    return np.pad(scaled, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)


class Pictures(StepCallback):
    """Every so many steps, one picture a sample, and the mean PSNR of generated views and UV maps, with the averaged
    weights. All ranks sample, since the model may be sharded; rank 0 writes."""

    def __init__(
        self, cfg: TrainConfig, shown: Validation, average: AveragedWeights, curves: Curves, meter: Meter
    ) -> None:
        self.cfg = cfg.validation
        self.directory = cfg.run.directory / FOLDER
        self.shown = shown
        self.average = average
        self.curves = curves
        self.meter = meter

    def on_step(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, batch: object) -> None:
        if trainer.global_step % self.cfg.every:
            return
        assert isinstance(pl_module, TextureModule)
        with self.average.applied(), torch.no_grad():
            made = [texture(pl_module, one, self.cfg.steps, seed) for seed, one in enumerate(self.shown.samples)]
        if trainer.is_global_zero:
            self._write(trainer.global_step, made)
        self.meter.leave_out()

    def _write(self, step: int, made: list[tuple[np.ndarray, np.ndarray]]) -> None:
        self.directory.mkdir(exist_ok=True)
        figures: defaultdict[str, list[float]] = defaultdict(list)
        for stored, (views, uv) in zip(self.shown.samples, made, strict=True):
            assert stored.uv is not None
            picture = grid(stored, views, uv, self.shown.render)
            Image.fromarray(picture).save(self.directory / f"step-{step:08d}-{stored.uid}.png")
            self.curves.board.picture(step, f"samples/{stored.uid}", picture)
            if len(views) > 1:  # the first one was given
                figures["validation/view_psnr"].append(psnr(views[1:], stored.views.rgb[1:], stored.views.mask[1:]))
            maps = {"uv": uv} | baselines(stored.views.rgb[:1], stored)
            for name, texels in maps.items():
                figures[f"validation/{name}_psnr"].append(psnr(texels, stored.uv.rgb, stored.uv.mask))
        self.curves.board.scalars(step, {name: float(np.mean(values)) for name, values in figures.items()})
