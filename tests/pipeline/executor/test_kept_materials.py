"""Materials of a mesh that gets a new base colour: maps, factors and coordinates come back from the written file."""

import io
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trimesh
from PIL import Image

from geometry.frames import normalise
from geometry.mesh import mikktspace
from geometry.raster_cpu import CpuRasterizer
from pipeline.executor.mesh_file import OpenedMesh, open_mesh_file
from pipeline.mesh_io.kept_file import decode_kept, encode_kept
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import PreflightConfig
from pipeline.mesh_io.write_glb import Map, Material, write_glb
from pipeline.render.materials import bake_materials
from pipeline.render.uv_maps import BakeConfig, bake_uv, find_texels
from pipeline.unwrap.unwrap import UnwrapConfig
from schemas.mesh import GROWN, MaterialLayers, TexturedMesh, UvMesh
from tests.pipeline.render.test_materials import attributes_of, coded, flat, square, tilted
from tests.support.small_gltf import Builder, png

SIZE = 128
RGB = np.random.default_rng(3).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
"""The generated base colour."""
KTX2 = (Path(__file__).parents[2] / "assets" / "uastc.ktx2").read_bytes()


def encoded(pixels: np.ndarray, form: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, form)
    return file.getvalue()


def opened(directory: Path, builder: Builder) -> OpenedMesh:
    path = directory / "asset.glb"
    path.write_bytes(builder.glb())
    found = open_mesh_file(path, UnwrapConfig(), SIZE)
    assert isinstance(found, OpenedMesh), found
    return found


def written(directory: Path, mesh: OpenedMesh) -> tuple[dict[str, Any], bytes]:
    """JSON and binary part of the textured mesh."""
    path = directory / "out.glb"
    write_glb(path, mesh.mesh, RGB, mesh.frame, kept=mesh.kept)
    data = path.read_bytes()
    (length,) = struct.unpack_from("<I", data, 12)
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def layers_of(path: Path) -> tuple[TexturedMesh, MaterialLayers]:
    found = load_asset(path, PreflightConfig(), originals=True)
    assert isinstance(found, tuple) and isinstance(found[1], TexturedMesh) and found[1].layers is not None
    return found[1], found[1].layers


