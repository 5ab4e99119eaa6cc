"""Materials of a mesh in its views and in texture space: metallic and roughness, shading normals, emitted light."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float32, UInt8

from geometry.cameras import project
from geometry.gutter import dilate
from geometry.image_metrics import BEST_DB, capped_psnr, compare_pixels
from geometry.kernels.interpolate import bend_rows, tangent_rows, unit_rows
from geometry.mesh import mean_angle_deg
from geometry.raster import Fragments, Rasterizer
from geometry.texture import LINEAR_DECODE, SRGB_DECODE, encode_srgb8, pack_layer, pack_surface, surface_color
from pipeline.render.uv_maps import Texels, layer_texels
from pipeline.render.views import SHORTEST_NORMAL, RenderConfig, Sight, interpolate_geometry, one_image, see, wear
from schemas.images import with_empty_red
from schemas.mesh import FLAT, Layer, MaterialLayers, Shading, TexturedMesh, UvMesh
from schemas.sample import Cameras, MaterialMaps, MaterialViews, UvMaps, Views

ROUGHNESS, METALLIC = 1, 2
"""Channels of a metallic-roughness layer."""
HALFWAY = 1e-3
"""Distance from the middle between two 8-bit levels within which rounding may go either way; means of 0.5 are exact."""
Tangents = Float32[np.ndarray, "f 3 4"]
"""Tangents of the corners of faces (`geometry.mesh.mikktspace`)."""
_BENT_NOWHERE = np.array([0.0, 0.0, 1.0], np.float32)


def material_views(
    mesh: TexturedMesh, layers: MaterialLayers, centres: Fragments, cameras: Cameras, normal: np.ndarray
) -> MaterialViews:
    """Materials at the pixel centres of views: each value is the mean over its pixel, as far as the plane of the face
    goes; `normal` [views, h, w, 3] are the unit normals there, without the normal map. Without one they are
    `normal_detail` themselves. What is the same all over is not looked up."""
    clip = project(mesh.vertices, cameras.world_to_clip)
    size = centres.face.shape
    even, mapped = even_pair(mesh, layers.metallic_roughness), _is_mapped(layers.normal)
    leaning = not mapped and bool((layers.normal.factors != FLAT).any())
    rough, glow = np.zeros((*size, 2), np.uint8), np.zeros((*size, 3), np.uint8)
    if even is not None:
        for channel in range(2):
            rough[..., channel] = (centres.face >= 0) * even[channel]
    detail = normal.copy() if mapped or leaning else normal
    surfaces = {
        "rough": pack_layer(mesh, layers.metallic_roughness, LINEAR_DECODE) if even is None else None,
        "glow": pack_layer(mesh, layers.emissive, SRGB_DECODE) if layers.emissive.factors.any() else None,
        "bump": pack_layer(mesh, layers.normal, LINEAR_DECODE) if mapped else None,
    }
    for view in range(size[0]):  # one at a time: floats take four times the memory of bytes
        centre, corners = one_image(centres, view), clip[view : view + 1]
        found = {name: surface_color(one, centre, corners) for name, one in surfaces.items() if one is not None}
        if "rough" in found:
            rough[view] = _to_bytes(found["rough"][0])
        if "glow" in found:
            glow[view] = encode_srgb8(np.ascontiguousarray(found["glow"][0, ..., :3]))
        if "bump" in found:
            bend(detail[view], centre, found["bump"][0], mesh, layers)
        elif leaning:
            bend(detail[view], centre, layers.normal.factors[mesh.face_material[centre.face[0]]], mesh, layers)
    return MaterialViews(metallic_roughness=rough, normal_detail=detail, emissive=glow)


def bend(
    normal: Float32[np.ndarray, "height width 3"],
    fragments: Fragments,
    mapped: Float32[np.ndarray, "height width channels"],
    mesh: TexturedMesh,
    layers: MaterialLayers,
) -> None:
    """Bend the unit normals of one image, in place, by a normal map that was looked up at its fragments."""
    bend_rows(
        fragments.face[0], fragments.bary[0], mapped, mesh.faces, mesh.normals, layers.tangents, mesh.face_material,
        layers.normal_scale, SHORTEST_NORMAL, np.empty((3, 3)), normal,
    )  # fmt: skip


def bake_materials(
    mesh: TexturedMesh, layers: MaterialLayers, uv_mesh: UvMesh, texels: Texels, maps: UvMaps, frames: Tangents
) -> MaterialMaps:
    """Materials of a mesh in the layout of `uv_mesh`, of which `maps` were baked and whose tangents `frames` are:
    linear means over texels, normals bent at texel centres, all of it dilated beyond the mask."""
    even = even_pair(mesh, layers.metallic_roughness)
    if even is None:
        rough = _to_bytes(layer_texels(pack_layer(mesh, layers.metallic_roughness, LINEAR_DECODE), uv_mesh, texels))
    else:
        rough = np.full((*maps.mask.shape, 2), even)
    glow = np.zeros((*maps.mask.shape, 3), np.uint8)
    if layers.emissive.factors.any():
        glow = encode_srgb8(layer_texels(pack_layer(mesh, layers.emissive, SRGB_DECODE), uv_mesh, texels))
    detail, tangent = maps.normal.copy(), np.broadcast_to(_BENT_NOWHERE, maps.normal.shape).copy()
    if _is_mapped(layers.normal):
        bump = layer_texels(pack_layer(mesh, layers.normal, LINEAR_DECODE), uv_mesh, texels)
        bend(detail, texels.centre, bump, mesh, layers)
        centre = texels.centre
        tangent_rows(
            centre.face[0], centre.bary[0], detail, uv_mesh.faces, uv_mesh.normals, frames, np.empty((3, 3)), tangent
        )
        tangent = _dilated_normals(tangent, maps.mask)
    return MaterialMaps(
        metallic_roughness=rough,
        normal_detail=_dilated_normals(detail, maps.mask),
        normal_tangent=tangent,
        emissive=glow,
    )


def even_pair(mesh: TexturedMesh, layer: Layer) -> UInt8[np.ndarray, "2"] | None:
    """Metallic and roughness in 8 bits, where they are the same all over a mesh; None where they vary, or lie halfway
    between two levels, where the rounding of each mean decides."""
    used = np.flatnonzero(np.bincount(mesh.face_material))
    factors = layer.factors[used]
    if any(layer.textures[material] is not None for material in used) or (factors != factors[:1]).any():
        return None
    value = factors[0].astype(np.float64)
    halfway = (np.abs(value * 255.0 % 1.0 - 0.5) < HALFWAY) & (value != 0.5)
    return None if halfway.any() else _to_bytes(factors[0])


def _is_mapped(normal: Layer) -> bool:
    return any(texture is not None for texture in normal.textures)


def _to_bytes(color: Float32[np.ndarray, "*n channels"]) -> UInt8[np.ndarray, "*n 2"]:
    """Metallic and roughness of a layer's colours, in 8 bits."""
    pair = color[..., [METALLIC, ROUGHNESS]]
    return (np.clip(pair, 0.0, 1.0) * np.float32(255.0) + np.float32(0.5)).astype(np.uint8)


