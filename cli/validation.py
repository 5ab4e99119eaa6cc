"""What `seqtex train` textures on its way, so that a person can watch it learn."""

from dataclasses import replace
from itertools import chain, islice

import numpy as np
from jaxtyping import UInt8

from geometry.frames import bounding_box
from geometry.raster_cpu import CpuRasterizer
from geometry.rigs import RigConfig, rig_cameras
from pipeline.render import RenderConfig, render_baked
from schemas.camera import Cameras
from schemas.errors import UsageError
from schemas.sample import Regime, TextureSample
from training.data import open_datasets
from training.pictures import Validation
from training.presets import TrainConfig
from training.sources import readable_samples

NEW_VIEWPOINT = RigConfig(name="turntable", elevation_deg=30.0)
"""Its second camera: between the front and the right of the released rig, and higher."""


def validation_of(cfg: TrainConfig) -> Validation | None:
    """The samples to show; None where there are none or nobody wants any. Raises UsageError where the dataset that was
    named has none."""
    if not cfg.validation.every:
        return None
    chosen = cfg.validation.directory
    data = replace(cfg.data, directory=chosen, directories={}) if chosen else cfg.data
    textured = (readable_samples(files, Regime.TEXTURED) for files in open_datasets(data))
    samples = list(islice(chain.from_iterable(textured), cfg.validation.samples))
    if chosen and not samples:
        raise UsageError(f"validation.directory {chosen}: no textured sample; name another dataset or leave it out")
    return Validation(samples=samples, render=render_turned) if samples else None


def render_turned(
    sample: TextureSample, rgb: UInt8[np.ndarray, "uv uv 3"]
) -> UInt8[np.ndarray, "resolution resolution 3"]:
    """The sample's mesh with this UV map on it, from where no camera of the training data stands."""
    assert sample.mesh is not None
    rig = rig_cameras(NEW_VIEWPOINT, *bounding_box(sample.mesh.vertices, sample.mesh.faces))
    camera = Cameras(world_to_cam=rig.world_to_cam[1:2], projection=rig.projection[1:2])
    cfg = RenderConfig(resolution=sample.views.mask.shape[1])
    return render_baked(sample.mesh, rgb, camera, cfg, CpuRasterizer(threads=1)).rgb[0]
