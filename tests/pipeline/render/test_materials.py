"""Materials in views and maps: known normals, metallic and roughness come back, whatever the file's conventions."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geometry.cameras import RigConfig
from geometry.image_metrics import BEST_DB
from geometry.kernels.interpolate import bend_rows, tangent_rows, unit_rows
from geometry.texture import linear_to_srgb, srgb_to_linear
from pipeline.asset import process_asset
from pipeline.config import BuildConfig
from pipeline.executor.compile_kernels import kernels_of
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.folder import folder
from schemas.codec import decode, encode, fields_of
from schemas.ledger import MATERIAL_MEASUREMENTS
from schemas.sample import MaterialMaps, TextureSample
from tests.support.small_gltf import Builder, png

CFG = BuildConfig(
    views=RenderConfig(resolution=64),
    uv=BakeConfig(resolution=128),
    rig=RigConfig(name="ortho6"),
    filter=FilterConfig(
        min_faces=1,
        min_flatness=0.0,
        max_single_surface_share=1.0,
        min_visible_opposite=0.0,
        min_visible_share=0.0,
        min_round_trip_db=10.0,
        min_distinct_colors=1,
        min_color_std=0.0,
    ),
    materials=True,
)
TILT = 30.0
"""Degrees by which a bent normal leaves the surface's."""
FRONT = np.array([0.0, 0.0, 1.0])
"""Normal of the test square in the asset's frame (Y up), where u points to +X and v to +Y."""
Change = Callable[[Builder], None]


def coded(vector: tuple[float, float, float] | np.ndarray) -> np.ndarray:
    return np.rint((np.asarray(vector) + 1) * 127.5).astype(np.uint8)


def tilted(towards: tuple[float, float], degrees: float = TILT) -> np.ndarray:
    """Unit vector in tangent space that leans towards a direction of the layout."""
    x, y = np.array(towards) / np.linalg.norm(towards) * np.sin(np.radians(degrees))
    return np.array([x, y, np.cos(np.radians(degrees))])


def speckled() -> np.ndarray:
    """A picture with enough colours to count as a texture."""
    return np.random.default_rng(0).integers(60, 200, (8, 8, 3)).repeat(16, axis=0).repeat(16, axis=1).astype(np.uint8)


def square(material: dict[str, Any], images: list[np.ndarray], change: Change | None = None) -> Builder:
    """Two faces in the plane z = 0 that look towards +Z, with the whole texture on them: u right, v up. `images` are
    textures 1, 2, ...; texture 0 is the base colour."""
    builder = Builder()
    corners = np.array([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]], np.float32)
    attributes = {
        "POSITION": builder.accessor(corners),
        "NORMAL": builder.accessor(np.tile(np.float32([0, 0, 1]), (4, 1))),
        "TEXCOORD_0": builder.accessor(((corners[:, :2] * [1, -1] + 1) / 2).astype(np.float32)),
    }
    builder.tree["textures"] = [{"source": builder.image(png(image))} for image in [speckled(), *images]]
    surface = {"baseColorTexture": {"index": 0}} | material.pop("pbrMetallicRoughness", {})
    builder.tree["materials"] = [{"pbrMetallicRoughness": surface, "doubleSided": True} | material]
    indices = builder.accessor(np.array([0, 1, 2, 0, 2, 3], np.uint16))
    builder.tree["meshes"] = [{"primitives": [{"attributes": attributes, "indices": indices, "material": 0}]}]
    if change is not None:
        change(builder)
    return builder


def attributes_of(builder: Builder) -> dict[str, int]:
    return builder.tree["meshes"][0]["primitives"][0]["attributes"]


def sample_of(directory: Path, builder: Builder, cfg: BuildConfig = CFG) -> TextureSample:
    (directory / "asset.glb").write_bytes(builder.glb())
    (ref,) = folder(directory)
    processed = process_asset(ref, cfg)
    assert isinstance(processed.result, TextureSample) and processed.result.uv is not None, processed
    return processed.result


