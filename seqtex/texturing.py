"""Texture meshes with a trained network: from a mesh file and an image or a text to a textured .glb."""

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from geometry.cameras import RigConfig, rig_cameras
from geometry.frames import Frame, bounding_box
from geometry.nearest import Surface
from geometry.raster_cpu import CpuRasterizer
from pipeline.executor.mesh_file import OpenedMesh, open_mesh_file
from pipeline.mesh_io.images import decode_image
from pipeline.mesh_io.preflight import UpAxis
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.write_glb import KeptMaterials, Map, plain_materials, write_glb
from pipeline.render.uv_maps import bake_geometry
from pipeline.render.views import render_geometry
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.errors import UsageError, UserError
from schemas.ledger import LAYOUT_FAULTS, Rejected
from schemas.mesh import UvMesh
from schemas.sample import Cameras
from training.data.mixture import require_tokens
from training.diffusion.latents import Extensions
from training.diffusion.sampler import SamplerConfig, TexturingInput, sample
from training.loop.checkpoints import Card, Checkpoint, load_checkpoint

UNWRAP_TIMEOUT_S = 600.0
"""Longer than in a build: here someone waits for one mesh."""
MAX_UNWRAP_FACES = 200_000

Picture = str | Path | UInt8[np.ndarray, "_ _ _"]
"""An image file, or sRGB pixels [h, w, 3] or [h, w, 4] with straight alpha."""


