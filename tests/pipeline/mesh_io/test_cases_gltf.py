"""glTF files as people's tools write them, with their right answers: `tests/data/cases/`, and kinds like them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import RigConfig, rig_cameras
from geometry.frames import bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.filter.measure_mesh import measure
from pipeline.filter.rules import FilterConfig, apply_rules
from pipeline.mesh_io.load import load_asset
from pipeline.mesh_io.preflight import AssetFacts, PreflightConfig
from pipeline.render.views import RenderConfig, render_views
from schemas.ledger import Note, NoteKind, Reason, Rejected
from schemas.mesh import TexturedMesh
from tests.support.small_gltf import BOX_FACES, CORNERS, QUADRANTS, Builder, box, loaded, png, primitive, refused

CASES = Path(__file__).resolve().parents[2] / "data" / "cases"
COLORS = {(-1, 1): (220, 40, 40), (1, 1): (40, 200, 60), (-1, -1): (50, 70, 220), (1, -1): (230, 210, 50)}
"""Quadrants of every side of the cube, by signs to the right and up, as seen from outside."""


def opened(path: Path, cfg: PreflightConfig | None = None) -> tuple[AssetFacts, TexturedMesh, dict[NoteKind, Note]]:
    found = load_asset(path, cfg or PreflightConfig())
    assert not isinstance(found, Rejected), found
    facts, mesh = found
    assert isinstance(mesh, TexturedMesh), mesh
    return facts, mesh, {note.kind: note for note in facts.notes}


def built(directory: Path, builder: Builder, cfg: PreflightConfig | None = None):
    path = directory / "asset.glb"
    path.write_bytes(builder.glb())
    return opened(path, cfg)


def sides_shown(mesh: TexturedMesh, center: tuple[float, float, float], half: float) -> int:
    """Pixels of the upright sides of a cube in the asset's frame; each has the right colour."""
    normalised, frame = normalise(mesh)
    cameras = rig_cameras(RigConfig(), *bounding_box(normalised.vertices, normalised.faces))
    views = render_views(normalised, cameras, RenderConfig(resolution=128), CpuRasterizer())
    count = 0
    for rgb, mask, position in zip(views.rgb, views.mask, views.position, strict=True):
        places = (frame.to_asset(position[mask]) - center) / half
        normal = np.where(np.abs(np.abs(places) - 1) < 2e-3, np.sign(places), 0.0)
        normal[:, 1] = 0.0
        right = (np.cross([0.0, 1.0, 0.0], normal) * places).sum(axis=1)
        inside = (np.abs(normal).sum(axis=1) == 1) & (np.abs(places) < 1.002).all(axis=1)
        across = np.abs(np.stack([right, places[:, 1]], axis=1))
        clear = inside & (across > 0.15).all(axis=1) & (across < 0.85).all(axis=1)
        for (x, y), color in COLORS.items():
            found = rgb[mask][clear & (np.sign(right) == x) & (np.sign(places[:, 1]) == y)].astype(int)
            count += len(found)
            assert (np.abs(found - color) <= 3).all(), (color, found[np.abs(found - color).max(axis=1).argmax()])
    return count


NOTES = {
    "g_bytestride_zero": {NoteKind.VALUE_CORRECTED: 3},
    "g_empty_primitive_beside": {NoteKind.PART_LEFT_OUT: 1},
    "g_inverted_hull_outline": {},
    "g_nan_in_unreferenced_vertex": {NoteKind.DATA_IGNORED: 1},
    "g_nan_in_unused_texcoord1": {},
    "g_null_optional_fields": {},
    "g_required_harmless_extensions": {},
    "g_strip_stitched": {},
    "g_textured_material_without_texcoord": {NoteKind.COORDINATES_MISSING: 12},
    "g_translation_1e7": {},
    "g_unused_mesh_broken": {},
}
"""Notes in the ledger on each case of a whole cube, and their counts."""