def maps_of(sample: TextureSample) -> MaterialMaps:
    assert sample.uv is not None and sample.uv.materials is not None
    return sample.uv.materials


def in_dataset(vector: np.ndarray) -> np.ndarray:
    return np.array([vector[0], -vector[2], vector[1]])


def assert_normals(sample: TextureSample, expected: np.ndarray) -> None:
    """Within a degree on 99 % of texels and pixels, after encoding: `expected` in the asset's frame."""
    assert sample.uv is not None
    stored = decode(encode(sample))
    assert stored.uv is not None and stored.views.materials is not None
    for normals in (
        maps_of(stored).normal_detail[stored.uv.mask],
        stored.views.materials.normal_detail[stored.views.mask],
    ):
        angles = np.degrees(np.arccos(np.clip(normals @ in_dataset(expected), -1, 1)))
        assert len(angles) > 100 and np.quantile(angles, 0.99) < 1.0, np.quantile(angles, [0.5, 0.99])


def flat(value: np.ndarray) -> np.ndarray:
    return np.tile(value.astype(np.uint8), (16, 16, 1))


NORMAL = {"normalTexture": {"index": 1}}


@pytest.mark.parametrize("towards", [(1, 0), (0, 1), (-1, 0), (0, -1), (1, 1)])
def test_a_normal_map_bends_the_normal(tmp_path, towards):
    """Red towards +u, green towards +v, which is up in the picture (glTF 2.0, 3.9.3)."""
    bent = tilted(towards)
    sample = sample_of(tmp_path, square(dict(NORMAL), [flat(coded(bent))]))
    assert_normals(sample, bent)
    assert sample.meta["measurements"]["normal_strength_deg"] == pytest.approx(TILT, abs=1)


def test_a_flipped_green_channel_is_another_normal(tmp_path):
    """Files with DirectX's convention have green pointing down: read as glTF has it, the slope turns over."""
    bent = tilted((0.3, 1.0))
    flipped = coded(bent)
    flipped[1] = 255 - flipped[1]
    assert_normals(sample_of(tmp_path, square(dict(NORMAL), [flat(flipped)])), bent * [1, -1, 1])


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_normal_scale(tmp_path, scale):
    bent = tilted((1, 0))
    scaled = bent * [scale, scale, 1]
    builder = square({"normalTexture": {"index": 1, "scale": scale}}, [flat(coded(bent))])
    assert_normals(sample_of(tmp_path, builder), scaled / np.linalg.norm(scaled))


def remap(turn: np.ndarray) -> Change:
    """Other coordinates for the whole square: u and v as rows of a matrix of x and y."""

    def change(builder: Builder) -> None:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
        up = (corners @ turn.T + 1) / 2
        attributes_of(builder)["TEXCOORD_0"] = builder.accessor((np.stack([up[:, 0], 1 - up[:, 1]], 1)).astype("f4"))

    return change


@pytest.mark.parametrize(
    "turn", [[[0, 1], [-1, 0]], [[-1, 0], [0, 1]], [[0, 1], [1, 0]]], ids=["quarter turn", "mirrored", "both"]
)
def test_charts_that_are_turned_or_mirrored(tmp_path, turn):
    """u lies along the first row of `turn` on the surface, v along the second: so do red and green."""
    matrix, bent = np.array(turn, float), tilted((1, 0.4))
    sample = sample_of(tmp_path, square(dict(NORMAL), [flat(coded(bent))], remap(matrix)))
    assert_normals(sample, np.array([*(matrix.T @ bent[:2]), bent[2]]))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_tangents_of_the_file_count(tmp_path, sign):
    """Tangents that contradict the coordinates on purpose: +Y, and the bitangent on either side."""

    def change(builder: Builder) -> None:
        attributes_of(builder)["TANGENT"] = builder.accessor(np.tile(np.float32([0, 1, 0, sign]), (4, 1)))

    bent = tilted((1, 0.5))
    bitangent = sign * np.cross(FRONT, [0, 1, 0])
    expected = bent[0] * np.array([0, 1, 0]) + bent[1] * bitangent + bent[2] * FRONT
    assert_normals(sample_of(tmp_path, square(dict(NORMAL), [flat(coded(bent))], change)), expected)


