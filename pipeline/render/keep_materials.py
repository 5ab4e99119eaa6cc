"""Materials that a mesh keeps when its base colour is replaced: its maps as they are, or baked into a new layout."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int32, UInt8

from geometry.mesh import mikktspace
from geometry.raster import Rasterizer
from geometry.texture import LINEAR_DECODE, pack_layer, pack_surface
from pipeline.mesh_io.write_glb import KeptMaterials, Map, Material, is_gltf_image, png
from pipeline.render.materials import bake_materials, even_pair, normal_image
from pipeline.render.uv_maps import BakeConfig, Texels, bake_uv, find_texels, layer_texels
from schemas.images import with_empty_red
from schemas.mesh import AUTHORED, AlphaMode, Layer, MaterialLayers, Texture, TexturedMesh, UvMesh
from schemas.sample import UvMaps

DECIMALS = 6
"""Digits of a factor in a file: more than single precision has."""
_EMPTY_RED = 255
"""Occlusion of what has none."""


def keep_materials(
    mesh: TexturedMesh, uv_mesh: UvMesh, cfg: BakeConfig, rasterizer: Rasterizer, skipped: tuple[str, ...] = ()
) -> KeptMaterials:
    """The materials of a mesh that was loaded with `originals`, in the layout of `uv_mesh`.

    In its own layout every material keeps its maps as they are, their transforms applied to coordinates; in a new one
    the maps of all are baked together, `cfg.resolution` texels a side. Alpha, which lies in the image of the base
    colour, is baked either way. `skipped`: maps that could not be loaded, in words."""
    assert mesh.layers is not None
    surface = pack_surface(mesh)
    own, holes = uv_mesh.layout == AUTHORED, surface.has_holes()
    if own and not holes:
        return replace(_as_they_are(mesh, mesh.layers), skipped=skipped)
    texels = find_texels(uv_mesh, cfg, rasterizer)
    maps = bake_uv(mesh, uv_mesh, cfg, rasterizer, surface, texels)
    kept = _as_they_are(mesh, mesh.layers) if own else _baked(mesh, mesh.layers, uv_mesh, texels, maps)
    return replace(kept, opacity=maps.opacity, skipped=skipped)


def _kept(
    mesh: TexturedMesh, materials: Sequence[Material], tangents: Float32[np.ndarray, "f 3 4"] | None
) -> KeptMaterials:
    """Materials by number, with the sides and the alpha of the mesh's; equal ones become one."""
    dressed = [
        replace(
            material,
            double_sided=own.double_sided,
            cut_out=own.alpha_mode is AlphaMode.MASK,
            blended=own.alpha_mode is AlphaMode.BLEND,
        )
        for material, own in zip(materials, mesh.materials, strict=True)
    ]
    distinct = list(dict.fromkeys(dressed))
    places = np.array([distinct.index(material) for material in dressed], np.int32)
    mapped = any(material.normal is not None for material in distinct)
    return KeptMaterials(
        materials=tuple(distinct), face_material=places[mesh.face_material], tangents=tangents if mapped else None
    )


def _as_they_are(mesh: TexturedMesh, layers: MaterialLayers) -> KeptMaterials:
    more_uv = list[Float32[np.ndarray, "v 2"]]()
    files, maps = dict[bytes, bytes](), dict[tuple[int, int], Map]()

    def kept_map(layer: Layer, material: int, used: Int32[np.ndarray, " n"]) -> Map | None:
        place = layer.textures[material]
        if place is None:
            return None
        uv_set = _same_coordinates(layer, [mesh.uv, *more_uv], used)
        if uv_set > len(more_uv):
            more_uv.append(layer.uv)
        if (place, uv_set) not in maps:
            texture = mesh.textures[place]
            file = texture.file if texture.file and is_gltf_image(texture.file) else png(texture.image[..., :3])
            maps[place, uv_set] = Map(
                image=files.setdefault(file, file),
                uv_set=uv_set,
                wrap_u=texture.wrap_u,
                wrap_v=texture.wrap_v,
                nearest=texture.nearest,
            )
        return maps[place, uv_set]

    materials = [_material(mesh, layers, number, kept_map) for number in range(len(mesh.materials))]
    return replace(_kept(mesh, materials, layers.tangents), more_uv=tuple(more_uv))


def _same_coordinates(layer: Layer, sets: Sequence[np.ndarray], used: Int32[np.ndarray, " n"]) -> int:
    """The first of some coordinates that equal a layer's at the vertices in use, else their number."""
    return next((k for k, uv in enumerate(sets) if np.array_equal(uv[used], layer.uv[used])), len(sets))


