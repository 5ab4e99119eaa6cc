"""UV maps of a mesh: the source's colour, position and normal, laid out in texture space."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32

from geometry.raster import Fragments, Rasterizer
from geometry.texture import average_samples, dilate, encode_srgb8, surface_color
from pipeline.render import RenderConfig, interpolate_geometry, psnr_db, render_baked
from schemas.camera import Cameras
from schemas.errors import require_between
from schemas.mesh import TexturedMesh, UvMesh
from schemas.sample import UvMaps, Views


@dataclass(frozen=True, kw_only=True)
class BakeConfig:
    """How UV maps are made."""

    resolution: int = 1024
    """Height and width of a map, texels (paper)."""
    supersample: int = 2
    """Colour samples per texel along each axis (ours)."""

    def __post_init__(self) -> None:
        require_between("uv.resolution", self.resolution, 1, 8192)
        require_between("uv.supersample", self.supersample, 1, 8)


def bake_uv(mesh: TexturedMesh, uv_mesh: UvMesh, cfg: BakeConfig, rasterizer: Rasterizer) -> UvMaps:
    """Maps of `uv_mesh`, coloured by the mesh it came from (same faces, same corners). Alpha does not cut holes."""
    if mesh.faces.shape != uv_mesh.faces.shape:
        raise ValueError(f"{len(uv_mesh.faces)} unwrapped faces for a mesh of {len(mesh.faces)}: they must correspond")
    centre = rasterize_layout(uv_mesh, cfg.resolution, rasterizer)
    mask = centre.face >= 0
    position, normal = interpolate_geometry(centre, uv_mesh, rasterizer)
    samples = rasterize_layout(uv_mesh, cfg.resolution * cfg.supersample, rasterizer)
    color, covered = average_samples(surface_color(mesh, samples), samples.face >= 0, cfg.supersample)
    # Samples lie off the centre: where none is covered but the centre is, its own colour counts.
    missed = mask & ~covered
    only_missed = replace(centre, face=np.where(missed, centre.face, np.int32(-1)))
    color += surface_color(mesh, only_missed)[..., :3]
    rgb = encode_srgb8(dilate(color[0], (mask | covered)[0]))
    return UvMaps(rgb=rgb, mask=mask[0], position=position[0], normal=normal[0])


def bake_geometry(
    uv_mesh: UvMesh, resolution: int, rasterizer: Rasterizer
) -> tuple[
    Float32[np.ndarray, "height width 3"], Float32[np.ndarray, "height width 3"], Bool[np.ndarray, "height width"]
]:
    """Position, unit normal and mask at texel centres."""
    fragments = rasterize_layout(uv_mesh, resolution, rasterizer)
    position, normal = interpolate_geometry(fragments, uv_mesh, rasterizer)
    return position[0], normal[0], fragments.face[0] >= 0


def rasterize_layout(uv_mesh: UvMesh, resolution: int, rasterizer: Rasterizer) -> Fragments:
    """The UV layout as an image, row 0 = v 1. Where charts overlap the lowest face is seen."""
    u, v = uv_mesh.uv[:, 0], uv_mesh.uv[:, 1]
    clip = np.stack([2.0 * u - 1.0, 1.0 - 2.0 * v, np.zeros_like(u), np.ones_like(u)], axis=-1)
    return rasterizer.rasterize(clip[None].astype(np.float32), uv_mesh.faces, resolution, resolution)


def round_trip_psnr(
    views: Views, uv_mesh: UvMesh, maps: UvMaps, cameras: Cameras, cfg: RenderConfig, rasterizer: Rasterizer
) -> float:
    """How well views from the baked map reproduce views of the source, dB over the pixels covered in the views."""
    return psnr_db(views.rgb, render_baked(uv_mesh, maps.rgb, cameras, cfg, rasterizer).rgb, views.mask)