@pytest.mark.parametrize("tangents", [False, True])
def test_a_mirroring_node_mirrors_the_bent_normals(tmp_path, tangents):
    def change(builder: Builder) -> None:
        builder.tree["nodes"][0]["scale"] = [-1, 1, 1]
        if tangents:
            attributes_of(builder)["TANGENT"] = builder.accessor(np.tile(np.float32([1, 0, 0, 1]), (4, 1)))

    bent = tilted((1, 0.5))
    assert_normals(sample_of(tmp_path, square(dict(NORMAL), [flat(coded(bent))], change)), bent * [-1, 1, 1])


def test_own_coordinates_and_a_transform(tmp_path):
    """The map lies on TEXCOORD_1, whose u and v are swapped, and a transform picks its right half."""
    left, right = tilted((1, 0)), tilted((0.2, 1.0))
    picture = np.concatenate([flat(coded(left)), flat(coded(right))], axis=1)

    def change(builder: Builder) -> None:
        stored = np.array([[1, 0], [1, 1], [0, 1], [0, 0]], np.float32)  # u = 1 - v, v (down) = u of TEXCOORD_0
        attributes_of(builder)["TEXCOORD_1"] = builder.accessor(stored)

    shift = {"KHR_texture_transform": {"offset": [0.53, 0.0], "scale": [0.44, 1.0]}}
    material = {"normalTexture": {"index": 1, "texCoord": 1, "extensions": shift}}
    sample = sample_of(tmp_path, square(material, [picture], change))
    # stored u falls along +Y, stored v (down) grows along +X: u is -Y and v (up) is -X on the surface
    expected = np.array([-right[1], -right[0], right[2]])
    assert_normals(sample, expected)


def halves(left: tuple[int, int, int], right: tuple[int, int, int]) -> np.ndarray:
    return np.concatenate([flat(np.array(left)), flat(np.array(right))], axis=1)


def test_metallic_and_roughness_from_a_map(tmp_path):
    """Green is roughness, blue metallic, each times its factor; no conversion of colour."""
    surface = {"metallicRoughnessTexture": {"index": 1}, "metallicFactor": 0.5, "roughnessFactor": 0.8}
    sample = sample_of(tmp_path, square({"pbrMetallicRoughness": surface}, [halves((9, 100, 200), (7, 250, 40))]))
    found = maps_of(sample).metallic_roughness.astype(int)
    for columns, metallic, roughness in ((slice(4, 60), 100, 80), (slice(68, 124), 20, 200)):
        assert np.abs(found[:, columns] - [metallic, roughness]).max() <= 2
    measured = sample.meta["measurements"]
    assert measured["varied_materials"] == 1 and measured["constant_material_share"] == 0
    assert measured["roughness_std"] == pytest.approx(60 / 255, abs=0.01)
    assert measured["metallic_psnr"] > 35 and measured["roughness_psnr"] > 35 and measured["normal_error_deg"] < 0.5
    views = sample.views.materials
    assert views is not None
    assert not views.metallic_roughness[~sample.views.mask].any() and not views.normal_detail[~sample.views.mask].any()


