"""A mesh on its way to a texture: opened, textured by a network, written."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from geometry.cameras import RigConfig, rig_cameras
from geometry.frames import Frame, bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.filter.measure_mesh import measure
from pipeline.mesh_io.images import decode_image
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.references import AssetError
from pipeline.render.uv_maps import bake_geometry
from pipeline.render.views import render_geometry
from pipeline.unwrap.unwrap import UnwrapConfig, unwrap
from schemas.errors import UserError
from schemas.ledger import Rejected
from schemas.mesh import UvMesh
from schemas.sample import Cameras
from training.data.batch import Extras, to_uint8, uv_to_image, uv_to_model
from training.diffusion.sampler import Geometry, Given, SamplerConfig, Text, prepare_image, resident, sample
from training.loop.checkpoints import Card, Checkpoint


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A mesh that is ready to be textured, in the dataset frame."""

    uv_mesh: UvMesh
    frame: Frame
    cameras: Cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What a texture should look like."""

    images: dict[int, UInt8[np.ndarray, "_ _ _"]] = field(default_factory=dict)
    """View number -> what that view shows (RGB or RGBA, any size)."""
    prompt: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturedSubject:
    """Colours for a `Subject`, sRGB."""

    uv_rgb: UInt8[np.ndarray, "uv_h uv_w 3"]
    """Image orientation, row 0 at v = 1."""
    views_rgb: UInt8[np.ndarray, "views h w 3"]


def open_subject(path: Path, cfg: UnwrapConfig, card: Card) -> Subject:
    """Checks, loads, normalises and unwraps a mesh, and puts the cameras around it that the network knows. Raises
    UserError where it cannot be textured."""
    assert card.uv_resolution is not None
    loaded = load_mesh(path)
    if isinstance(loaded, Rejected):
        raise UserError(f"{path}: {loaded.reason} ({loaded.detail}); mend the file or export it again")
    mesh, frame = normalise(loaded)
    uv_mesh = unwrap(mesh, measure(mesh, None), cfg, card.uv_resolution)
    if isinstance(uv_mesh, Rejected):
        raise UserError(f"{path}: {uv_mesh.reason} ({uv_mesh.detail}); give it a UV layout or raise --max_unwrap_faces")
    return Subject(
        uv_mesh=uv_mesh,
        frame=frame,
        cameras=rig_cameras(RigConfig(**card.rig), *bounding_box(mesh.vertices, mesh.faces)),
    )


def read_image(path: Path) -> UInt8[np.ndarray, "height width 4"]:
    """Raises UserError naming the file where it is no image."""
    try:
        return decode_image(path.read_bytes(), str(path))
    except (OSError, AssetError) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); give a PNG, JPEG or WebP file") from error


def texture_subjects(
    subjects: Sequence[Subject],
    conditions: Sequence[Condition],
    network: Checkpoint,
    cfg: SamplerConfig,
    *,
    seeds: Sequence[int],
    device: str = "cpu",
    offload: bool = False,
    progress: Callable[[int], None] = lambda step: None,
) -> list[TexturedSubject]:
    """Views and UV textures of several meshes in one batch; all conditions give the same views.

    offload: text encoder, codec and transformer are on the device one at a time, while they work."""
    hold = partial(resident, device=device) if offload else nullcontext
    prompts = [condition.prompt for condition in conditions]
    with hold(network.text_encoder):
        text = Text(
            prompt=network.text_encoder.encode(prompts).to(device),
            empty=network.text_encoder.encode([""] * len(prompts)).to(device),
        )
    result = sample(
        network.model,
        network.codec,
        geometry_of(subjects, network, device),
        given_of(conditions, network, device),
        text,
        cfg,
        seeds=seeds,
        shift=network.card.shift,
        extras=Extras.of(network.model.config),
        progress=progress,
        hold=hold,
    )
    assert result.uv_rgb is not None
    return [
        TexturedSubject(uv_rgb=uv_to_image(uv), views_rgb=to_uint8(mv))
        for uv, mv in zip(result.uv_rgb, result.mv_rgb, strict=True)
    ]


def geometry_of(subjects: Sequence[Subject], network: Checkpoint, device: str) -> Geometry:
    card, rasterizer = network.card, CpuRasterizer(threads=2)
    assert card.uv_resolution is not None
    views = [render_geometry(s.uv_mesh, s.cameras, card.view_resolution, rasterizer) for s in subjects]
    maps = [bake_geometry(s.uv_mesh, card.uv_resolution, rasterizer) for s in subjects]
    return Geometry(
        mv_position=torch.stack([torch.from_numpy(position) for position, _, _ in views]).to(device),
        mv_normal=torch.stack([torch.from_numpy(normal) for _, normal, _ in views]).to(device),
        uv_position=torch.stack([uv_to_model(position) for position, _, _ in maps]).to(device),
        uv_normal=torch.stack([uv_to_model(normal) for _, normal, _ in maps]).to(device),
    )


def given_of(conditions: Sequence[Condition], network: Checkpoint, device: str) -> Given:
    numbers, size = sorted(conditions[0].images), network.card.view_resolution
    if any(sorted(condition.images) != numbers for condition in conditions):
        raise ValueError("conditions of one batch must give the same views")
    rgb = torch.zeros(len(conditions), network.card.views, size, size, 3)
    for row, condition in zip(rgb, conditions, strict=True):
        for number, image in condition.images.items():
            row[number] = prepare_image(image, size)
    views = torch.zeros(network.card.views, dtype=torch.bool)
    views[numbers] = True
    return Given(rgb=rgb.to(device), views=views)
