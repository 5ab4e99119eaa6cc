"""Views of a mesh: unlit colour, position and normal as the cameras see them."""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int32, UInt8

from geometry.cameras import RigConfig, project, rig_cameras
from geometry.frames import bounding_box
from geometry.kernels.average import coverage_rows
from geometry.kernels.interpolate import surface_rows
from geometry.mesh import unit_normals
from geometry.raster import Fragments, Rasterizer
from geometry.texture import (
    PackedSurface,
    average_samples,
    encode_pixels8,
    pack_surface,
    pixel_color,
    surface_color,
    visible_fragments,
    visible_surface,
)
from schemas.errors import require_between
from schemas.images import MAX_PIXELS, MAX_SIDE
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh, UvMesh, Wrap
from schemas.sample import Cameras, Views

SHORTEST_NORMAL = 1e-6
"""Interpolated normals below this length have cancelled out and point nowhere."""
AMBIENT = 0.45
"""Light on a surface of `small_picture` that is seen edge-on; one that faces the camera has 1."""
MAX_KEPT_SAMPLES = 1 << 24
"""Samples of views that are kept for the round trip, 4 bytes each; those of the paper's views are a quarter."""


@dataclass(frozen=True, kw_only=True)
class RenderConfig:
    """Options of rendering views."""

    resolution: int = 512
    """Height and width of a view, pixels (paper)."""
    supersample: int = 2
    """Samples per pixel along each axis, of colour and coverage (ours: 2 x 2, so coverage has 5 levels); masks,
    positions and normals are taken at pixel centres."""
    lit: Literal["none", "pbr", "cycles"] = "none"
    """Views under light that samples hold beside those of unlit base colour: `pbr` is glTF's metallic-roughness model
    under sky, ground and a lamp, without shadows; `cycles` is path tracing by Blender."""

    def __post_init__(self) -> None:
        require_between("views.resolution", self.resolution, 1, MAX_SIDE)
        require_between("views.supersample", self.supersample, 1, 8)