def test_constants_and_emitted_light(tmp_path):
    surface = {"metallicFactor": 0.25, "roughnessFactor": 0.6}
    strong = {"KHR_materials_emissive_strength": {"emissiveStrength": 4.0}}
    material = {"pbrMetallicRoughness": surface, "emissiveFactor": [1.0, 0.5, 0.0], "extensions": strong}
    sample = sample_of(tmp_path, square(material, []))
    maps, measured = maps_of(sample), sample.meta["measurements"]
    assert (maps.metallic_roughness == [64, 153]).all()
    assert sample.meta["materials"] == {"emissive_strength": 4.0}
    assert (maps.emissive == [255, round(255 * float(linear_to_srgb(np.array(0.5)))), 0]).all()
    np.testing.assert_array_equal(maps.normal_tangent, np.broadcast_to([0.0, 0.0, 1.0], maps.normal_tangent.shape))
    assert (measured["varied_materials"], measured["constant_material_share"]) == (0, 1.0)
    assert measured["normal_strength_deg"] == 0 and measured["emissive_share"] == 1 and measured["roughness_std"] == 0


@pytest.mark.parametrize("roughness", [0.6, 0.5, 0.9], ids=["plain", "exactly halfway", "halfway, rounded"])
@pytest.mark.parametrize("layout", ["authored", "new"])
def test_what_is_constant_is_what_a_lookup_finds(tmp_path, monkeypatch, roughness, layout):
    """Samples are equal to the byte, with the proofs that they hold, whether or not constants are looked up."""
    spread: Change | None = remap(np.diag([3.0, 3.0])) if layout == "new" else None
    surface = {"metallicFactor": 0.25, "roughnessFactor": roughness}
    short = sample_of(tmp_path, square({"pbrMetallicRoughness": dict(surface)}, [], spread))
    assert short.mesh is not None and (short.mesh.layout == "authored") == (layout == "authored")
    monkeypatch.setattr("pipeline.render.materials.even_pair", lambda mesh, layer: None)
    long = sample_of(tmp_path, square({"pbrMetallicRoughness": dict(surface)}, [], spread))
    assert encode(short) == encode(long)
    measured, views = short.meta["measurements"], short.views.materials
    assert views is not None and not views.emissive.any() and not maps_of(short).emissive.any()
    assert measured["emissive_psnr"] == BEST_DB and measured["metallic_psnr"] == BEST_DB
    assert views.normal_detail is short.views.normal and measured["normal_strength_deg"] == 0


@pytest.mark.parametrize(
    ("gloss", "metallic", "roughness", "color"),
    [
        ({"diffuseFactor": [0, 0, 0, 1], "specularFactor": [1, 0.8, 0.3], "glossinessFactor": 0.75}, 1.0, 0.25,
         (1.0, 0.8, 0.3)),
        ({"diffuseFactor": [0.4, 0.2, 0.1, 1], "specularFactor": [0.04] * 3, "glossinessFactor": 0.1}, 0.0, 0.9,
         (0.4, 0.2, 0.1)),
    ],
    ids=["metal", "plastic"],
)  # fmt: skip
def test_specular_glossiness_becomes_metallic_roughness(tmp_path, gloss, metallic, roughness, color):
    builder = square({"extensions": {"KHR_materials_pbrSpecularGlossiness": gloss}}, [])
    sample = sample_of(tmp_path, builder)
    assert sample.uv is not None
    assert np.abs(maps_of(sample).metallic_roughness / 255 - [metallic, roughness]).max() <= 2 / 255
    assert np.abs(sample.uv.rgb / 255 - linear_to_srgb(np.array(color))).max() <= 3 / 255


def test_the_proof_knows_what_eight_bits_cost_a_normal_that_is_not_bent(tmp_path):
    """128 for 127.5 in red and green, on a map that no texture is made of."""
    sample = sample_of(tmp_path, square({}, []))
    leaning = np.degrees(np.arctan(np.sqrt(2) / 255))
    assert sample.meta["measurements"]["normal_error_deg"] == pytest.approx(leaning, abs=1e-4)


DIFFUSE_WITHOUT_GLOSS = np.rint(255 * linear_to_srgb(srgb_to_linear(np.array([200, 100, 50]) / 255) / 0.96))
"""The diffuse colour (200, 100, 50) of a surface that mirrors nothing, as the base colour of one that mirrors 4 %."""


