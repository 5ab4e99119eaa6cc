"""Materials, textures and their coordinates as the loader reads them."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.mesh_io.load import load_asset, load_mesh
from pipeline.mesh_io.preflight import PreflightConfig
from schemas.ledger import NoteKind, Reason, Rejected
from schemas.mesh import AlphaMode, Material, Shading, TexturedMesh, Wrap
from tests.support.small_gltf import QUADRANTS, Builder, box, loaded, png, primitive, refused


@pytest.mark.parametrize(
    ("transform", "expected"),
    [
        ({"offset": [0.25, 0.5]}, (0.35, 0.7)),
        ({"scale": [2, 3]}, (0.2, 0.6)),
        ({"rotation": np.pi / 2}, (0.2, -0.1)),  # u goes to -v (v down): KhronosGroup/glTF#1563
        ({"offset": [1, 2], "rotation": np.pi / 2, "scale": [2, 3]}, (1.6, 1.8)),
    ],
)
def test_texture_transform(tmp_path: Path, transform: dict[str, object], expected: tuple[float, float]) -> None:
    builder = box()
    primitive(builder)["attributes"]["TEXCOORD_3"] = builder.accessor(np.tile(np.float32([0.1, 0.2]), (8, 1)))
    texture = builder.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]
    texture["extensions"] = {"KHR_texture_transform": transform | {"texCoord": 3}}
    uv = loaded(tmp_path, builder).uv
    np.testing.assert_allclose(uv, np.tile([expected[0], 1 - expected[1]], (len(uv), 1)), atol=1e-6)


def test_sampler_and_material(tmp_path: Path) -> None:
    builder = box()
    builder.tree["samplers"] = [{"wrapS": 33071, "wrapT": 33648, "magFilter": 9728}]
    builder.tree["textures"][0]["sampler"] = 0
    builder.tree["materials"].insert(0, {"name": "not used", "alphaMode": "BLEND"})
    builder.tree["materials"][1] |= {"alphaMode": "MASK", "alphaCutoff": 0.25, "doubleSided": True}
    builder.tree["materials"][1]["pbrMetallicRoughness"]["baseColorFactor"] = [0.5, 0.25, 1, 0.75]
    primitive(builder)["material"] = 1
    mesh = loaded(tmp_path, builder)
    material = Material(
        base_color=(0.5, 0.25, 1.0, 0.75), texture=0, alpha_mode=AlphaMode.MASK, alpha_cutoff=0.25, double_sided=True
    )
    assert mesh.materials == (material,)
    assert (mesh.textures[0].wrap_u, mesh.textures[0].wrap_v, mesh.textures[0].nearest) == (
        Wrap.CLAMP,
        Wrap.MIRROR,
        True,
    )


def test_specular_glossiness_diffuse_wins(tmp_path: Path) -> None:
    builder = box()
    builder.tree["materials"][0]["extensions"] = {
        "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1, 0, 0, 1]}
    }
    mesh = loaded(tmp_path, builder)
    assert mesh.materials[0].base_color == (1, 0, 0, 1) and mesh.materials[0].texture is None


@pytest.mark.parametrize("kind", ["L", "LA", "P", "RGB", "RGBA", "I;16", "jpeg", "webp", "cmyk"])
def test_image_modes(tmp_path: Path, kind: str) -> None:
    grey = np.full((4, 4), 100, np.uint8)
    if kind == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        mode = {"jpeg": "RGB", "webp": "RGB", "cmyk": "CMYK"}.get(kind, kind)
        image = Image.fromarray(np.stack([grey] * 3, axis=2)).convert(mode)
    file = io.BytesIO()
    image.save(file, {"jpeg": "JPEG", "webp": "WEBP", "cmyk": "JPEG"}.get(kind, "PNG"))
    builder = box()
    number = builder.image(file.getvalue(), "image/any")
    builder.tree["textures"][0] = {"extensions": {"EXT_texture_webp": {"source": number}}, "source": 0}
    pixels = loaded(tmp_path, builder).textures[0].image
    assert np.abs(pixels[..., :3].astype(int) - 100).max() <= 2 and (pixels[..., 3] == 255).all()


def test_broken_images_reject(tmp_path: Path) -> None:
    whole = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    for broken in (whole[:2000], whole[:500] + b"\0" * 200 + whole[700:]):
        builder = box()
        builder.tree["textures"][0]["source"] = builder.image(broken)
        assert refused(tmp_path, builder) == Reason.BAD_IMAGE


def test_no_texture_coordinates_reject(tmp_path: Path) -> None:
    builder = box()
    primitive(builder)["attributes"].pop("TEXCOORD_0")
    assert refused(tmp_path, builder) == Reason.INVALID_STRUCTURE


@pytest.mark.parametrize(
    ("mode", "expected"),
    [(None, AlphaMode.OPAQUE), ("OPAQUE", AlphaMode.OPAQUE), ("MASK", AlphaMode.MASK), ("BLEND", AlphaMode.BLEND)],
)
def test_alpha_modes(tmp_path: Path, mode: str | None, expected: AlphaMode) -> None:
    builder = box()
    if mode is not None:
        builder.tree["materials"][0]["alphaMode"] = mode
    material = loaded(tmp_path, builder).materials[0]
    assert (material.alpha_mode, material.alpha_cutoff, material.double_sided) == (expected, 0.5, False)


def test_unlit_and_variants_leave_the_default_material(tmp_path: Path) -> None:
    builder = box()
    builder.tree["materials"].append({"pbrMetallicRoughness": {"baseColorFactor": [1, 0, 0, 1]}})
    builder.tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
    mapping = {"mappings": [{"material": 1, "variants": [0]}]}
    primitive(builder)["extensions"] = {"KHR_materials_variants": mapping}
    builder.tree["extensions"] = {"KHR_materials_variants": {"variants": [{"name": "red"}]}}
    builder.tree["extensionsRequired"] = ["KHR_materials_unlit", "KHR_materials_variants"]
    mesh = loaded(tmp_path, builder)
    assert mesh.materials == (Material(texture=0, double_sided=False),)


def test_several_meshes_materials_and_textures(tmp_path: Path) -> None:
    """Two meshes of two primitives; one image under two samplers is two textures, the unused material is gone."""
    builder = box()
    dark = builder.image(png(QUADRANTS // 2))
    builder.tree["samplers"] = [{"wrapS": 33071}, {"wrapT": 33648}]
    builder.tree["textures"] = [{"source": 0, "sampler": 0}, {"source": 0, "sampler": 1}, {"source": dark}]
    builder.tree["materials"] = [{"pbrMetallicRoughness": {"baseColorTexture": {"index": i}}} for i in (0, 1, 2, 0)]
    plain = primitive(builder) | {"material": 2}
    no_material = {key: value for key, value in plain.items() if key != "material"}
    builder.tree["meshes"] = [
        {"primitives": [plain, primitive(builder) | {"material": 1}]},
        {"primitives": [no_material, primitive(builder)]},
    ]
    builder.tree["nodes"] = [{"mesh": 1}, {"mesh": 0}]
    builder.tree["scenes"] = [{"nodes": [0, 1]}]
    mesh = loaded(tmp_path, builder)
    assert mesh.face_material.tolist() == [0] * 12 + [1] * 12 + [3] * 12 + [2] * 12
    assert [material.texture for material in mesh.materials] == [None, 0, 1, 2]
    assert [(texture.wrap_u, texture.wrap_v) for texture in mesh.textures] == [
        (Wrap.CLAMP, Wrap.REPEAT),
        (Wrap.REPEAT, Wrap.MIRROR),
        (Wrap.REPEAT, Wrap.REPEAT),
    ]
    np.testing.assert_array_equal(mesh.textures[2].image[..., :3], QUADRANTS // 2)


@pytest.mark.parametrize("code", [9728, 9729, None])
def test_magnification_filter(tmp_path: Path, code: int | None) -> None:
    builder = box()
    builder.tree["samplers"] = [{} if code is None else {"magFilter": code}]
    builder.tree["textures"][0]["sampler"] = 0
    assert loaded(tmp_path, builder).textures[0].nearest == (code == 9728)


def test_a_second_set_of_coordinates(tmp_path: Path) -> None:
    builder = box()
    stored = np.tile(np.uint16([16384, 0]), (8, 1))
    primitive(builder)["attributes"]["TEXCOORD_1"] = builder.accessor(stored, normalized=True)
    builder.tree["materials"][0]["pbrMetallicRoughness"]["baseColorTexture"]["texCoord"] = 1
    uv = loaded(tmp_path, builder).uv
    np.testing.assert_allclose(uv, np.tile([16384 / 65535, 1], (len(uv), 1)), atol=1e-6)


def test_specular_glossiness_texture(tmp_path: Path) -> None:
    builder = box()
    diffuse = {"diffuseTexture": {"index": 0}, "glossinessFactor": 0.25}
    builder.tree["materials"][0] = {
        "pbrMetallicRoughness": {"baseColorFactor": [0, 0, 0, 1]},
        "extensions": {"KHR_materials_pbrSpecularGlossiness": diffuse},
    }
    mesh = loaded(tmp_path, builder, shading=True)
    assert mesh.materials == (Material(texture=0, double_sided=False, shading=Shading(metallic=0.0, roughness=0.75)),)


@pytest.mark.parametrize("broken", [False, True])
def test_glossiness_becomes_roughness(tmp_path: Path, broken: bool) -> None:
    builder = box()
    stored = np.tile(np.array([[[9, 9, 9, 0], [9, 9, 9, 100], [9, 9, 9, 255]]], np.uint8), (2, 1, 1))
    number = builder.image(png(stored)[: 40 if broken else None])
    builder.tree["textures"].append({"source": number})
    gloss = {"diffuseTexture": {"index": 0}, "specularGlossinessTexture": {"index": 1}, "glossinessFactor": 0.5}
    builder.tree["materials"][0]["extensions"] = {"KHR_materials_pbrSpecularGlossiness": gloss}
    mesh = loaded(tmp_path, builder, shading=True)
    found = mesh.materials[0].shading
    if broken:
        assert found == Shading(roughness=0.5) and len(mesh.textures) == 1
    else:
        assert found == Shading(roughness=1.0, metallic_roughness=1)
        expected = [[0, 255, 0, 255], [0, 205, 0, 255], [0, 128, 0, 255]]  # 255 * (1 - 0.5 * A), no metal
        np.testing.assert_allclose(mesh.textures[1].image[0], expected, atol=1)


def shaded() -> Builder:
    """Every part of the answer to light, each image of its own grey."""
    builder = box()
    greys = [builder.image(png(np.full((4, 4, 3), grey, np.uint8))) for grey in (10, 20, 30)]
    builder.tree["textures"] += [{"source": grey} for grey in greys]
    builder.tree["materials"][0] = {
        "pbrMetallicRoughness": {
            "baseColorTexture": {"index": 0},
            "metallicRoughnessTexture": {"index": 1},
            "metallicFactor": 0.5,
            "roughnessFactor": 0.25,
        },
        "emissiveTexture": {"index": 2},
        "emissiveFactor": [1, 0.5, 0],
        "normalTexture": {"index": 3, "scale": 0.75},
        "extensions": {"KHR_materials_emissive_strength": {"emissiveStrength": 4}},
    }
    return builder


SHADED = Shading(
    metallic=0.5,
    roughness=0.25,
    metallic_roughness=1,
    emissive=(4.0, 2.0, 0.0),
    emissive_texture=2,
    normal_map=3,
    normal_scale=0.75,
)


def test_shading(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, shaded(), shading=True)
    assert mesh.materials == (Material(texture=0, double_sided=False, shading=SHADED),)
    assert [int(texture.image[0, 0, 0]) for texture in mesh.textures[1:]] == [10, 20, 30]
    plain = loaded(tmp_path, shaded())
    assert plain.materials == (Material(texture=0, double_sided=False),) and len(plain.textures) == 1


def test_default_shading_is_that_of_the_specification(tmp_path: Path) -> None:
    assert loaded(tmp_path, box(), shading=True).materials[0].shading == Shading(metallic=1.0, roughness=1.0)
    assert loaded(tmp_path, box(textured=False), shading=True).materials[0].shading == Shading(metallic=1.0)


def _transformed(material: dict[str, Any]) -> None:
    material["pbrMetallicRoughness"]["metallicRoughnessTexture"]["extensions"] = {
        "KHR_texture_transform": {"scale": [2, 2]}
    }


WRONG_SHADING = {
    "other coordinates": (lambda m: m["normalTexture"].update(texCoord=1), {"normal_map": None}),
    "other transform": (_transformed, {"metallic_roughness": None, "emissive_texture": 1, "normal_map": 2}),
    "no such texture": (lambda m: m["normalTexture"].update(index=99), {"normal_map": None}),
    "factor is text": (lambda m: m["pbrMetallicRoughness"].update(metallicFactor="x"), {"metallic": 1.0}),
    "factor too high": (lambda m: m["pbrMetallicRoughness"].update(roughnessFactor=7), {"roughness": 1.0}),
    "emission is text": (
        lambda m: m.update(emissiveFactor="x"),
        {"emissive": (0.0, 0.0, 0.0)},
    ),
    "strength is negative": (
        lambda m: m["extensions"]["KHR_materials_emissive_strength"].update(emissiveStrength=-1),
        {"emissive": (0.0, 0.0, 0.0)},
    ),
    "scale is infinite": (lambda m: m["normalTexture"].update(scale=10**400), {"normal_scale": 1.0}),
}


@pytest.mark.parametrize("name", WRONG_SHADING)
def test_wrong_shading_never_rejects(tmp_path: Path, name: str) -> None:
    change, expected = WRONG_SHADING[name]
    builder = shaded()
    change(builder.tree["materials"][0])
    assert loaded(tmp_path, builder, shading=True).materials[0].shading == replace(SHADED, **expected)


@pytest.mark.parametrize("what", ["cut", "text", "nothing", "beyond the buffer"])
def test_a_broken_shading_image_leaves_its_factor(tmp_path: Path, what: str) -> None:
    builder = shaded()
    whole = png(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    number = builder.image({"cut": whole[:2000], "text": b"hello world!"}.get(what, whole))
    if what == "nothing":
        builder.tree["images"][number].pop("bufferView")
    if what == "beyond the buffer":
        builder.tree["bufferViews"][-1]["byteLength"] = 10**9
    builder.tree["textures"][3]["source"] = number
    mesh = loaded(tmp_path, builder, shading=True)
    assert mesh.materials[0].shading == replace(SHADED, normal_map=None)


def test_shading_images_count_towards_the_limit(tmp_path: Path) -> None:
    path = tmp_path / "asset.glb"
    path.write_bytes(shaded().glb())
    mesh = load_mesh(path, PreflightConfig(max_image_bytes=4 * (64 + 2 * 16)), shading=True)
    assert isinstance(mesh, TexturedMesh)
    assert mesh.materials[0].shading == replace(SHADED, normal_map=None)


def test_shading_textures_need_coordinates(tmp_path: Path) -> None:
    builder = shaded()
    builder.tree["materials"][0]["pbrMetallicRoughness"].pop("baseColorTexture")
    primitive(builder)["attributes"].pop("TEXCOORD_0")
    mesh = loaded(tmp_path, builder, shading=True)
    bare = replace(SHADED, metallic_roughness=None, emissive_texture=None, normal_map=None)
    assert mesh.materials[0].shading == bare and not mesh.textures


def test_unlit_materials_do_not_shine(tmp_path: Path) -> None:
    builder = shaded()
    builder.tree["materials"][0]["extensions"] = {"KHR_materials_unlit": {}}
    builder.tree["materials"][0].pop("emissiveFactor")
    found = loaded(tmp_path, builder, shading=True).materials[0].shading
    assert (found.metallic, found.roughness, found.metallic_roughness, found.normal_map) == (0.0, 1.0, None, None)


@pytest.mark.parametrize("broken", ["header", "pixels", "no file"])
def test_an_image_that_cannot_be_read_gives_way_to_its_substitute(tmp_path: Path, broken: str) -> None:
    stream, builder = io.BytesIO(), box()
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(stream, "WEBP", lossless=True)
    data = stream.getvalue()
    data = b"RIFF" if broken == "header" else data[:40] + bytes(len(data) - 40)
    number = builder.image(data, "image/webp")
    if broken == "no file":
        builder.tree["images"][number] = {"uri": "gone.webp"}
    builder.tree["textures"][0] = {"extensions": {"EXT_texture_webp": {"source": number}}, "source": 0}
    path = tmp_path / "a.glb"
    path.write_bytes(builder.glb())
    found = load_asset(path, PreflightConfig(), tmp_path)
    assert not isinstance(found, Rejected) and isinstance(found[1], TexturedMesh), found
    assert [(note.kind, note.count) for note in found[0].notes] == [(NoteKind.IMAGE_REPLACED, 1)]
    np.testing.assert_array_equal(found[1].textures[0].image[..., :3], QUADRANTS)
    builder.tree["textures"][0].pop("source")
    path.write_bytes(builder.glb())
    assert isinstance(load_mesh(path), Rejected)
