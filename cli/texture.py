"""`seqtex texture`: a mesh and an image in, the same mesh with a new texture out."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8

from cli.progress import log_event
from geometry.cameras import seqtex4
from geometry.frames import Frame, bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.bake import bake_geometry
from pipeline.formats.fault import AssetFault
from pipeline.glb import write_glb
from pipeline.judge import measure
from pipeline.load import decode_image, load_mesh
from pipeline.preflight import PreflightConfig, preflight
from pipeline.render import render_geometry
from pipeline.unwrap import UnwrapConfig, unwrap
from schemas.camera import Cameras
from schemas.errors import UsageError, UserError
from schemas.ledger import Rejected
from schemas.mesh import UvMesh
from training.batch import to_uint8, uv_to_image, uv_to_model
from training.checkpoints import Checkpoint, load_checkpoint
from training.sampler import Geometry, prepare_image, sample

UNWRAP_TIMEOUT_S = 600.0
"""A person waits longer for one mesh than a build does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A mesh that is ready to be textured, in the dataset frame."""

    uv_mesh: UvMesh
    frame: Frame
    cameras: Cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class TexturedSubject:
    """Colours for a `Subject`, sRGB."""

    uv_rgb: UInt8[np.ndarray, "uv_h uv_w 3"]
    """Image orientation, row 0 at v = 1."""
    views_rgb: UInt8[np.ndarray, "views h w 3"]


def texture(
    mesh: Path,
    image: Path,
    checkpoint: Path,
    out: Path,
    view: int = 0,
    prompt: str = "",
    steps: int = 30,
    guidance: float = 1.0,
    seed: int = 0,
    device: str = "auto",
    max_unwrap_faces: int = 200_000,
) -> int:
    """Texture a mesh (.glb, .gltf, .obj) so that it looks like the image.

    Args:
        mesh: the mesh, with or without texture coordinates; an existing texture is not looked at
        image: what the mesh shows in one view: its front is seen from azimuth -90 degrees, elevation 10
        checkpoint: folder `checkpoint` of a training run
        out: the textured mesh to write (.glb)
        view: which view the image shows: 0 front, then each a quarter turn on
        prompt: text, for checkpoints trained with a text encoder
        steps: denoising steps
        guidance: classifier-free guidance; 1 is off
        seed: of the noise
        device: cpu, cuda, or auto
        max_unwrap_faces: faces up to which a mesh without a good UV layout gets a new one; 50,000 take 11 s, 200,000
            over a minute
    """
    if out.suffix.lower() != ".glb":
        raise UsageError(f"--out {out}: the result is a .glb file; name it so")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    network = load_checkpoint(checkpoint, device)
    if network.card.uv_resolution is None:
        raise UserError(f"{checkpoint}: never saw a UV map; train on a dataset with textured samples")
    subject = open_subject(
        mesh, UnwrapConfig(max_faces=max_unwrap_faces, timeout_s=UNWRAP_TIMEOUT_S), network.card.uv_resolution
    )
    if not 0 <= view < network.card.views:
        raise UsageError(f"--view {view}: the checkpoint has views 0 to {network.card.views - 1}")
    result = texture_subject(
        subject, read_image(image), network, view=view, prompt=prompt, steps=steps, guidance=guidance, seed=seed
    )
    write_glb(out, subject.uv_mesh, result.uv_rgb, subject.frame)
    log_event("textured", mesh=str(mesh), out=str(out), layout=subject.uv_mesh.layout)
    return 0


def open_subject(path: Path, cfg: UnwrapConfig, uv_resolution: int) -> Subject:
    """Checks, loads, normalises and unwraps a mesh. Raises UserError where it cannot be textured."""
    limits = PreflightConfig()
    facts = preflight(path, limits)
    loaded = facts if isinstance(facts, Rejected) else load_mesh(path, limits)
    if isinstance(loaded, Rejected):
        raise UserError(f"{path}: {loaded.reason} ({loaded.detail}); mend the file or export it again")
    mesh, frame = normalise(loaded)
    uv_mesh = unwrap(mesh, measure(mesh, None), cfg, uv_resolution)
    if isinstance(uv_mesh, Rejected):
        raise UserError(f"{path}: {uv_mesh.reason} ({uv_mesh.detail}); give it a UV layout or raise --max_unwrap_faces")
    return Subject(uv_mesh=uv_mesh, frame=frame, cameras=seqtex4(*bounding_box(mesh.vertices, mesh.faces)))


def read_image(path: Path) -> UInt8[np.ndarray, "height width 4"]:
    """Raises UserError naming the file where it is no image."""
    try:
        return decode_image(path.read_bytes(), str(path))
    except (OSError, AssetFault) as error:
        raise UserError(f"{path}: cannot be read as an image ({error}); give a PNG, JPEG or WebP file") from error


def texture_subject(
    subject: Subject,
    image: UInt8[np.ndarray, "height width channels"],
    network: Checkpoint,
    *,
    view: int = 0,
    prompt: str = "",
    steps: int = 30,
    guidance: float = 1.0,
    seed: int = 0,
) -> TexturedSubject:
    """Views and UV texture of one mesh by the network, from one image (RGB or RGBA, over black)."""
    card, rasterizer = network.card, CpuRasterizer(threads=2)
    assert card.uv_resolution is not None
    position, normal, _ = render_geometry(subject.uv_mesh, subject.cameras, card.view_resolution, rasterizer)
    uv_position, uv_normal, _ = bake_geometry(subject.uv_mesh, card.uv_resolution, rasterizer)
    device = network.model.device
    geometry = Geometry(
        mv_position=torch.from_numpy(position)[None].to(device),
        mv_normal=torch.from_numpy(normal)[None].to(device),
        uv_position=uv_to_model(uv_position)[None].to(device),
        uv_normal=uv_to_model(uv_normal)[None].to(device),
    )
    result = sample(
        network.model,
        network.codec,
        geometry,
        prepare_image(image, card.view_resolution)[None].to(device),
        view,
        network.text_encoder.encode([prompt]).to(device),
        seed=seed,
        steps=steps,
        shift=card.shift,
        guidance=guidance,
        no_text=network.text_encoder.encode([""]).to(device),
    )
    return TexturedSubject(uv_rgb=uv_to_image(result.uv_rgb[0]), views_rgb=to_uint8(result.mv_rgb[0]))
