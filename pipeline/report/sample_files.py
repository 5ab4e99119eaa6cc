"""The gallery's files of one sample: a thumbnail, and a script with its views, maps and mesh that loads when the sample
opens."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from geometry.raster_cpu import CpuRasterizer
from pipeline.render.views import RenderConfig, render_baked
from pipeline.report.channels import channel_maps, channels
from pipeline.report.images import as_rgb, cut_out, data_uri, error_colors, seen_surface, side_by_side, webp
from pipeline.report.packed_mesh import pack_mesh
from schemas.codec import decode, decode_field
from schemas.sample import Cameras, TextureSample, Views

FORM = 3
"""Version of these files: another number draws all of them again."""
THUMBNAIL_PX = 192
VIEW_PX = 256
"""Height of a view in an opened sample."""
MAX_SIDE = 16_383
MAP_PX = 384
"""Height of a map of positions, normals or opacity in an opened sample."""
TEXTURE_PX = 1024
"""Height of the map of colours, which is the texture of the 3D view too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleFiles:
    """The files of a sample."""

    thumbnail: bytes
    """WebP, the first view cut out."""
    script: bytes
    """Passes the sample to the page."""


def draw_sample(sample: TextureSample, supersample: int) -> SampleFiles:
    """Draw a sample. supersample: of the dataset's views, for those of the baked map."""
    entry = {
        "uid": sample.uid,
        "shading": sample.meta.get("shading"),
        "front": _front(sample.cameras),
        "views": len(sample.views.rgb),
        "aspect": round(sample.views.rgb.shape[2] / sample.views.rgb.shape[1], 4),
        "strips": _strips(sample, supersample),
        "maps": _maps(sample),
        "mesh": _mesh(sample),
    }
    if sample.views.materials is not None:
        entry |= {"strength": sample.meta["materials"]["emissive_strength"]}
    return SampleFiles(thumbnail=thumbnail(sample.views), script=script("sample", entry))


def thumbnail(views: Views) -> bytes:
    """Draw the first view, cut out."""
    return webp(cut_out(views.rgb[0], views.mask[0]), THUMBNAIL_PX)


def quick_thumbnail(fields: Mapping[str, Any]) -> bytes:
    """Draw the `thumbnail` of a stored sample from three of its fields alone. Raises ValueError for a damaged field."""
    meta, rgb, mask = (decode_field(name, fields[name]) for name in ("json", "rgb.webp", "mask.png"))
    height = len(rgb) // max(1, len(meta["cameras"]["world_to_cam"]))
    return webp(cut_out(rgb[:height], mask[:height] > 0), THUMBNAIL_PX)


def draw_stored(fields: Mapping[str, Any], supersample: int) -> SampleFiles:
    """Draw a sample from its stored fields. Raises ValueError for a damaged field."""
    return draw_sample(decode(fields), supersample)


def script(receiver: str, value: Any) -> bytes:
    """Return a script that passes `value` to `gallery.RECEIVER`: pages opened from a folder may load scripts and
    nothing else. It is plain ASCII, and nothing in it can end a script element."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"gallery.{receiver}({text.replace('<', chr(92) + 'u003c')});\n".encode()


def _front(cameras: Cameras) -> list[float]:
    """Return azimuth and elevation of the first camera, radians."""
    pose = np.linalg.inv(cameras.world_to_cam[0].astype(np.float64))
    back: Float64[np.ndarray, 3] = pose[:3, 2]
    return [round(float(np.arctan2(back[1], back[0])), 4), round(float(np.arcsin(np.clip(back[2], -1, 1))), 4)]


def _strips(sample: TextureSample, supersample: int) -> dict[str, str]:
    """Draw the views by modality, each as one row of all cameras."""
    views, mask = sample.views, sample.views.mask
    shown = {"source": views.rgb, "lit": views.lit, "normal": as_rgb(views.normal), "position": as_rgb(views.position)}
    strips = {
        name: _strip(np.stack([cut_out(*pair) for pair in zip(images, mask, strict=True)]))
        for name, images in shown.items()
        if images is not None
    }
    cfg = RenderConfig(resolution=mask.shape[1], supersample=supersample)
    if views.materials is not None:
        strips |= _channel_strips(sample, cfg)
    if sample.uv is None or sample.mesh is None or mask.shape[1] != mask.shape[2]:  # views are rendered square
        return strips
    baked = render_baked(sample.mesh, sample.uv.rgb, sample.cameras, cfg, CpuRasterizer(), sample.uv.opacity)
    either = mask | baked.mask
    error = np.abs(views.rgb.astype(np.int16) - baked.rgb).max(axis=-1).astype(np.uint8)
    pairs = zip(baked.rgb, baked.mask, strict=True)
    strips["baked"] = _strip(np.stack([cut_out(*pair) for pair in pairs]))
    strips["error"] = _strip(np.stack([error_colors(*pair, VIEW_PX) for pair in zip(error, either, strict=True)]))
    return strips


def _channel_strips(sample: TextureSample, cfg: RenderConfig) -> dict[str, str]:
    """Draw the views of materials: `roughness_source`, `roughness_baked`, `roughness_error` and so on."""
    strips, (found, either) = dict[str, str](), channels(sample, cfg)
    for channel in found:
        for name, images in (("source", channel.source), ("baked", channel.baked)):
            if images is not None:
                pairs = zip(images, sample.views.mask if name == "source" else either, strict=True)
                strips[f"{channel.name}_{name}"] = _strip(np.stack([cut_out(*pair) for pair in pairs]))
        if channel.error is not None:
            errors = zip(channel.error, either, strict=True)
            strips[f"{channel.name}_error"] = _strip(np.stack([error_colors(*pair, VIEW_PX) for pair in errors]))
    return strips


def _strip(images: UInt8[np.ndarray, "views height width channels"]) -> str:
    """Encode views in a row, smaller ones where they are many: a WebP has at most 16,383 pixels a side."""
    return data_uri(side_by_side(images), min(VIEW_PX, MAX_SIDE // len(images)))


def _maps(sample: TextureSample) -> dict[str, str]:
    """Draw the UV maps; the colours hold the opacity too."""
    if sample.uv is None:
        return {}
    uv = sample.uv
    color = uv.rgb if uv.opacity is None else np.dstack([uv.rgb, uv.opacity])
    maps = {"color": data_uri(color, TEXTURE_PX)}
    if uv.opacity is not None:
        maps["opacity"] = data_uri(np.repeat(uv.opacity[..., None], 3, axis=-1), MAP_PX)
    maps["normal"] = data_uri(cut_out(as_rgb(uv.normal), uv.mask), MAP_PX)
    maps["position"] = data_uri(cut_out(as_rgb(uv.position), uv.mask), MAP_PX)
    if uv.materials is not None:
        sizes = {"normal_detail": MAP_PX}  # the others are textures of the 3D view
        shown = channel_maps(uv.materials)
        maps |= {name: data_uri(image, sizes.get(name, TEXTURE_PX)) for name, image in shown.items()}
    return maps


def _mesh(sample: TextureSample) -> dict[str, Any] | None:
    """Return the mesh, which wears the map of colours, or the surface that the views show, which wears their strip."""
    if sample.mesh is not None and sample.uv is not None:
        return pack_mesh(sample.mesh) | {"texture": "map", "title": "The mesh with its baked map"}
    if surface := seen_surface(sample.views):
        title = "The surface that the views show (no mesh is stored)"
        return pack_mesh(surface) | {"texture": "views", "title": title}
    return None
