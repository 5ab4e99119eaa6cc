"""One sample of the dataset, as a shard stores it and training reads it."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from schemas.mesh import UvMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Cameras:
    """The V cameras of a sample: OpenGL view and projection matrices."""

    world_to_cam: Float32[np.ndarray, "views 4 4"]
    projection: Float32[np.ndarray, "views 4 4"]

    @property
    def world_to_clip(self) -> Float32[np.ndarray, "views 4 4"]:
        return self.projection @ self.world_to_cam


class Regime(StrEnum):
    """The training regime of a sample."""

    TEXTURED = "textured"
    """Views and a trustworthy UV texture."""
    MV_ONLY = "mv_only"
    """Views and geometry, no UV texture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialViews:
    """Materials as the views see them: 0 outside the mask, at pixel centres like positions, mean over the pixel."""

    metallic_roughness: UInt8[np.ndarray, "views height width 2"]
    """Metallic and roughness, linear."""
    normal_detail: Float32[np.ndarray, "views height width 3"]
    """Shading normal: `Views.normal` bent by the normal map, world space, unit length."""
    emissive: UInt8[np.ndarray, "views height width 3"]
    """Emitted light, sRGB; `meta["materials"]["emissive_strength"]` times as much in linear light."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialMaps:
    """Materials in texture space, all dilated beyond the mask as the colour is."""

    metallic_roughness: UInt8[np.ndarray, "height width 2"]
    """Metallic and roughness, linear."""
    normal_detail: Float32[np.ndarray, "height width 3"]
    """Shading normal, world space, unit length."""
    normal_tangent: Float32[np.ndarray, "height width 3"]
    """The same in the tangent space (MikkTSpace) of the sample's mesh: x along u, y along v (up), unit length."""
    emissive: UInt8[np.ndarray, "height width 3"]
    """Emitted light, as in the views."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """Multi-view images. Row 0 is the top of the picture; everything but coverage is 0 outside
    the mask."""

    rgb: UInt8[np.ndarray, "views height width 3"]
    """Unlit base colour, sRGB, over black."""
    mask: Bool[np.ndarray, "views height width"]
    """Pixel centre covered by a face."""
    coverage: UInt8[np.ndarray, "views height width"]
    """Share of the pixel covered by faces, 0..255: the anti-aliased mask. Above 0 in the whole mask, and at its rim
    outside of it."""
    position: Float32[np.ndarray, "views height width 3"]
    """Position in the dataset frame, [-1, 1]."""
    normal: Float32[np.ndarray, "views height width 3"]
    """Interpolated vertex normal, world space, unit length."""
    lit: UInt8[np.ndarray, "views height width 3"] | None = None
    """The same views under light, sRGB, over black; renderer and light are in `meta["shading"]`."""
    materials: MaterialViews | None = None
    """Materials in the views, in all samples of a dataset or in none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UvMaps:
    """Texture-space maps. Row 0 is v = 1 (image orientation). Colour is dilated beyond the mask; position and normal
    are 0 outside it."""

    rgb: UInt8[np.ndarray, "height width 3"]
    mask: Bool[np.ndarray, "height width"]
    """Texel centre covered by a face."""
    position: Float32[np.ndarray, "height width 3"]
    normal: Float32[np.ndarray, "height width 3"]
    opacity: UInt8[np.ndarray, "height width"] | None = None
    """Alpha, dilated beyond the mask; below 128 the surface is cut out. None is stored as 255: opaque everywhere."""
    materials: MaterialMaps | None = None
    """Exactly where the views have them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextureSample:
    """A mesh seen from V cameras and, in the textured regime, its UV maps and unwrapped mesh."""

    uid: str
    regime: Regime
    views: Views
    cameras: Cameras
    uv: UvMaps | None
    mesh: UvMesh | None
    """Dataset frame; present exactly when `uv` is."""
    meta: dict[str, Any]
    """The sample's JSON: `uid, schema_version, source {name, uri, licence, attribution}, caption, regime,
    cameras {world_to_cam, projection}, frame {center [3], scale}, measurements {...}`, `shading` with lit views, and
    `materials {emissive_strength}` with materials. The same keys in every sample, with values of the same type."""