@pytest.mark.parametrize("name", NOTES)
def test_the_cube_is_seen_as_in_viewers(name: str) -> None:
    facts, mesh, notes = opened(CASES / f"{name}.glb")
    assert {kind: note.count for kind, note in notes.items()} == NOTES[name]
    assert facts.faces == len(mesh.faces) == (24 if name in TWO_BOXES else 12)
    assert apply_rules(measure(mesh, facts), FilterConfig()).rejected is None
    assert sides_shown(mesh, (1e7, 0, -1e7) if name == "g_translation_1e7" else (0, 0, 0), 0.5) > 10_000


TWO_BOXES = ("g_inverted_hull_outline", "g_textured_material_without_texcoord")


def test_a_part_without_coordinates_shows_the_corner_of_the_texture() -> None:
    _, mesh, notes = opened(CASES / "g_textured_material_without_texcoord.glb")
    assert "primitives[1] has a textured material but no TEXCOORD_0" in notes[NoteKind.COORDINATES_MISSING].detail
    rest = mesh.uv[mesh.faces[12:]]
    assert (rest == [0, 1]).all()  # (0, 0) in the file, where v points down


def test_a_room_is_looked_into() -> None:
    _, mesh, _ = opened(CASES / "g_room_single_sided_walls.glb")
    inner = mesh.vertices[mesh.faces[[m.texture is not None for m in np.array(mesh.materials)[mesh.face_material]]]]
    low, high = inner.reshape(-1, 3).min(axis=0), inner.reshape(-1, 3).max(axis=0)
    assert sides_shown(mesh, tuple((low + high) / 2), float((high - low)[0]) / 2) > 400


def test_a_sphere_far_away_is_as_exact_as_at_the_origin() -> None:
    facts, mesh, _ = opened(CASES / "g_translation_utm_sphere.glb")
    middle = np.array([500000.123, 100.5, 4649776.25])
    normalised, frame = normalise(mesh)
    radii = np.linalg.norm(frame.to_asset(normalised.vertices[normalised.faces.reshape(-1)]) - middle, axis=1)
    assert facts.faces == 2208 and np.abs(radii / 5 - 1).max() < 1e-6


# kinds like these


def second_part(builder: Builder, **changes: object) -> dict[str, object]:
    """A second primitive beside the box, of its own accessors."""
    attributes = {
        "POSITION": builder.accessor(CORNERS + 5),
        "TEXCOORD_0": builder.accessor(np.zeros((8, 2), np.float32)),
    }
    part = {"attributes": attributes, "indices": builder.accessor(BOX_FACES.reshape(-1)), "material": 0} | changes
    builder.tree["meshes"][0]["primitives"].append(part)
    return part


def _accessor(builder: Builder, key: str, **changes: object) -> None:
    part = second_part(builder)
    number = part["indices"] if key == "indices" else part["attributes"][key]
    builder.tree["accessors"][number].update(changes)


def _values(builder: Builder, key: str, values: np.ndarray) -> None:
    part = second_part(builder)
    part["attributes"][key] = builder.accessor(values)


BAD = np.full((8, 3), np.nan, np.float32)
BROKEN_PARTS: dict[str, Callable[[Builder], object]] = {
    "empty": lambda b: [_accessor(b, "POSITION", count=0)],
    "out of bounds": lambda b: _accessor(b, "POSITION", count=10_000),
    "index beyond": lambda b: second_part(b, indices=b.accessor(np.uint16([0, 1, 99]))),
    "signed indices": lambda b: second_part(b, indices=b.accessor(np.int16([0, 1, 2]))),
    "nan position": lambda b: _values(b, "POSITION", BAD),
    "nan coordinates": lambda b: _values(b, "TEXCOORD_0", BAD[:, :2]),
    "other count": lambda b: _values(b, "TEXCOORD_0", np.zeros((3, 2), np.float32)),
    "no such material": lambda b: second_part(b, material=9),
    "no such accessor": lambda b: second_part(b, attributes={"POSITION": 99}),
    "broken material": lambda b: [b.tree["materials"].append({"alphaMode": "SOLID"}), second_part(b, material=1)],
    "points": lambda b: second_part(b, mode=0),
    "no positions": lambda b: second_part(b, attributes={}),
    "broken draco": lambda b: second_part(
        b,
        extensions={"KHR_draco_mesh_compression": {"bufferView": b.view(b"DRACO no"), "attributes": {"POSITION": 0}}},
    ),
}