def _material(
    mesh: TexturedMesh,
    layers: MaterialLayers,
    number: int,
    kept_map: Callable[[Layer, int, Int32[np.ndarray, " n"]], Map | None],
) -> Material:
    assert layers.occlusion is not None and layers.occlusion_strength is not None
    used = np.unique(mesh.faces[mesh.face_material == number])
    _, roughness, metallic = layers.metallic_roughness.factors[number].tolist()
    emissive, strength = _light(layers, number)
    return Material(
        roughness=round(roughness, DECIMALS),
        metallic=round(metallic, DECIMALS),
        metallic_roughness=kept_map(layers.metallic_roughness, number, used),
        normal=kept_map(layers.normal, number, used),
        normal_scale=round(float(layers.normal_scale[number]), DECIMALS),
        occlusion=kept_map(layers.occlusion, number, used),
        occlusion_strength=round(float(layers.occlusion_strength[number]), DECIMALS),
        emissive=emissive,
        emissive_strength=strength,
        emissive_map=kept_map(layers.emissive, number, used) if any(emissive) else None,
    )


def _light(layers: MaterialLayers, number: int) -> tuple[tuple[float, float, float], float]:
    """Emissive factor of a material, and its strength, which is above 1 only where the light is."""
    light = layers.emissive.factors[number].astype(np.float64) * layers.emissive_strength
    strength = max(float(light.max()), 1.0)
    red, green, blue = (round(x, DECIMALS) for x in (light / strength).tolist())
    return (red, green, blue), round(strength, DECIMALS)


def _baked(mesh: TexturedMesh, layers: MaterialLayers, uv_mesh: UvMesh, texels: Texels, maps: UvMaps) -> KeptMaterials:
    """The maps of all materials in a new layout, as one material but for its sides and its alpha."""
    frames = mikktspace(uv_mesh.vertices, uv_mesh.normals, uv_mesh.uv, uv_mesh.faces)
    baked = bake_materials(mesh, layers, uv_mesh, texels, maps, frames)
    material = Material(emissive_strength=round(layers.emissive_strength, DECIMALS))
    packed, even = with_empty_red(baked.metallic_roughness), even_pair(mesh, layers.metallic_roughness)
    occlusion = _baked_occlusion(mesh, layers, uv_mesh, texels)
    packed[..., 0] = _EMPTY_RED if occlusion is None else occlusion
    surface = Map(image=png(packed))
    if even is None:
        material = replace(material, roughness=1.0, metallic=1.0, metallic_roughness=surface)
    else:
        _, roughness, metallic = layers.metallic_roughness.factors[mesh.face_material[0]].tolist()
        material = replace(material, roughness=round(roughness, DECIMALS), metallic=round(metallic, DECIMALS))
    if occlusion is not None:
        material = replace(material, occlusion=surface)
    if any(texture is not None for texture in layers.normal.textures):
        material = replace(material, normal=Map(image=png(normal_image(baked.normal_tangent))))
    if layers.emissive.factors.any():
        material = replace(material, emissive=(1.0, 1.0, 1.0), emissive_map=Map(image=png(baked.emissive)))
    return _kept(mesh, [material] * len(mesh.materials), frames)


def _baked_occlusion(
    mesh: TexturedMesh, layers: MaterialLayers, uv_mesh: UvMesh, texels: Texels
) -> UInt8[np.ndarray, "height width"] | None:
    """Occlusion of the materials, each by its strength; None where no material has any."""
    layer, strengths = layers.occlusion, layers.occlusion_strength
    assert layer is not None and strengths is not None
    if not any(place is not None for place in layer.textures):
        return None
    textures, places = list(mesh.textures), list(layer.textures)
    for number, place in enumerate(layer.textures):
        if place is not None and strengths[number] != 1.0:
            places[number] = len(textures)
            textures.append(_weakened(mesh.textures[place], float(strengths[number])))
    surface = pack_layer(replace(mesh, textures=tuple(textures)), replace(layer, textures=tuple(places)), LINEAR_DECODE)
    return np.rint(layer_texels(surface, uv_mesh, texels)[..., 0] * 255.0).astype(np.uint8)


def _weakened(texture: Texture, strength: float) -> Texture:
    """Occlusion of which a share counts (glTF 2.0, 3.9.3)."""
    image = texture.image.copy()
    image[..., 0] = np.rint(255.0 + strength * (texture.image[..., 0].astype(np.float64) - 255.0))
    return replace(texture, image=image)