def _dilated_normals(
    normals: Float32[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> Float32[np.ndarray, "height width 3"]:
    """Unit normals everywhere; +Z where the mean of neighbours points nowhere."""
    filled = dilate(normals, mask)
    unit_rows(filled, mask, SHORTEST_NORMAL)
    return filled


def _normal_map(tangent: Float32[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    """Tangent-space normals as a normal map: of one texel where none is bent."""
    if not tangent[..., :2].any():
        tangent = tangent[:1, :1]
    return normal_image(tangent)


def wear_materials(
    uv_mesh: UvMesh, maps: UvMaps, materials: MaterialMaps, frames: Tangents, emissive_strength: float = 1.0
) -> TexturedMesh:
    """An unwrapped mesh, of tangents `frames`, that wears its baked maps: colour, metallic-roughness, normal map and
    emitted light, as layers and under light. Colours that are the same all over are worn as a factor."""
    plain = wear(uv_mesh, maps.rgb, maps.opacity)
    count, textures, layers = len(plain.materials), list(plain.textures), []
    for image, decode in (
        (with_empty_red(materials.metallic_roughness), LINEAR_DECODE),
        (_normal_map(materials.normal_tangent), LINEAR_DECODE),
        (materials.emissive, SRGB_DECODE),
    ):
        factors, texture = np.ones((count, 3), np.float32), None
        if (image == image[0, 0]).all():
            factors[:] = decode[image[0, 0]]
        else:
            texture = len(textures)
            opaque = np.full((*image.shape[:2], 4), 255, np.uint8)
            opaque[..., :3] = image
            textures.append(replace(plain.textures[0], image=opaque))
        layers.append(Layer(factors=factors, textures=(texture,) * count, uv=uv_mesh.uv))
    rough, bent, glow = layers
    red, green, blue = (emissive_strength * glow.factors[0]).tolist()
    shading = Shading(
        metallic=float(rough.factors[0, METALLIC]),
        roughness=float(rough.factors[0, ROUGHNESS]),
        metallic_roughness=rough.textures[0],
        emissive=(red, green, blue),
        emissive_texture=glow.textures[0],
        normal_map=bent.textures[0],
    )
    return replace(
        plain,
        materials=tuple(replace(material, shading=shading) for material in plain.materials),
        textures=tuple(textures),
        layers=MaterialLayers(
            metallic_roughness=rough,
            normal=bent,
            normal_scale=np.ones(count, np.float32),
            emissive=glow,
            emissive_strength=emissive_strength,
            tangents=frames,
        ),
    )


def normal_image(normals: Float32[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "height width 3"]:
    """Unit normals as a normal map of 8 bits."""
    scaled = normals + np.float32(1.0)
    scaled *= np.float32(127.5)
    return np.rint(scaled, out=scaled).astype(np.uint8)


def wear_and_see(
    uv_mesh: UvMesh,
    maps: UvMaps,
    frames: Tangents,
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    sight: Sight | None,
) -> tuple[TexturedMesh, Sight, bool]:
    """Return a mesh with its baked materials, of tangents `frames`, what views of it show, and whether that is the
    `sight` that was given: the baked map has no hole through which more would be seen."""
    assert maps.materials is not None
    worn = wear_materials(uv_mesh, maps, maps.materials, frames)
    surface = pack_surface(worn, mips=False)
    if sight is None or surface.has_holes():
        return worn, see(worn, surface, cameras, cfg, rasterizer), False
    return worn, sight, True


def baked_materials(
    uv_mesh: UvMesh,
    maps: UvMaps,
    frames: Tangents,
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    sight: Sight | None = None,
) -> tuple[MaterialViews, Bool[np.ndarray, "views h w"]]:
    """Render the baked materials of a mesh, of tangents `frames`: their views, and the pixels that it covers. `sight`:
    what views of the source show, if it is at hand and the mesh lies in the same place."""
    worn, sight, _ = wear_and_see(uv_mesh, maps, frames, cameras, cfg, rasterizer, sight)
    assert worn.layers is not None
    _, normal = interpolate_geometry(sight.centres, worn)
    return material_views(worn, worn.layers, sight.centres, cameras, normal), sight.centres.face >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MaterialTrip:
    """The accuracy with which views from baked maps reproduce the materials in views of the source, over the pixels
    that both cover."""

    metallic_psnr: float
    roughness_psnr: float
    emissive_psnr: float
    """dB, at most 100."""
    normal_error_deg: float
    """Mean angle between the shading normals."""


def material_trip(
    mesh: TexturedMesh,
    views: Views,
    uv_mesh: UvMesh,
    maps: UvMaps,
    frames: Tangents,
    cameras: Cameras,
    cfg: RenderConfig,
    rasterizer: Rasterizer,
    sight: Sight | None = None,
) -> MaterialTrip | None:
    """Views of the baked materials against those of the source `mesh`; None where no pixel shows both. `frames`:
    tangents of `uv_mesh`; `sight`: what views of the source show, if it is at hand. What is the same all over the
    source is equal in both, and not compared."""
    assert mesh.layers is not None and views.materials is not None
    worn, sight, kept = wear_and_see(uv_mesh, maps, frames, cameras, cfg, rasterizer, sight)
    assert worn.layers is not None
    if kept and np.array_equal(worn.normals[worn.faces], mesh.normals[mesh.faces]):
        normal = views.normal
    else:
        _, normal = interpolate_geometry(sight.centres, worn)
    found, truth = material_views(worn, worn.layers, sight.centres, cameras, normal), views.materials
    both = views.mask & (sight.centres.face >= 0)
    shared = np.flatnonzero(both)
    if not len(shared):
        return None
    metallic = roughness = emissive = BEST_DB
    if even_pair(mesh, mesh.layers.metallic_roughness) is None:
        metallic, roughness = (
            capped_psnr(found.metallic_roughness[..., k], truth.metallic_roughness[..., k], both) for k in range(2)
        )
    if mesh.layers.emissive.factors.any():
        emissive, _ = compare_pixels(found.emissive, truth.emissive, both, 0)
    return MaterialTrip(
        metallic_psnr=metallic,
        roughness_psnr=roughness,
        emissive_psnr=emissive,
        normal_error_deg=mean_angle_deg(*(one.normal_detail.reshape(-1, 3)[shared] for one in (found, truth))),
    )
