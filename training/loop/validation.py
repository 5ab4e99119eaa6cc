"""Validation during training: texture a few samples with the averaged weights; pictures and PSNR."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import lightning
import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from geometry.image_metrics import psnr
from geometry.nearest import Surface
from schemas.sample import TextureSample
from training.config import TrainConfig
from training.data.batch import Prepared
from training.diffusion.sampler import SamplerConfig, TexturingInput, TexturingResult, sample
from training.loop.callbacks import AveragedWeights
from training.loop.loggers import Curves
from training.loop.throughput import Meter
from training.maps import BASE_COLOR, map_psnr, packed
from training.metrics.images import baselines
from training.module import TextureModule
from training.steps import StepCallback

Render = Callable[[TextureSample, UInt8[np.ndarray, "uv uv 3"]], UInt8[np.ndarray, "h w 3"]]
"""Renders a sample's mesh with a UV map on it from a new viewpoint."""
FOLDER = "pictures"
NO_MAPS: Mapping[str, UInt8[np.ndarray, "uv uv 3"]] = {}
FRAME = 40
"""Grey between the cells of a picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """Samples that are textured during training."""

    samples: Sequence[TextureSample]
    """Samples with UV maps."""
    render: Render


def texture(module: TextureModule, stored: TextureSample, steps: int, seed: int) -> TexturingResult:
    """Texture a sample from its first view and its own condition images."""
    views, uv = stored.views, stored.uv
    assert uv is not None
    subject = TexturingInput(
        views=Surface(position=views.position, normal=views.normal),
        uv=Surface(position=uv.position, normal=uv.normal),
        images={0: views.rgb[0]},
        condition_images=Prepared(sample=stored, given=(0,), images=module.extras.images).condition_images(),
        prompt=str(stored.meta.get("caption", "")),
        seed=seed,
    )
    (result,) = sample(
        module.predict_flow,
        module.codec,
        module.text_encoder,
        [subject],
        SamplerConfig(steps=steps),
        shift=module.flow.shift,
        extras=module.extras,
        device=module.device,
    )
    return result


def grid(
    stored: TextureSample,
    views: UInt8[np.ndarray, "views h w 3"],
    uv: UInt8[np.ndarray, "uv uv 3"],
    render: Render,
    maps: Mapping[str, UInt8[np.ndarray, "uv uv 3"]] = NO_MAPS,
) -> UInt8[np.ndarray, "height width 3"]:
    """Draw two rows, generated and true: condition, views, UV maps, and the mesh with its colours from a new viewpoint.
    maps: generated ones beside the colours."""
    size = stored.views.rgb.shape[1]
    rows = []
    for made, texels in ((views, [uv, *maps.values()]), (stored.views.rgb, packed(stored, (BASE_COLOR, *maps)))):
        cells = [stored.views.rgb[0], *made, *texels, render(stored, texels[0])]
        rows.append(np.concatenate([framed(cell, size) for cell in cells], axis=1))
    return np.concatenate(rows)


def framed(image: UInt8[np.ndarray, "h w 3"], size: int) -> UInt8[np.ndarray, "cell cell 3"]:
    """Resize an image, with a line around it."""
    scaled = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BOX))
    return np.pad(scaled, ((1, 1), (1, 1), (0, 0)), constant_values=FRAME)


class Pictures(StepCallback):
    """Writes a picture of each sample every so many steps, and the mean PSNR of generated views and UV maps, with the
    averaged weights. All ranks sample, since the model may be sharded; rank 0 writes."""

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
        self.meter.exclude()

    def _write(self, step: int, made: list[TexturingResult]) -> None:
        self.directory.mkdir(exist_ok=True)
        figures: defaultdict[str, list[float]] = defaultdict(list)
        for stored, result in zip(self.shown.samples, made, strict=True):
            views, uv = result.views, result.uv
            assert stored.uv is not None and uv is not None
            picture = grid(stored, views, uv, self.shown.render, result.maps)
            Image.fromarray(picture).save(self.directory / f"step-{step:08d}-{stored.uid}.png")
            self.curves.show(step, stored, uv, picture)
            if len(views) > 1:  # the first one was given
                figures["validation/view_psnr"].append(psnr(views[1:], stored.views.rgb[1:], stored.views.mask[1:]))
            maps = {"uv": uv} | baselines(stored.views.rgb[:1], stored)
            for name, texels in maps.items():
                figures[f"validation/{name}_psnr"].append(psnr(texels, stored.uv.rgb, stored.uv.mask))
            for name, value in map_psnr(result.maps, stored.uv).items():
                figures[f"validation/{name}"].append(value)
        self.curves.logger.log_metrics({name: float(np.mean(values)) for name, values in figures.items()}, step)
