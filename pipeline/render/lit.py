"""Lit views: the same pictures under light, as an extra field beside the unlit ones."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8

from geometry.cameras import project
from geometry.raster import Rasterizer
from geometry.shading import Light, eyes_of, pack_shading, shade
from geometry.texture import average_samples, encode_srgb8, pack_surface, visible_surface
from pipeline.blender.host import BlenderConfig
from pipeline.render.cycles import LIGHT, render_cycles
from pipeline.render.views import RenderConfig
from schemas.ledger import Rejected
from schemas.mesh import TexturedMesh
from schemas.sample import Cameras, Views


def render_lit(
    mesh: TexturedMesh, cameras: Cameras, cfg: RenderConfig, rasterizer: Rasterizer, light: Light | None = None
) -> UInt8[np.ndarray, "views height width 3"]:
    """Views of a mesh under light (the default one unless given), sRGB, clipped at white, over black: mean of the
    covered samples of each pixel whose centre is covered. Colour and cut-outs come from the same look-up as unlit."""
    light = light or Light()
    surface, shading, eyes = pack_surface(mesh), pack_shading(mesh), eyes_of(cameras)
    clip = project(mesh.vertices, cameras.world_to_clip)
    out = np.empty((len(clip), cfg.resolution, cfg.resolution, 3), np.uint8)
    for view in range(len(clip)):  # one at a time: samples take much more memory than pixels
        one = clip[view : view + 1]
        means = []
        for scale in dict.fromkeys((1, cfg.supersample)):
            size = cfg.resolution * scale
            fragments, color = visible_surface(surface, one, size, size, rasterizer)
            color[..., :3] = shade(mesh, shading, fragments, one, color, eyes[view : view + 1], light)
            means.append(average_samples(np.minimum(color, np.float32(1.0)), fragments.face >= 0, scale))
        (centre, mask), (mean, covered) = means[0], means[-1]
        out[view] = encode_srgb8(np.where(covered[0, ..., None], mean[0], centre[0]) * mask[0, ..., None])
    return out


@dataclass(frozen=True, slots=True, kw_only=True)
class LitViews:
    """Views under light, and which light."""

    images: UInt8[np.ndarray, "views height width 3"] | None
    """Views under light, sRGB; None where none were asked for."""
    shading: dict[str, Any]
    """The `shading` entry of a sample's JSON."""


def light_views(
    mesh: TexturedMesh,
    cameras: Cameras,
    views: Views,
    cfg: RenderConfig,
    blender: BlenderConfig,
    rasterizer: Rasterizer,
    seed: int,
) -> LitViews | Rejected:
    """The lit views that `cfg` asks for, 0 outside the mask of the unlit ones. `seed`: of the path tracer's noise."""
    if cfg.lit == "none":
        return LitViews(images=None, shading={})
    if cfg.lit == "pbr":
        shading: dict[str, Any] = {"renderer": "pbr", "light": asdict(Light()), "tone_mapping": "none"}
        return LitViews(images=render_lit(mesh, cameras, cfg, rasterizer), shading=shading)
    images = render_cycles(mesh, cameras, cfg.resolution, blender, seed)
    if isinstance(images, Rejected):
        return images
    shading = {"renderer": "cycles", "light": LIGHT, "samples": blender.samples, "tone_mapping": "none"}
    return LitViews(images=images[..., :3] * views.mask[..., None], shading=shading)
