"""Pictures of the materials of a sample: each channel in the views of source and baked map, its error, and its maps."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from geometry.mesh import mikktspace
from geometry.raster_cpu import CpuRasterizer
from pipeline.render.materials import baked_materials
from pipeline.render.views import RenderConfig
from pipeline.report.images import ERROR_LEVELS, as_rgb
from schemas.sample import MaterialMaps, MaterialViews, TextureSample

NORMAL_ERROR_DEG = 16.0
"""Angle between normals from which the colour of an error stays the same; `sample.js` shows it beside the legend."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """The views of one channel, sRGB as they are shown."""

    name: str
    source: UInt8[np.ndarray, "views h w 3"]
    baked: UInt8[np.ndarray, "views h w 3"] | None = None
    """Views from the baked map; None where there is no map."""
    error: UInt8[np.ndarray, "views h w"] | None = None
    """Levels of 255; of normals `ERROR_LEVELS` stand for `NORMAL_ERROR_DEG`."""


def channels(sample: TextureSample, cfg: RenderConfig) -> tuple[list[Channel], Bool[np.ndarray, "views h w"]]:
    """Return the channels of a sample with materials, emitted light only where there is any, and the pixels that source
    or baked map cover."""
    views = sample.views
    assert views.materials is not None
    found, mask = None, views.mask
    if (
        sample.uv is not None and sample.mesh is not None and mask.shape[1] == mask.shape[2]
    ):  # views are rendered square
        mesh = sample.mesh
        frames = mikktspace(mesh.vertices, mesh.normals, mesh.uv, mesh.faces)
        found, covered = baked_materials(mesh, sample.uv, frames, sample.cameras, cfg, CpuRasterizer())
        mask = mask | covered
    return list(_channels(views.materials, found)), mask


def _channels(truth: MaterialViews, found: MaterialViews | None) -> Iterator[Channel]:
    for place, name in enumerate(("metallic", "roughness")):
        one, other = (None if v is None else _grey(v.metallic_roughness[..., place]) for v in (truth, found))
        assert one is not None
        yield Channel(name=name, source=one, baked=other, error=None if other is None else _difference(one, other))
    baked = None if found is None else found.normal_detail
    yield Channel(
        name="normal_detail",
        source=as_rgb(truth.normal_detail),
        baked=None if baked is None else as_rgb(baked),
        error=None if baked is None else _turned(truth.normal_detail, baked),
    )
    if truth.emissive.any():
        glow = None if found is None else found.emissive
        error = None if glow is None else _difference(truth.emissive, glow)
        yield Channel(name="emissive", source=truth.emissive, baked=glow, error=error)


def _grey(values: UInt8[np.ndarray, "*n"]) -> UInt8[np.ndarray, "*n 3"]:
    return np.repeat(values[..., None], 3, axis=-1)


def _difference(one: UInt8[np.ndarray, "*n 3"], other: UInt8[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n"]:
    return np.abs(one.astype(np.int16) - other).max(axis=-1).astype(np.uint8)


def _turned(one: Float32[np.ndarray, "*n 3"], other: Float32[np.ndarray, "*n 3"]) -> UInt8[np.ndarray, "*n"]:
    """Angles between unit normals, as levels of an error: the largest where one image alone has a surface."""
    chord = np.linalg.norm(one - other, axis=-1)
    angle = np.degrees(2.0 * np.arcsin(np.minimum(chord / 2.0, 1.0)))
    levels = np.minimum(np.rint(angle * (ERROR_LEVELS / NORMAL_ERROR_DEG)), 255.0).astype(np.uint8)
    return np.where(one.any(axis=-1) == other.any(axis=-1), levels, np.uint8(255))


def channel_maps(maps: MaterialMaps) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """Return the UV maps of materials by name, as they are shown; `normal_tangent` is a normal map (+Y up)."""
    shown = {
        "metallic": _grey(maps.metallic_roughness[..., 0]),
        "roughness": _grey(maps.metallic_roughness[..., 1]),
        "normal_detail": as_rgb(maps.normal_detail),
        "normal_tangent": as_rgb(maps.normal_tangent),
    }
    return shown | ({"emissive": maps.emissive} if maps.emissive.any() else {})