def everything() -> tuple[Builder, list[bytes]]:
    """A square with all kinds of maps in all formats, on coordinates and samplers of their own; and their bytes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (16, 16, 3)).astype(np.uint8)
    files = [
        encoded(noise, "JPEG"),
        png(flat(coded(tilted((1, 0.3))))),
        encoded(noise[::-1].copy(), "WEBP"),
        KTX2,
    ]
    shift = {"KHR_texture_transform": {"offset": [0.2, 0.1], "rotation": 0.4, "scale": [0.5, 0.7]}}
    builder = square(
        {
            "pbrMetallicRoughness": {
                "metallicFactor": 0.75, "roughnessFactor": 0.5, "metallicRoughnessTexture": {"index": 1}
            },
            "normalTexture": {"index": 2, "scale": 0.6, "texCoord": 1, "extensions": shift},
            "occlusionTexture": {"index": 3, "strength": 0.4, "texCoord": 1},
            "emissiveTexture": {"index": 4},
            "emissiveFactor": [1.0, 0.5, 0.25],
            "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 3.0}},
            "alphaMode": "MASK",
            "alphaCutoff": 0.3,
            "doubleSided": False,
        },
        [],
    )  # fmt: skip
    tree = builder.tree
    for file, kind in zip(files, ("jpeg", "png", "webp", "ktx2"), strict=True):
        image = builder.image(file, f"image/{kind}")
        extension = {"webp": "EXT_texture_webp", "ktx2": "KHR_texture_basisu"}.get(kind)
        texture = {"extensions": {extension: {"source": image}}} if extension else {"source": image}
        tree["textures"].append(texture | {"sampler": 0})
    tree["samplers"] = [{"magFilter": 9728, "wrapS": 33648, "wrapT": 33071}]
    attributes_of(builder)["TEXCOORD_1"] = builder.accessor(np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32))
    return builder, files


def test_a_kept_layout_keeps_every_map_to_the_byte(tmp_path):
    builder, files = everything()
    found = opened(tmp_path, builder)
    assert found.mesh.layout == "authored" and found.kept.skipped == ()
    tree, binary = written(tmp_path, found)
    views = [tree["bufferViews"][image["bufferView"]] for image in tree["images"]]
    images = [binary[view["byteOffset"] :][: view["byteLength"]] for view in views]
    assert images[1:] == files and [image["mimeType"] for image in tree["images"][1:]] == [
        "image/jpeg", "image/png", "image/webp", "image/ktx2"
    ]  # fmt: skip
    (material,) = tree["materials"]
    assert material["pbrMetallicRoughness"] | {"baseColorTexture": 0, "metallicRoughnessTexture": 0} == {
        "metallicFactor": 0.75, "roughnessFactor": 0.5, "baseColorFactor": [1, 1, 1, 1], "baseColorTexture": 0,
        "metallicRoughnessTexture": 0,
    }  # fmt: skip
    assert material["alphaMode"] == "MASK" and "doubleSided" not in material
    assert material["normalTexture"]["scale"] == 0.6 and material["occlusionTexture"]["strength"] == 0.4
    assert material["emissiveFactor"] == [1.0, 0.5, 0.25]
    assert material["extensions"]["KHR_materials_emissive_strength"]["emissiveStrength"] == 3.0
    assert tree["extensionsRequired"] == ["EXT_texture_webp", "KHR_texture_basisu"]
    sampler = tree["samplers"][tree["textures"][material["normalTexture"]["index"]]["sampler"]]
    assert (sampler["magFilter"], sampler["wrapS"], sampler["wrapT"]) == (9728, 33648, 33071)


def test_a_reader_finds_every_map_at_its_place(tmp_path):
    """Coordinates with transforms applied, tangents and pixels, as the loader reads them from source and result."""
    builder, _ = everything()
    found = opened(tmp_path, builder)
    written(tmp_path, found)
    (source, before), (result, after) = layers_of(tmp_path / "asset.glb"), layers_of(tmp_path / "out.glb")
    np.testing.assert_allclose(result.vertices[result.faces], source.vertices[source.faces], atol=1e-6)
    np.testing.assert_array_equal(result.textures[0].image[..., :3], RGB)
    assert result.materials[0].double_sided is False
    np.testing.assert_allclose(after.tangents, before.tangents, atol=1e-6)
    for name in ("metallic_roughness", "normal", "occlusion", "emissive"):
        one, other = getattr(before, name), getattr(after, name)
        np.testing.assert_allclose(other.uv[result.faces], one.uv[source.faces], atol=1e-6)
        np.testing.assert_allclose(other.factors, one.factors, atol=1e-6)
        assert one.textures[0] is not None and other.textures[0] is not None
        a, b = source.textures[one.textures[0]], result.textures[other.textures[0]]
        np.testing.assert_array_equal(a.image, b.image)
        assert (a.wrap_u, a.wrap_v, a.nearest) == (b.wrap_u, b.wrap_v, b.nearest)
    assert after.emissive_strength == before.emissive_strength == 3.0


def test_cut_outs_are_those_of_the_asset(tmp_path):
    """Alpha of the old base colour, cut at 0.3, is baked beside the new one and cut at one half."""
    builder = square({"alphaMode": "MASK", "alphaCutoff": 0.3}, [])
    alpha = np.zeros((SIZE, SIZE), np.uint8)
    alpha[:, 64:] = 100
    image = builder.image(png(np.dstack([RGB, alpha])))
    builder.tree["textures"][0] = {"source": image}
    written(tmp_path, opened(tmp_path, builder))
    mesh, _ = layers_of(tmp_path / "out.glb")
    opacity = mesh.textures[0].image[..., 3]
    assert (opacity[:, :62] < 128).all() and (opacity[:, 66:] >= 128).all()


def test_materials_of_a_mesh_keep_their_own_maps(tmp_path):
    """Two halves of a layout, each with a normal map of its own; another library reads them, too."""
    left, right = png(flat(coded(tilted((1, 0))))), png(flat(coded(tilted((0, 1)))))
    builder = square({"normalTexture": {"index": 1}, "pbrMetallicRoughness": {"roughnessFactor": 0.25}}, [])
    for file in (left, right):
        builder.tree["textures"].append({"source": builder.image(file)})
    first = builder.tree["meshes"][0]["primitives"][0]
    second = first | {"material": 1, "indices": builder.accessor(np.array([0, 2, 3], np.uint16))}
    first["indices"] = builder.accessor(np.array([0, 1, 2], np.uint16))
    builder.tree["meshes"][0]["primitives"] = [first, second]
    builder.tree["materials"].append({"normalTexture": {"index": 2}, "pbrMetallicRoughness": {"metallicFactor": 0.0}})
    tree, binary = written(tmp_path, opened(tmp_path, builder))
    for material, file in zip(tree["materials"], (left, right), strict=True):
        image = tree["images"][tree["textures"][material["normalTexture"]["index"]]["source"]]
        view = tree["bufferViews"][image["bufferView"]]
        assert binary[view["byteOffset"] :][: view["byteLength"]] == file
    assert len({m["pbrMetallicRoughness"]["baseColorTexture"]["index"] for m in tree["materials"]}) == 1
    meshes = list(trimesh.load(tmp_path / "out.glb", force="scene").geometry.values())
    assert [mesh.visual.material.roughnessFactor for mesh in meshes] == [0.25, 1.0]
    assert [tuple(np.asarray(mesh.visual.material.normalTexture)[0, 0]) for mesh in meshes] == [
        tuple(coded(tilted((1, 0)))), tuple(coded(tilted((0, 1))))
    ]  # fmt: skip


def bumpy_cylinder() -> Builder:
    """A closed strip around an axis whose coordinates repeat three times, which no kept layout may, with maps."""
    rng = np.random.default_rng(1)
    slopes = rng.normal(0, 0.25, (4, 4, 2)).repeat(16, axis=0).repeat(16, axis=1)
    normals = np.dstack([slopes, np.ones(slopes.shape[:2])])
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    rough = flat(np.array([10, 90, 200]))
    builder = square(
        {
            "pbrMetallicRoughness": {"metallicRoughnessTexture": {"index": 2}},
            "normalTexture": {"index": 1, "scale": 0.8},
            "occlusionTexture": {"index": 2, "strength": 0.5},
            "emissiveFactor": [0.5, 0.0, 0.0],
        },
        [coded(normals), rough],
    )
    turns = np.linspace(0, 2 * np.pi, 25)
    around = np.stack([np.cos(turns), np.zeros(25), np.sin(turns)], axis=1)
    corners = np.concatenate([around, around + np.array([0, 2, 0])]).astype(np.float32)
    u = np.tile(np.linspace(3, 0, 25), 2)
    uv = np.stack([u, np.repeat([1.0, 0.0], 25)], axis=1).astype(np.float32)
    faces = [face for k in range(24) for face in ((k, k + 25, k + 1), (k + 1, k + 25, k + 26))]
    primitive = builder.tree["meshes"][0]["primitives"][0]
    primitive["attributes"] = {
        "POSITION": builder.accessor(corners),
        "NORMAL": builder.accessor(np.tile(around, (2, 1)).astype(np.float32)),
        "TEXCOORD_0": builder.accessor(uv),
    }
    primitive["indices"] = builder.accessor(np.array(faces, np.uint16).reshape(-1))
    return builder


def shading_normals(path: Path, layout: UvMesh) -> tuple[np.ndarray, np.ndarray]:
    """World-space shading normals of a file at the texels of a layout of its faces, and where there are any."""
    mesh, _ = normalise(layers_of(path)[0])
    assert mesh.layers is not None
    cfg, rasterizer = BakeConfig(resolution=SIZE), CpuRasterizer()
    texels = find_texels(layout, cfg, rasterizer)
    maps = bake_uv(mesh, layout, cfg, rasterizer, texels=texels)
    frames = mikktspace(layout.vertices, layout.normals, layout.uv, layout.faces)
    return bake_materials(mesh, mesh.layers, layout, texels, maps, frames).normal_detail, maps.mask


def test_a_new_layout_gets_the_maps_baked_into_it(tmp_path):
    found = opened(tmp_path, bumpy_cylinder())
    assert found.mesh.layout == GROWN
    tree, _ = written(tmp_path, found)
    (material,) = tree["materials"]
    surface = material["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (1.0, 1.0)
    assert surface["metallicRoughnessTexture"] == {"index": material["occlusionTexture"]["index"]}
    mesh, layers = layers_of(tmp_path / "out.glb")
    assert layers.metallic_roughness.textures[0] is not None
    packed = mesh.textures[layers.metallic_roughness.textures[0]].image
    assert packed.shape[:2] == (SIZE, SIZE)
    np.testing.assert_allclose(packed[SIZE // 2, SIZE // 2, :3], [255 + 0.5 * (10 - 255), 90, 200], atol=1)
    assert material["doubleSided"] and "emissiveTexture" in material
    truth, mask = shading_normals(tmp_path / "asset.glb", found.mesh)
    baked, _ = shading_normals(tmp_path / "out.glb", found.mesh)
    plain, _ = shading_normals_without_map(tmp_path, found)
    angles, bends = (
        np.degrees(np.arccos(np.clip((truth[mask] * other[mask]).sum(axis=1), -1, 1))) for other in (baked, plain)
    )
    assert np.quantile(angles, 0.99) < 1.0, np.quantile(angles, [0.5, 0.9, 0.99])
    assert bends.mean() > 5, "the map bends what it is compared on"


def shading_normals_without_map(directory: Path, found: OpenedMesh) -> tuple[np.ndarray, np.ndarray]:
    kept = replace(found.kept, materials=tuple(replace(one, normal=None) for one in found.kept.materials))
    write_glb(directory / "plain.glb", found.mesh, RGB, found.frame, kept=kept)
    return shading_normals(directory / "plain.glb", found.mesh)


def test_a_mesh_without_a_material_becomes_no_metal(tmp_path):
    builder = square({}, [])
    del builder.tree["meshes"][0]["primitives"][0]["material"]
    tree, _ = written(tmp_path, opened(tmp_path, builder))
    surface = tree["materials"][0]["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0.0, 1.0)


def test_a_damaged_map_is_named_and_the_others_stay(tmp_path):
    builder, files = everything()
    builder.tree["textures"][2]["source"] = builder.image(b"\x89PNG\r\n\x1a\n damaged")
    found = opened(tmp_path, builder)
    (text,) = found.kept.skipped
    assert "image" in text
    tree, _ = written(tmp_path, found)
    assert "normalTexture" not in tree["materials"][0] and len(tree["images"]) == len(files)


def test_what_a_process_leaves_is_checked(tmp_path):
    """The child that read the file may have been taken over by it."""
    builder, _ = everything()
    found = opened(tmp_path, builder)
    good = encode_kept(found.kept)
    assert decode_kept(good, found.mesh, SIZE).materials[0].metallic == 0.75
    page = Map(image=b"<html>")
    for kept in (
        replace(found.kept, materials=(Material(metallic_roughness=page),)),
        replace(found.kept, materials=(Material(metallic=7.0),)),
        replace(found.kept, materials=(replace(found.kept.materials[0], normal=Map(image=KTX2, uv_set=9)),)),
        replace(found.kept, face_material=found.kept.face_material + 1),
        replace(found.kept, tangents=np.full((2, 3, 4), np.inf, np.float32)),
        replace(found.kept, more_uv=(np.zeros((3, 2), np.float32),)),
        replace(found.kept, opacity=np.zeros((4, 4), np.uint8)),
    ):
        with pytest.raises(ValueError):
            decode_kept(encode_kept(kept), found.mesh, SIZE)
    for data in (b"", good[:-100], b"\xff" * 64):
        with pytest.raises(ValueError):
            decode_kept(data, found.mesh, SIZE)