@pytest.mark.parametrize("name", BROKEN_PARTS)
def test_a_broken_part_costs_that_part(tmp_path: Path, name: str) -> None:
    builder = box()
    BROKEN_PARTS[name](builder)
    facts, mesh, notes = built(tmp_path, builder)
    assert len(mesh.faces) == facts.faces == 12 and set(notes) == {NoteKind.PART_LEFT_OUT}
    np.testing.assert_array_equal(mesh.vertices[mesh.faces], loaded(tmp_path, box()).vertices[mesh.faces])
    if name not in ("points", "no positions"):  # alone it is the reason
        builder.tree["meshes"][0]["primitives"].pop(0)
        assert refused(tmp_path, builder) is not Reason.NO_GEOMETRY


BROKEN_NODES: dict[str, dict[str, object]] = {
    "no such mesh": {"mesh": 7},
    "no such skin": {"mesh": 0, "skin": 3},
    "a transform of words": {"mesh": 0, "translation": ["a", "b", "c"]},
    "a child that is not there": {"children": [55]},
    "an endless transform": {"mesh": 0, "scale": [1e200, 1e200, 1e200]},
    "instances of nothing": {
        "mesh": 0,
        "extensions": {"EXT_mesh_gpu_instancing": {"attributes": {"TRANSLATION": 99}}},
    },
}


@pytest.mark.parametrize("name", BROKEN_NODES)
def test_a_broken_node_costs_that_node(tmp_path: Path, name: str) -> None:
    builder = box()
    builder.tree["nodes"].append(BROKEN_NODES[name])
    builder.tree["scenes"] = [{"nodes": [0, 1, 66]}]
    facts, mesh, notes = built(tmp_path, builder)
    lost = 3 if name == "a transform of words" else 2  # the node, the mesh there, and the scene's node 66
    assert len(mesh.faces) == facts.faces == 12 and notes[NoteKind.PART_LEFT_OUT].count == lost


def _unused(builder: Builder) -> None:
    """Broken things of every kind that nothing in the scene needs."""
    tree = builder.tree
    nan = builder.accessor(BAD)
    tree["accessors"].append({"bufferView": 999, "componentType": 1, "type": "VEC9", "count": -1})
    broken = len(tree["accessors"]) - 1
    tree["bufferViews"].append({"buffer": 44, "byteLength": -3})
    tree["meshes"].append({"primitives": [{"attributes": {"POSITION": broken}}]})
    tree["materials"].append({"pbrMetallicRoughness": {"baseColorTexture": {"index": 99}}})
    tree["skins"] = [{"joints": [99], "inverseBindMatrices": broken}]
    tree["animations"] = [{"channels": "none", "samplers": [{"input": broken}]}]
    tree["cameras"] = [{"type": 3}]
    tree["textures"].append({"source": 77})
    primitive(builder)["attributes"] |= {"_FEATURE_ID_0": broken, "TANGENT": broken, "TEXCOORD_3": broken}
    primitive(builder)["attributes"] |= {"JOINTS_0": broken, "WEIGHTS_0": nan, "COLOR_1": nan}
    primitive(builder)["targets"] = [{"POSITION": nan}, {"POSITION": broken}]


