"""One item of the image layout as multi-view images: colours, depths and normals of a renderer, in the dataset frame.

Depth is distance along the camera's axis, normals are in world space (older renders: in the camera's) mapped from
[-1, 1] to [0, 1], colours are sRGB with straight alpha. Everything is untrusted: sizes are checked before pixels are
decoded, and no path comes from what is read."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from geometry.frames import Frame
from geometry.texture import encode_srgb8, srgb_to_linear
from pipeline.mesh_io.gltf.json_fields import parse_json
from pipeline.mesh_io.image_header import image_size
from pipeline.mesh_io.images import decode_image
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.references import read_limited
from pipeline.seqtex_layouts.cameras import MAX_VIEWS, Pose, read_poses, to_cameras
from pipeline.seqtex_layouts.consistency import check_depths, world_normals
from pipeline.seqtex_layouts.exr import read_depth
from schemas.errors import require_between
from schemas.images import MAX_SIDE as MAX_STRIP
from schemas.ledger import Reason, Rejected
from schemas.mesh import Texture, TexturedMesh
from schemas.sample import Cameras, Views

COLOR_NAMES = ("color", "render")
"""Prefixes of colour files: SeqTex's name, and the renderer's own."""
MAX_SIDE = 4096
"""Pixels."""
MAX_META_BYTES = 4 << 20
MAX_IMAGE_BYTES = 128 << 20
MAX_DEPTH_BYTES = 512 << 20
NORMALISED_SIDE = 1.0
"""Largest side of a scene that the renderer has normalised (its scripts' own setting), centred at the origin."""
MIN_FILL = 0.9
"""Share of that side that the seen points must fill to take the scene for a normalised one."""
SAME_SURFACE = 1.01
"""Samples of one pixel that are this much farther than the nearest one belong to something behind it."""


@dataclass(frozen=True, kw_only=True)
class RendersConfig:
    """Options of making samples from renders of the image layout."""

    views: tuple[int, ...] = ()
    """Views of an item that are taken, by place in its meta.json; none given: all. Samples that are trained
    together need one number of views: `[0, 2, 3, 4]` of the public six-view script are front and quarter turns."""

    def __post_init__(self) -> None:
        for number in self.views:
            require_between("renders.views", number, 0, MAX_VIEWS - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One view at the resolution wanted."""

    rgb: UInt8[np.ndarray, "h w 3"]
    alpha: UInt8[np.ndarray, "h w"]
    depth: Float32[np.ndarray, "h w"]
    """0 outside the mask."""
    normal: Float32[np.ndarray, "h w 3"]
    """Normals as stored, unit length."""
    mask: Bool[np.ndarray, "h w"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderedViews:
    """An item in the dataset frame."""

    views: Views
    cameras: Cameras
    frame: Frame


def read_renders(meta_path: Path, cfg: RendersConfig, resolution: int) -> RenderedViews | Rejected:
    """The views of an item, or why it cannot be used."""
    try:
        return _read(meta_path, cfg, resolution)
    except AssetError as error:
        return error.rejected


def _read(meta_path: Path, cfg: RendersConfig, resolution: int) -> RenderedViews:
    meta = parse_json(read_limited(meta_path, "meta.json", MAX_META_BYTES), MAX_META_BYTES, max_depth=16)
    poses = read_poses(meta)
    if cfg.views:
        if max(cfg.views) >= len(poses):
            raise AssetError(Reason.INVALID_STRUCTURE, f"meta.json has {len(poses)} views, wanted {list(cfg.views)}")
        poses = [poses[number] for number in cfg.views]
    if len(poses) * resolution > MAX_STRIP:
        detail = f"{len(poses)} views of {resolution} pixels, together at most {MAX_STRIP}; take fewer: --renders.views"
        raise AssetError(Reason.TOO_LARGE, detail)
    pictures = [_read_picture(meta_path.parent, pose, resolution) for pose in poses]
    points = [pose.unproject(picture.depth) for pose, picture in zip(poses, pictures, strict=True)]
    masks = np.stack([picture.mask for picture in pictures])
    if not masks.any():
        raise AssetError(Reason.BARELY_VISIBLE, "no pixel of any view shows anything")
    frame = _frame(np.concatenate([p[picture.mask] for p, picture in zip(points, pictures, strict=True)]))
    position = ((np.stack(points) - frame.center) * frame.scale * masks[..., None]).astype(np.float32)
    cameras = to_cameras(poses, frame)
    check_depths(position, masks, cameras)
    normal = world_normals(np.stack([picture.normal for picture in pictures]), position, masks, cameras)
    rgb = np.stack([picture.rgb for picture in pictures]) * masks[..., None]
    views = Views(
        rgb=rgb,
        mask=masks,
        coverage=np.stack([picture.alpha for picture in pictures]),
        position=position,
        normal=normal * masks[..., None],
    )
    return RenderedViews(views=views, cameras=cameras, frame=frame)


# one view


def _read_picture(folder: Path, pose: Pose, resolution: int) -> Picture:
    candidates = [folder / f"{name}_{pose.index}.webp" for name in COLOR_NAMES]
    color_path = next((path for path in candidates if path.is_file()), candidates[0])
    color = read_limited(color_path, "colour", MAX_IMAGE_BYTES)
    size = image_size(color, color_path.name)
    if size[0] != size[1] or size[0] > MAX_SIDE or size[0] % resolution:
        detail = f"{color_path.name} is {size[0]} x {size[1]} pixels; views of {resolution} (--views.resolution) are "
        detail += f"made from squares that it divides, up to {MAX_SIDE}"
        raise AssetError(Reason.BAD_IMAGE, detail)
    normal_path, depth_path = folder / f"normal_{pose.index}.webp", folder / f"depth_{pose.index}.exr"
    normal = read_limited(normal_path, "normals", MAX_IMAGE_BYTES)
    if (found := image_size(normal, normal_path.name)) != size:
        detail = f"{normal_path.name}: {found[0]} x {found[1]} pixels, the colours {size[0]} x {size[1]}"
        raise AssetError(Reason.BAD_IMAGE, detail)
    read_limited(depth_path, "depth", MAX_DEPTH_BYTES)
    rgba = decode_image(color, color_path.name)
    vectors = decode_image(normal, normal_path.name)[..., :3].astype(np.float32) / np.float32(127.5) - 1
    depth = read_depth(depth_path, size)
    length = np.linalg.norm(vectors, axis=-1)
    mask = (depth > 0) & (rgba[..., 3] > 0) & (length > 0.5)
    full = Picture(
        rgb=rgba[..., :3],
        alpha=rgba[..., 3],
        depth=depth * mask,
        normal=vectors / np.maximum(length, 1e-6)[..., None],
        mask=mask,
    )
    factor = size[0] // resolution
    return full if factor == 1 else reduce(full, factor, pose.perspective)


def reduce(picture: Picture, factor: int, perspective: bool) -> Picture:
    """A view at `1 / factor` of its size. Colour: mean in linear light by alpha. Depth and normal: those at the new
    pixel's centre, from the one sample there or the four around it, as far as they lie on the nearest surface."""
    middle = (factor // 2,) if factor % 2 else (factor // 2 - 1, factor // 2)
    samples = [(row, column) for row in middle for column in middle]
    depth = np.stack([picture.depth[r::factor, c::factor] for r, c in samples])
    normal = np.stack([picture.normal[r::factor, c::factor] for r, c in samples])
    nearest = np.where(depth > 0, depth, np.inf).min(axis=0)
    used = (depth > 0) & (depth <= nearest * SAME_SURFACE)
    mask = 2 * (depth > 0).sum(axis=0) >= len(samples)
    count = np.maximum(used.sum(axis=0), 1)
    # over a plane, 1 / depth is what changes evenly from pixel to pixel under perspective
    value = np.where(used, 1 / np.maximum(depth, 1e-12) if perspective else depth, 0).sum(axis=0) / count
    mean_normal = (normal * used[..., None]).sum(axis=0)
    length = np.linalg.norm(mean_normal, axis=-1)
    mask &= length > 0.5
    mean_depth = 1 / np.maximum(value, 1e-12) if perspective else value
    blocks = (len(mask), factor, len(mask), factor)
    alpha = picture.alpha.astype(np.float32).reshape(blocks)
    linear = srgb_to_linear(picture.rgb.astype(np.float32) / 255).reshape(*blocks, 3) * alpha[..., None]
    weight = alpha.sum(axis=(1, 3))
    return Picture(
        rgb=encode_srgb8(linear.sum(axis=(1, 3)) / np.maximum(weight, 1)[..., None]),
        alpha=np.rint(weight / factor**2).astype(np.uint8),
        depth=(mean_depth * mask).astype(np.float32),
        normal=(mean_normal / np.maximum(length, 1e-6)[..., None]).astype(np.float32),
        mask=mask,
    )


# all views together


def _frame(points: Float64[np.ndarray, "n 3"]) -> Frame:
    """The way to the dataset frame. Where the renderer has normalised the scene, its own box counts, since the views
    may not show all of it; else the box around what is seen."""
    lower, upper = points.min(axis=0), points.max(axis=0)
    side = float((upper - lower).max())
    half = NORMALISED_SIDE / 2
    if np.abs(points).max() <= half * 1.001 and side >= MIN_FILL * NORMALISED_SIDE:
        return Frame(center=np.zeros(3), scale=2 / max(NORMALISED_SIDE, 2 * float(np.abs(points).max())))
    if not (np.isfinite(side) and side > 1e-6):
        raise AssetError(Reason.DEGENERATE, f"the largest side of what is seen is {side}")
    return Frame(center=(lower + upper) / 2, scale=2 / side)


def wear_jpeg(mesh: TexturedMesh, path: Path, cfg: PreflightConfig) -> TexturedMesh | Rejected:
    """The mesh with the image as base colour; unchanged where it has a texture of its own, or there is no image."""
    if any(material.texture is not None for material in mesh.materials) or not path.is_file():
        return mesh
    try:
        data = read_limited(path, "texture", cfg.max_file_bytes)
        width, height = image_size(data, path.name)
        if 4 * width * height > cfg.max_image_bytes:
            detail = f"{path.name} is {width} x {height} pixels, limit {cfg.max_image_bytes:,} bytes decoded"
            raise AssetError(Reason.TOO_LARGE, detail)
        image = decode_image(data, path.name)
    except AssetError as error:
        return error.rejected
    slot = len(mesh.textures)
    materials = tuple(
        replace(material, texture=slot, base_color=(1.0, 1.0, 1.0, material.base_color[3]))
        for material in mesh.materials
    )
    return replace(mesh, materials=materials, textures=(*mesh.textures, Texture(image=image)))