def test_specular_glossiness_from_textures(tmp_path):
    """Colour from both textures, roughness from alpha: a metal on the left, cloth on the right."""
    shiny = np.zeros((16, 32, 4), np.uint8)
    shiny[:, :16], shiny[:, 16:] = (255, 255, 255, 204), (0, 0, 0, 51)
    black = halves((0, 0, 0), (200, 100, 50))
    gloss = {"diffuseTexture": {"index": 1}, "specularGlossinessTexture": {"index": 2}}
    sample = sample_of(tmp_path, square({"extensions": {"KHR_materials_pbrSpecularGlossiness": gloss}}, [black, shiny]))
    assert sample.uv is not None
    found = maps_of(sample).metallic_roughness.astype(int)
    assert np.abs(found[:, 4:60] - [255, 51]).max() <= 2 and np.abs(found[:, 68:124] - [0, 204]).max() <= 2
    colors = sample.uv.rgb.astype(int)
    assert (colors[:, 4:60] >= 253).all() and np.abs(colors[:, 68:124] - DIFFUSE_WITHOUT_GLOSS).max() <= 2


def test_a_new_layout_has_the_same_normals(tmp_path):
    """Tangent space follows the layout that is stored: views from the baked map are the proof."""
    rng = np.random.default_rng(1)
    slopes = rng.normal(0, 0.15, (4, 4, 2)).repeat(16, axis=0).repeat(16, axis=1)
    normals = np.dstack([slopes, np.ones(slopes.shape[:2])])
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)

    def change(builder: Builder) -> None:  # coordinates that repeat cannot be kept
        stored = np.array([[0, 2], [2, 2], [2, 0], [0, 0]], np.float32)
        attributes_of(builder)["TEXCOORD_0"] = builder.accessor(stored)

    sample = sample_of(tmp_path, square(dict(NORMAL), [coded(normals)], change))
    assert sample.mesh is not None and sample.mesh.layout != "authored"
    assert sample.meta["measurements"]["normal_error_deg"] < 1.5
    assert 5 < sample.meta["measurements"]["normal_strength_deg"] < 20


def test_damaged_maps_are_noted_and_left_out(tmp_path):
    builder = square(dict(NORMAL), [flat(coded(tilted((1, 0))))])
    builder.tree["textures"][1]["source"] = builder.image(b"\x89PNG\r\n\x1a\n damaged")
    (tmp_path / "asset.glb").write_bytes(builder.glb())
    (ref,) = folder(tmp_path)
    processed = process_asset(ref, CFG)
    assert [note.kind for note in processed.notes] == ["data_ignored"]
    assert processed.measurements.normal_strength_deg == 0


def test_without_materials_nothing_changes(tmp_path):
    """Fields, JSON and the record of the options; the shared fields are equal to the byte."""
    builder = square(dict(NORMAL), [flat(coded(tilted((1, 0))))])
    plain = encode(sample_of(tmp_path, builder, replace(CFG, materials=False)))
    whole = encode(sample_of(tmp_path, builder))
    assert set(plain) == set(fields_of(decode(plain).regime))
    assert {name for name in plain if plain[name] != whole[name]} == {"json"}
    assert not MATERIAL_MEASUREMENTS & decode(plain).meta["measurements"].keys()
    assert decode(whole).meta["measurements"].keys() > MATERIAL_MEASUREMENTS
    recorded = replace(CFG, materials=False).recorded()
    assert "materials" not in recorded and not [name for name in recorded["filter"] if "metallic" in name]
    assert CFG.recorded()["materials"] is True


def test_the_kernels_are_compiled_ahead_for_the_types_that_they_meet(tmp_path):
    sample_of(tmp_path, square(dict(NORMAL), [flat(coded(tilted((1, 0))))]))
    ahead = dict(kernels_of(["geometry.kernels.interpolate"]))
    for kernel in (bend_rows, tangent_rows, unit_rows):
        assert ahead[kernel] in kernel.signatures