def test_what_nothing_needs_costs_nothing(tmp_path: Path) -> None:
    plain = loaded(tmp_path, box())
    builder = box()
    _unused(builder)
    facts, mesh, notes = built(tmp_path, builder)
    assert not notes and facts.faces == 12
    for name in ("vertices", "normals", "uv", "colors", "faces"):
        np.testing.assert_array_equal(getattr(mesh, name), getattr(plain, name))


def test_damaged_data_that_can_be_done_without_is_noted(tmp_path: Path) -> None:
    builder = box(textured=False)
    primitive(builder)["attributes"] |= {"TEXCOORD_0": builder.accessor(BAD[:, :2]), "NORMAL": 99}
    _, mesh, notes = built(tmp_path, builder)
    assert len(mesh.faces) == 12 and not mesh.face_has_uv.any()
    assert notes[NoteKind.DATA_IGNORED].count == 2


def test_limits_and_ways_out_reject_in_any_part(tmp_path: Path) -> None:
    builder = box()
    second_part(builder)
    builder.tree["accessors"][-1] |= {"count": 2**40}
    del builder.tree["accessors"][-1]["bufferView"]
    assert refused(tmp_path, builder) == Reason.TOO_LARGE
    builder = box()
    builder.tree["images"].append({"uri": "../../secret.png"})
    assert refused(tmp_path, builder) == Reason.UNSAFE_URI


def test_most_of_the_surface_needs_coordinates(tmp_path: Path) -> None:
    builder = box()
    part = second_part(builder)
    del part["attributes"]["TEXCOORD_0"]
    part["attributes"]["POSITION"] = builder.accessor(CORNERS * 3)
    assert refused(tmp_path, builder) == Reason.INVALID_STRUCTURE


@pytest.mark.parametrize(("mode", "corners"), [(5, [0, 1, 2, 3, 3, 4, 4, 5, 6, 7]), (6, [0, 1, 2, 2, 3])])
def test_joints_are_no_faces(tmp_path: Path, mode: int, corners: list[int]) -> None:
    builder = box()
    primitive(builder).update(mode=mode, indices=builder.accessor(np.uint16(corners)))
    facts, mesh, notes = built(tmp_path, builder)
    assert facts.faces == len(mesh.faces) == (4 if mode == 5 else 2) and not notes
    turned = np.roll(mesh.vertices[mesh.faces], 1, axis=1)
    assert (turned != mesh.vertices[mesh.faces]).any(axis=2).all()


def glowing(color: list[float], **material: object) -> Builder:
    """A box whose only picture is what it emits."""
    builder = box()
    look = {"pbrMetallicRoughness": {"baseColorFactor": color}, "emissiveFactor": [1, 1, 1]}
    builder.tree["materials"][0] = look | {"emissiveTexture": {"index": 0}} | material
    return builder


def test_emitted_light_stands_in_for_black(tmp_path: Path) -> None:
    plain = loaded(tmp_path, box())
    _, mesh, notes = built(tmp_path, glowing([0, 0, 0, 1]))
    assert mesh.materials == plain.materials and notes[NoteKind.IMAGE_REPLACED].count == 1
    np.testing.assert_array_equal(mesh.textures[0].image, plain.textures[0].image)
    np.testing.assert_array_equal(mesh.uv, plain.uv)
    off = PreflightConfig(emissive_as_base=False)
    _, mesh, notes = built(tmp_path, glowing([0, 0, 0, 1]), off)
    assert mesh.materials[0].base_color[:3] == (0, 0, 0) and mesh.materials[0].texture is None and not notes


def test_emitted_light_stands_in_for_a_black_picture(tmp_path: Path) -> None:
    builder = box()
    builder.tree["textures"].append({"source": builder.image(png(np.full((4, 4, 3), 2, np.uint8)))})
    look = {"pbrMetallicRoughness": {"baseColorTexture": {"index": 1}}, "emissiveFactor": [1, 0.5, 1]}
    builder.tree["materials"][0] = look | {"emissiveTexture": {"index": 0}}
    facts, mesh, _ = built(tmp_path, builder)
    assert mesh.materials[0].base_color == (1, 0.5, 1, 1) and facts.images == 1
    assert mesh.textures[0].image.shape == (8, 8, 4)
    del builder.tree["materials"][0]["emissiveTexture"]
    facts, mesh, _ = built(tmp_path, builder)
    assert mesh.materials[0].base_color == (1, 0.5, 1, 1) and mesh.materials[0].texture is None and facts.images == 0