def require_views_fit(num_views: int, resolution: int) -> None:
    """Raises UsageError where the views of a sample, one below the other, are more than an image can hold."""
    highest = min(MAX_SIDE // num_views, math.isqrt(MAX_PIXELS // num_views))
    require_between(f"views.resolution of {num_views} views", resolution, 1, highest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """The parts of a mesh that its views show, whatever colours it wears."""

    centres: Fragments
    """At pixel centres."""
    samples: Int32[np.ndarray, "views height_s width_s"] | None = None
    """At the samples of pixels (`Rasterizer.sides`); None where colour decides what they show, or for one sample."""


def see(
    mesh: TexturedMesh, surface: PackedSurface, cameras: Cameras, cfg: RenderConfig, rasterizer: Rasterizer
) -> Sight:
    """Find what the views of a mesh show. Samples are found as they are needed where they would take too much memory to
    keep."""
    clip = project(mesh.vertices, cameras.world_to_clip)
    centres = visible_fragments(surface, clip, cfg.resolution, cfg.resolution, rasterizer)
    size = cfg.resolution * cfg.supersample
    if cfg.supersample == 1 or surface.has_holes() or len(clip) * size * size > MAX_KEPT_SAMPLES:
        return Sight(centres=centres)
    return Sight(centres=centres, samples=rasterizer.sides(clip, surface.faces, size, size, surface.single_sided))


def render_views(
    mesh: TexturedMesh,
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    surface: PackedSurface | None = None,
    sight: Sight | None = None,
) -> Views:
    """Views of a mesh in the dataset frame. Single-sided faces are not seen from behind. `surface`: the mesh, packed
    already; `sight`: what its views show, if that is known."""
    surface = surface or pack_surface(mesh)
    sight = sight or see(mesh, surface, cameras, cfg, rasterizer)
    mask = sight.centres.face >= 0
    position, normal = interpolate_geometry(sight.centres, mesh)
    coverage = np.empty(mask.shape, np.uint8)
    rgb = view_colors(surface, project(mesh.vertices, cameras.world_to_clip), sight, cfg, rasterizer, coverage)
    return Views(
        rgb=encode_pixels8(rgb, mask),
        mask=mask,
        coverage=coverage,
        position=position,
        normal=normal,
    )


def view_colors(
    surface: PackedSurface,
    clip: Float32[np.ndarray, "views vertices 4"],
    sight: Sight,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    coverage: UInt8[np.ndarray, "views height width"] | None = None,
) -> Float32[np.ndarray, "views height width 3"]:
    """Linear colour of the views, mean of the covered samples of each pixel (its centre's where none is covered). The
    share of those samples is written to `coverage`."""
    mask = sight.centres.face >= 0
    if cfg.supersample == 1:
        if coverage is not None:
            coverage[:] = np.where(mask, np.uint8(255), np.uint8(0))
        return surface_color(surface, sight.centres, clip)[..., :3]
    rgb = np.empty((*mask.shape, 3), np.float32)
    size, samples_each = cfg.resolution * cfg.supersample, cfg.supersample**2
    shares = ((np.arange(samples_each + 1) * 510 + samples_each) // (2 * samples_each)).astype(np.uint8)
    for view in range(len(clip)):  # one at a time: samples take cfg.supersample^2 times the memory
        corners, centre = clip[view : view + 1], one_image(sight.centres, view)
        if surface.has_holes():
            samples, color = visible_surface(surface, corners, size, size, rasterizer)
            sides = samples.face
            mean, covered = average_samples(color, sides >= 0, cfg.supersample)
            missed = replace(centre, face=np.where(mask[view] & ~covered, centre.face, np.int32(-1)))
            rgb[view] = (mean + surface_color(surface, missed, corners)[..., :3])[0]
        else:
            known = sight.samples
            if known is None:
                sides = rasterizer.sides(corners, surface.faces, size, size, surface.single_sided)
            else:
                sides = known[view : view + 1]
            pixel_color(surface, centre, sides, corners, rgb[view : view + 1])
        if coverage is not None:
            coverage_rows(sides[0], mask[view], cfg.supersample, shares, coverage[view])
    return rgb


def one_image(fragments: Fragments, image: int) -> Fragments:
    part = slice(image, image + 1)
    return Fragments(face=fragments.face[part], bary=fragments.bary[part], depth=fragments.depth[part])


def render_baked(
    uv_mesh: UvMesh,
    rgb: UInt8[np.ndarray, "height width 3"],
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    opacity: UInt8[np.ndarray, "height width"] | None = None,
) -> Views:
    """Views of a mesh that wears a baked map (sRGB, row 0 = v 1), cut out where its opacity is below one half."""
    return render_views(wear(uv_mesh, rgb, opacity), cameras, cfg, rasterizer)


def render_colors(
    mesh: TexturedMesh,
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    sight: Sight | None = None,
) -> tuple[UInt8[np.ndarray, "views height width 3"], Bool[np.ndarray, "views height width"]]:
    """Render colour and mask of `render_views` alone. `sight`: that of any mesh with the same faces in the same places;
    it is used where there are no holes."""
    surface = pack_surface(mesh)
    if sight is None or surface.has_holes():
        sight = see(mesh, surface, cameras, cfg, rasterizer)
    rgb = view_colors(surface, project(mesh.vertices, cameras.world_to_clip), sight, cfg, rasterizer)
    mask = sight.centres.face >= 0
    return encode_pixels8(rgb, mask), mask


def wear(
    uv_mesh: UvMesh,
    rgb: UInt8[np.ndarray, "height width 3"],
    opacity: UInt8[np.ndarray, "height width"] | None = None,
) -> TexturedMesh:
    """An unwrapped mesh with one texture: opaque, or cut out where its opacity is below one half."""
    image = np.empty((*rgb.shape[:2], 4), np.uint8)
    mode = AlphaMode.OPAQUE if opacity is None else AlphaMode.MASK
    single = np.zeros(len(uv_mesh.faces), bool) if uv_mesh.single_sided is None else uv_mesh.single_sided
    for channel in range(3):  # one by one: a third of the time
        image[..., channel] = rgb[..., channel]
    image[..., 3] = 255 if opacity is None else opacity
    return TexturedMesh(
        vertices=uv_mesh.vertices,
        normals=uv_mesh.normals,
        uv=uv_mesh.uv,
        colors=np.ones((len(uv_mesh.vertices), 4), np.float32),
        faces=uv_mesh.faces,
        face_material=single.astype(np.int32),
        face_has_uv=np.ones(len(uv_mesh.faces), bool),
        materials=tuple(Material(texture=0, alpha_mode=mode, double_sided=both) for both in (True, False)),
        textures=(Texture(image=image, wrap_u=Wrap.CLAMP, wrap_v=Wrap.CLAMP),),
    )


def small_picture(
    mesh: TexturedMesh, surface: PackedSurface, rig: RigConfig, side: int, rasterizer: Rasterizer
) -> UInt8[np.ndarray, "side side 4"]:
    """Draw a mesh in the dataset frame as the first camera of a rig sees it: sRGB and coverage. Light from the camera
    gives shape to a mesh of one colour, which unlit views show as a blot."""
    cameras = rig_cameras(replace(rig, jitter_azimuth_deg=0.0, jitter_elevation_deg=0.0, jitter_fov_deg=0.0),
                          *bounding_box(mesh.vertices, mesh.faces))  # fmt: skip
    first = Cameras(world_to_cam=cameras.world_to_cam[:1], projection=cameras.projection[:1])
    views = render_views(mesh, first, RenderConfig(resolution=side), rasterizer, surface)
    towards = np.linalg.inv(first.world_to_cam[0].astype(np.float64))[:3, 2]
    light = AMBIENT + (1 - AMBIENT) * np.abs(views.normal[0] @ towards.astype(np.float32))
    rgb = np.rint(views.rgb[0] * light[..., None]).astype(np.uint8)
    return np.dstack([rgb, np.where(views.mask[0], np.maximum(views.coverage[0], 1), 0).astype(np.uint8)])


def render_geometry(
    mesh: TexturedMesh | UvMesh, cameras: Cameras, resolution: int, rasterizer: Rasterizer
) -> tuple[
    Float32[np.ndarray, "views height width 3"],
    Float32[np.ndarray, "views height width 3"],
    Bool[np.ndarray, "views height width"],
]:
    """Position, unit normal and mask at pixel centres of a mesh whose every face is opaque, seen as its sides are."""
    clip = project(mesh.vertices, cameras.world_to_clip)
    fragments = rasterizer.rasterize(clip, mesh.faces, resolution, resolution, single_sided=mesh.single_sided)
    position, normal = interpolate_geometry(fragments, mesh)
    return position, normal, fragments.face >= 0


def interpolate_geometry(
    fragments: Fragments, mesh: TexturedMesh | UvMesh
) -> tuple[Float32[np.ndarray, "images height width 3"], Float32[np.ndarray, "images height width 3"]]:
    """Position and unit normal at every fragment, 0 elsewhere. Where vertex normals cancel out: the face's own."""
    position, normal = np.empty((2, *fragments.face.shape, 3), np.float32)
    lost = np.empty(fragments.face.shape, bool)
    for image in range(len(lost)):
        surface_rows(
            fragments.face[image], fragments.bary[image], mesh.faces, mesh.vertices, mesh.normals, SHORTEST_NORMAL,
            position[image], normal[image], lost[image],
        )  # fmt: skip
    if lost.any():
        normal[lost] = unit_normals(mesh.vertices[mesh.faces[fragments.face[lost]]])
    return position, normal