@runtime_checkable
class Exportable(Protocol):
    """A `trimesh.Trimesh`, or anything that exports itself in the same way."""

    def export(self, *, file_type: str) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedMesh:
    """A mesh that is ready to be textured, in the dataset frame."""

    mesh: UvMesh
    frame: Frame
    """The way back to the frame of the mesh file."""
    cameras: Cameras
    """The cameras of the views."""
    input: TexturingInput
    kept: KeptMaterials | None = None
    """The mesh file's materials beside the base colour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshTexture(PreparedMesh):
    """A mesh with its generated texture and views, sRGB."""

    views: UInt8[np.ndarray, "views h w 3"]
    """Given views come back as the codec keeps them."""
    uv: UInt8[np.ndarray, "uv_h uv_w 3"]
    """The texture in image orientation (row 0 is v = 1)."""
    maps: dict[str, UInt8[np.ndarray, "uv_h uv_w 3"]] = field(default_factory=dict)
    """Other maps that the checkpoint generates (`model.maps`), packed as glTF's textures."""

    def save(self, path: str | Path) -> None:
        """Write the textured mesh as .glb, at its place and size in the mesh file, with generated maps, and its other
        ones and factors."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        kept = with_maps(self.kept or plain_materials(self.mesh), self.maps) if self.maps else self.kept
        write_glb(Path(path), self.mesh, self.uv, self.frame, kept=kept)


def with_maps(kept: KeptMaterials, maps: Mapping[str, UInt8[np.ndarray, "uv_h uv_w 3"]]) -> KeptMaterials:
    """Put generated maps in place of those that every material of a mesh has. maps: by name (`model.maps`)."""
    textures = {name: Map(image=image) for name, image in maps.items()}
    changes: dict[str, Any] = {}
    if found := textures.get("metallic_roughness"):
        changes |= {"metallic_roughness": found, "metallic": 1.0, "roughness": 1.0}
    if found := textures.get("normal_tangent"):
        changes |= {"normal": found, "normal_scale": 1.0}
    if found := textures.get("emissive"):
        changes |= {"emissive_map": found, "emissive": (1.0, 1.0, 1.0)}
    materials = tuple(replace(material, **changes) for material in kept.materials)
    # without tangents of a file readers compute MikkTSpace's, which generated normals are in
    return replace(kept, materials=materials, tangents=None if "normal" in changes else kept.tangents)


def texture(
    mesh: str | Path | UvMesh | Exportable,
    *,
    image: Picture | Mapping[int, Picture] | None = None,
    view: int = 0,
    prompt: str = "",
    checkpoint: str | Path | Checkpoint = "checkpoint",
    out: str | Path | None = None,
    steps: int = 30,
    solver: Literal["euler", "adams"] = "euler",
    guidance: float = 1.0,
    image_guidance: float = 1.0,
    seed: int = 0,
    device: str = "cpu",
    uv_resolution: int | None = None,
    max_unwrap_faces: int = MAX_UNWRAP_FACES,
    up_axis: UpAxis = "y",
) -> MeshTexture:
    """Texture a mesh so that it looks like one image, several views, or a text.

    Equal arguments give equal results on one machine. The result has the texture (`uv`, uint8 [H, W, 3], row 0 is
    v = 1), the generated views (`views`, uint8 [V, h, w, 3]), the mesh with its UV layout (`mesh`), and `save(path)`.

    Args:
        mesh: a file (.glb, .gltf, .obj), a `trimesh.Trimesh` with glTF's axes (Y up), or a `UvMesh` in the dataset
            frame; an existing base colour is replaced, other maps of a file are kept
        image: what view `view` shows, or pictures of several views by their numbers
        view: 0 is the front (azimuth -90 degrees), then each a quarter turn on
        prompt: text, for checkpoints trained with a text encoder; alone or with images
        checkpoint: folder `checkpoint` or trainer state of a training run, folder with released weights, or what
            `load_checkpoint` returned
        out: also write the textured mesh to this .glb file
        steps: denoising steps
        solver: `euler` (as released), or `adams`, which needs fewer steps
        guidance: classifier-free guidance; 1 is off
        image_guidance: the same over the given images, for checkpoints trained with `flow.image_dropout`; 1 is off
        seed: seed of the noise
        device: device of a checkpoint that is loaded: cpu, cuda, cuda:1, ...
        uv_resolution: texels a side; None: as trained
        max_unwrap_faces: faces up to which a mesh without a good UV layout gets a new one
        up_axis: `y` or `z`, the axis that points up in an OBJ, OFF, PLY or STL file, which does not say it

    Raises:
        UsageError: options contradict each other.
        UserError: a file is missing or damaged, or the mesh cannot be textured; the message says what to do.
    """
    network = checkpoint if isinstance(checkpoint, Checkpoint) else load_checkpoint(Path(checkpoint), device)
    network = for_textures(network, uv_resolution)
    pictures = {} if image is None else image if isinstance(image, Mapping) else {view: image}
    if not (pictures or prompt):
        raise UsageError("nothing says what the texture should look like; give an image or a prompt")
    require_text_encoder(network.card, prompt, guidance)
    require_image_dropout(network.card, image_guidance, bool(pictures))
    prepared = prepare_mesh(
        mesh,
        network.card,
        pictures=pictures,
        prompt=prompt,
        seed=seed,
        max_unwrap_faces=max_unwrap_faces,
        up_axis=up_axis,
    )
    cfg = SamplerConfig(steps=steps, solver=solver, guidance=guidance, image_guidance=image_guidance)
    (result,) = texture_meshes([prepared], network, cfg, device=str(network.model.device))
    if out is not None:
        result.save(out)
    return result


def for_textures(network: Checkpoint, uv_resolution: int | None) -> Checkpoint:
    """Set the resolution of the UV map; None: as trained. Raises UserError if the network cannot make one."""
    if uv_resolution is not None:
        require_tokens("uv_resolution", uv_resolution, network.codec.layout.token)
        network = replace(network, card=replace(network.card, uv_resolution=uv_resolution))
    if network.card.uv_resolution is None:
        raise UserError("the checkpoint was trained without UV maps; train on a dataset with textured samples")
    return network


def prepare_mesh(
    mesh: str | Path | UvMesh | Exportable,
    card: Card,
    *,
    pictures: Mapping[int, Picture] | None = None,
    prompt: str = "",
    seed: int = 0,
    cameras: Cameras | None = None,
    max_unwrap_faces: int = MAX_UNWRAP_FACES,
    up_axis: UpAxis = "y",
) -> PreparedMesh:
    """Load, normalise and unwrap a mesh, and render its geometry in the sizes of a checkpoint. cameras: those of the
    views; None: as trained. Other arguments and errors: see `texture`.
    """
    assert card.uv_resolution is not None
    for view in pictures or {}:
        if not 0 <= view < card.views:
            raise UsageError(f"view {view}: the checkpoint has views 0 to {card.views - 1}")
    images = {view: read_image(picture) for view, picture in (pictures or {}).items()}
    frame, kept = Frame(center=np.zeros(3), scale=1.0), None
    if not isinstance(mesh, UvMesh):
        opened = open_mesh(mesh, card.uv_resolution, max_unwrap_faces, up_axis)
        mesh, frame, kept = opened.mesh, opened.frame, opened.kept
    cameras = cameras or rig_cameras(RigConfig(**card.rig), *bounding_box(mesh.vertices, mesh.faces))
    rasterizer = CpuRasterizer(threads=2)
    position, normal, _ = render_geometry(mesh, cameras, card.view_resolution, rasterizer)
    uv_position, uv_normal, _ = bake_geometry(mesh, card.uv_resolution, rasterizer)
    subject = TexturingInput(
        views=Surface(position=position, normal=normal),
        uv=Surface(position=uv_position, normal=uv_normal),
        images=images,
        prompt=prompt,
        seed=seed,
    )
    return PreparedMesh(mesh=mesh, frame=frame, cameras=cameras, input=subject, kept=kept)


def open_mesh(
    mesh: str | Path | Exportable, uv_resolution: int, max_unwrap_faces: int, up_axis: UpAxis = "y"
) -> OpenedMesh:
    """Load, normalise and unwrap a mesh, in a sandboxed process. Raises UserError if that is not possible."""
    if isinstance(mesh, Exportable):
        with TemporaryDirectory() as folder:
            path = Path(folder) / "mesh.glb"
            path.write_bytes(mesh.export(file_type="glb"))
            return open_mesh(path, uv_resolution, max_unwrap_faces)
    cfg = UnwrapConfig(max_faces=max_unwrap_faces, timeout_s=UNWRAP_TIMEOUT_S)
    opened = open_mesh_file(Path(mesh), cfg, uv_resolution, up_axis)
    if isinstance(opened, Rejected):
        layout = opened.reason in LAYOUT_FAULTS
        remedy = "give it a UV layout or raise --max_unwrap_faces" if layout else "fix the file or export it again"
        raise UserError(f"{mesh}: {opened.reason} ({opened.detail}); {remedy}")
    return opened


def read_image(picture: Picture) -> UInt8[np.ndarray, "height width _"]:
    """Read an image. Raises UserError naming the file if it is none."""
    if isinstance(picture, np.ndarray):
        return picture
    try:
        return upright(Path(picture).read_bytes(), str(picture))
    except (OSError, AssetError) as error:
        raise UserError(f"{picture}: cannot be read as an image ({error}); give a PNG, JPEG or WebP file") from error


def upright(data: bytes, name: str) -> UInt8[np.ndarray, "height width _"]:
    """Decode a photo and turn it as its EXIF orientation says."""
    image = Image.fromarray(decode_image(data, name))
    with Image.open(io.BytesIO(data)) as file:
        image.getexif()[ExifTags.Base.Orientation] = file.getexif().get(ExifTags.Base.Orientation, 1)
    return np.asarray(ImageOps.exif_transpose(image))


def require_text_encoder(card: Card, prompt: str = "", guidance: float = 1.0) -> None:
    """Raise UsageError if a checkpoint without a text encoder is given a prompt or guidance, which it cannot follow."""
    if card.text_encoder != "none":
        return
    if prompt:
        raise UsageError(f"prompt {prompt!r}: the checkpoint was trained without a text encoder; give an image")
    if guidance != 1.0:
        raise UsageError(
            f"guidance {guidance:g}: the checkpoint was trained without a text encoder, and guidance follows a prompt; "
            "leave it out"
        )


def require_image_dropout(card: Card, image_guidance: float, has_images: bool = True) -> None:
    """Raise UsageError on image guidance that a checkpoint cannot follow, or without an image."""
    if image_guidance == 1.0:
        return
    if not card.image_dropout:
        raise UsageError(
            f"image_guidance {image_guidance:g}: the checkpoint was trained without flow.image_dropout; leave it out"
        )
    if not has_images:
        raise UsageError(f"image_guidance {image_guidance:g}: there is no image to follow; give one or leave it out")


def texture_meshes(
    meshes: Sequence[PreparedMesh],
    network: Checkpoint,
    cfg: SamplerConfig,
    *,
    device: torch.device | str = "cpu",
    offload: bool = False,
    progress: Callable[[int], None] = lambda step: None,
) -> list[MeshTexture]:
    """Texture a batch of meshes that give the same views; options: see `training.diffusion.sampler.sample`."""
    results = sample(
        network.model,
        network.codec,
        network.text_encoder,
        [one.input for one in meshes],
        cfg,
        shift=network.card.shift,
        extras=Extensions.of(network.model.config),
        device=device,
        offload=offload,
        progress=progress,
    )
    textures = []
    for one, result in zip(meshes, results, strict=True):
        assert result.uv is not None
        prepared = {f.name: getattr(one, f.name) for f in fields(one)}
        textures.append(MeshTexture(**prepared, views=result.views, uv=result.uv, maps=result.maps))
    return textures