@pytest.mark.parametrize(
    "builder",
    [
        glowing([0.2, 0, 0, 1]),
        glowing([0, 0, 0, 1], emissiveFactor=[0, 0, 0]),
        glowing([0, 0, 0, 1], emissiveTexture={"index": 0, "texCoord": 1}),
        glowing([0, 0, 0, 1], extensions={"KHR_materials_unlit": {}}),
    ],
    ids=["not black", "no light", "other coordinates", "unlit"],
)
def test_emitted_light_stays_where_it_is(tmp_path: Path, builder: Builder) -> None:
    _, mesh, notes = built(tmp_path, builder)
    assert mesh.materials[0].texture is None and not notes


def test_lit_views_count_that_light_once(tmp_path: Path) -> None:
    mesh = loaded(tmp_path, glowing([0, 0, 0, 1]), shading=True)
    assert mesh.materials[0].shading.emissive == (0, 0, 0) and mesh.materials[0].shading.emissive_texture is None


def test_extensions_that_change_the_shape_are_refused(tmp_path: Path) -> None:
    for name in ("KHR_accessor_float64", "EXT_mesh_primitive_restart", "EXT_texture_avif", "NV_materials_mdl", "X_y"):
        builder = box()
        builder.tree["extensionsRequired"] = ["KHR_node_selectability", name]
        assert refused(tmp_path, builder) == Reason.UNSUPPORTED_EXTENSION


def test_a_scene_that_is_not_there_is_the_first(tmp_path: Path) -> None:
    builder = box()
    builder.tree["scene"] = 8
    _, mesh, notes = built(tmp_path, builder)
    assert len(mesh.faces) == 12 and notes[NoteKind.VALUE_CORRECTED].count == 1
    assert QUADRANTS.shape == mesh.textures[0].image[..., :3].shape


def test_null_is_absent(tmp_path: Path) -> None:
    builder = box()
    nothing = dict.fromkeys(("name", "extensions", "extras", "matrix", "skin", "children", "weights", "scale"))
    builder.tree["nodes"][0] |= nothing
    builder.tree["materials"][0] |= dict.fromkeys(("alphaMode", "alphaCutoff", "doubleSided", "emissiveFactor"))
    primitive(builder).update(mode=None, targets=None)
    builder.tree |= dict.fromkeys(("skins", "cameras", "animations", "extensionsRequired"))
    _, mesh, notes = built(tmp_path, builder)
    assert not notes and mesh.materials == loaded(tmp_path, box()).materials


def test_single_sided_follows_mirrored_nodes(tmp_path: Path) -> None:
    """A mirroring node turns the winding round, so that the outside stays the outside."""
    plain, turned = box(), box()
    turned.tree["nodes"][0]["scale"] = [-1, 1, 1]
    seen = []
    for builder in (plain, turned):
        mesh, _ = normalise(loaded(tmp_path, builder))
        both = replace(mesh, materials=tuple(replace(m, double_sided=True) for m in mesh.materials))
        cameras = rig_cameras(RigConfig(), *bounding_box(mesh.vertices, mesh.faces))
        one, two = (render_views(m, cameras, RenderConfig(resolution=64), CpuRasterizer()) for m in (mesh, both))
        assert mesh.single_sided.all() and not both.single_sided.any()
        np.testing.assert_array_equal(one.rgb, two.rgb)
        seen.append(one.mask.sum())
    assert seen[0] == seen[1] > 4_000
