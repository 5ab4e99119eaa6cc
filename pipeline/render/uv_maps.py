"""UV maps of a mesh: the source's colour, position and normal, laid out in texture space."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int32, Int64

from geometry.gutter import dilate
from geometry.image_metrics import compare_pixels
from geometry.mesh import corner_vectors
from geometry.raster import Fragments, Rasterizer
from geometry.texture import PackedSurface, encode_srgb8, pack_surface, surface_color, texel_color
from pipeline.render.views import RenderConfig, Sight, interpolate_geometry, render_colors, wear
from schemas.errors import require_between
from schemas.mesh import TexturedMesh, UvMesh
from schemas.sample import Cameras, UvMaps, Views

OFF_LEVELS = 8
"""A pixel is off when a channel differs by more than this, of 255."""


@dataclass(frozen=True, kw_only=True)
class BakeConfig:
    """Options of baking UV maps."""

    resolution: int = 1024
    """Height and width of a map, texels (paper)."""
    supersample: int = 2
    """Samples per texel along each axis where it lies on a chart's border (ours); inside, its colour is the mean of the
    source over the texel."""

    def __post_init__(self) -> None:
        require_between("uv.resolution", self.resolution, 1, 8192)
        require_between("uv.supersample", self.supersample, 1, 8)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTrip:
    """The accuracy with which views from a baked map reproduce views of the source, over the pixels that either
    covers."""

    psnr_db: float
    off_share: float
    """Share of pixels of which a channel differs by more than 8/255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Texels:
    """The faces that the texels of a layout show."""

    clip: Float32[np.ndarray, "n 4"]
    """Corners of the layout."""
    centre: Fragments
    """At texel centres, one image."""
    samples: Int32[np.ndarray, "1 height_s width_s"]
    """At the samples of texels (`Rasterizer.sides`)."""


def find_texels(uv_mesh: UvMesh, cfg: BakeConfig, rasterizer: Rasterizer) -> Texels:
    """Find the faces that the texels of a layout show."""
    clip, size = layout_clip(uv_mesh), cfg.resolution * cfg.supersample
    return Texels(
        clip=clip,
        centre=rasterize_layout(uv_mesh, cfg.resolution, rasterizer),
        samples=rasterizer.sides(clip[None], uv_mesh.faces, size, size),
    )


def layer_texels(
    surface: PackedSurface, uv_mesh: UvMesh, texels: Texels
) -> Float32[np.ndarray, "height width channels"]:
    """Linear colour of every texel (`texel_color`), dilated beyond what faces cover."""
    values, known, seen = texel_color(surface, texels.clip, uv_mesh.faces, texels.centre, texels.samples)
    if not seen.all():
        place_unseen(values, known, np.flatnonzero(~seen), surface, uv_mesh)
    return dilate(values, known)


def bake_uv(
    mesh: TexturedMesh,
    uv_mesh: UvMesh,
    cfg: BakeConfig,
    rasterizer: Rasterizer,
    surface: PackedSurface | None = None,
    texels: Texels | None = None,
) -> UvMaps:
    """Maps of `uv_mesh`, coloured by the mesh it came from (same faces, same corners). Alpha cuts no holes into them:
    it is a map of its own. `surface`: the mesh, packed already; `texels`: what the layout shows, if that is known."""
    if mesh.faces.shape != uv_mesh.faces.shape:
        raise ValueError(f"{len(uv_mesh.faces)} unwrapped faces for a mesh of {len(mesh.faces)}: they must correspond")
    surface = surface or pack_surface(mesh)
    texels = texels or find_texels(uv_mesh, cfg, rasterizer)
    values = layer_texels(surface, uv_mesh, texels)
    position, normal = interpolate_geometry(texels.centre, uv_mesh)
    return UvMaps(
        rgb=encode_srgb8(np.ascontiguousarray(values[..., :3])),
        mask=texels.centre.face[0] >= 0,
        position=position[0],
        normal=normal[0],
        opacity=np.rint(values[..., 3] * 255).astype(np.uint8) if surface.has_holes() else None,
    )


def place_unseen(
    values: Float32[np.ndarray, "height width channels"],
    known: Bool[np.ndarray, "height width"],
    faces: Int64[np.ndarray, " n"],
    surface: PackedSurface,
    uv_mesh: UvMesh,
) -> None:
    """Give faces so thin or small that they met no sample the texels that they lie in, where those are still free:
    otherwise the next chart's colour would be theirs. Writes to `values` and `known`."""
    face, bary = points_along(faces, uv_mesh, len(known))
    weights = np.concatenate([bary, 1 - bary.sum(axis=1, keepdims=True)], axis=1)
    uv = np.einsum("nc,ncd->nd", weights, uv_mesh.uv[uv_mesh.faces[face]])
    height, width = known.shape
    column = np.clip((uv[:, 0] * width).astype(np.int64), 0, width - 1)
    row = np.clip(((1 - uv[:, 1]) * height).astype(np.int64), 0, height - 1)
    free = ~known[row, column]
    face, bary, texel = face[free], bary[free], (row * width + column)[free]
    points = Fragments(
        face=face.astype(np.int32)[None, None],
        bary=bary.astype(np.float32)[None, None],
        depth=np.zeros((1, 1, len(face)), np.float32),
    )
    color = surface_color(surface, points)[0, 0, :, : values.shape[2]]
    total = np.bincount(texel, minlength=known.size)
    filled = np.flatnonzero(total)
    for channel in range(values.shape[2]):
        sums = np.bincount(texel, weights=color[:, channel], minlength=known.size)
        values.reshape(-1, values.shape[2])[filled, channel] = sums[filled] / total[filled]
    known.reshape(-1)[filled] = True


def points_along(
    faces: Int64[np.ndarray, " n"], uv_mesh: UvMesh, resolution: int
) -> tuple[Int64[np.ndarray, " points"], Float32[np.ndarray, "points 2"]]:
    """Points a texel apart on the median over the shortest side of each face in the layout: face and weights of its
    corners 0 and 1. Faces without area in space, which nobody sees, and those without a place get none."""
    corners = uv_mesh.vertices[uv_mesh.faces[faces]].astype(np.float64)
    area = np.linalg.norm(corner_vectors(corners), axis=1)
    uv = uv_mesh.uv[uv_mesh.faces[faces]].astype(np.float64)
    real = (area > 0) & np.isfinite(uv).all(axis=(1, 2))
    faces, uv = faces[real], uv[real]
    sides = np.linalg.norm(np.roll(uv, -1, axis=1) - np.roll(uv, -2, axis=1), axis=2)  # opposite corner 0, 1, 2
    apex = sides.argmin(axis=1)
    far = np.eye(3)[apex]
    near = (1 - far) / 2
    length = np.linalg.norm(np.einsum("nc,ncd->nd", far - near, uv), axis=1)
    count = np.ceil(length * resolution).astype(np.int64) + 1
    owner = np.repeat(np.arange(len(faces)), count)
    place = (np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count) + 0.5) / count[owner]
    weights = far[owner] * (1 - place[:, None]) + near[owner] * place[:, None]
    return faces[owner], weights[:, :2].astype(np.float32)


def bake_geometry(
    uv_mesh: UvMesh, resolution: int, rasterizer: Rasterizer
) -> tuple[
    Float32[np.ndarray, "height width 3"], Float32[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]
]:
    """Position, unit normal and mask at texel centres."""
    fragments = rasterize_layout(uv_mesh, resolution, rasterizer)
    position, normal = interpolate_geometry(fragments, uv_mesh)
    return position[0], normal[0], fragments.face[0] >= 0


def layout_clip(uv_mesh: UvMesh) -> Float32[np.ndarray, "n 4"]:
    """The UV layout as clip coordinates: v = 1 at the top."""
    clip = np.empty((len(uv_mesh.uv), 4), np.float32)
    clip[:, 0], clip[:, 1] = 2.0 * uv_mesh.uv[:, 0] - 1.0, 1.0 - 2.0 * uv_mesh.uv[:, 1]
    clip[:, 2], clip[:, 3] = 0.0, 1.0
    return clip


def rasterize_layout(uv_mesh: UvMesh, resolution: int, rasterizer: Rasterizer) -> Fragments:
    """The UV layout as an image, row 0 = v 1. Where charts overlap the lowest face is seen."""
    return rasterizer.rasterize(layout_clip(uv_mesh)[None], uv_mesh.faces, resolution, resolution)


def same_places(mesh: TexturedMesh, uv_mesh: UvMesh) -> bool:
    """Return whether every face of an unwrapped mesh lies exactly where that of its source does. Only then do views
    show the same faces of both, which spares the proof of a map to find them again."""
    return np.array_equal(uv_mesh.vertices[uv_mesh.faces], mesh.vertices[mesh.faces])


def round_trip(
    views: Views,
    uv_mesh: UvMesh,
    maps: UvMaps,
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    sight: Sight | None = None,
) -> RoundTrip:
    """Views from the baked map against views of the source. `sight`: what the latter show, if it is at hand."""
    rgb, mask = render_colors(wear(uv_mesh, maps.rgb, maps.opacity), cameras, cfg, rasterizer, sight)
    psnr_db, off_share = compare_pixels(views.rgb, rgb, views.mask | mask, OFF_LEVELS)
    return RoundTrip(psnr_db=psnr_db, off_share=off_share)
