"""What becomes of each of the 47 real assets, up to the unwrap: the outcome that a person who sees them would give."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipeline.judge import JudgeConfig, judge
from pipeline.load import load_mesh
from pipeline.measure import measure
from pipeline.preflight import PreflightConfig, preflight
from pipeline.sources.folder import folder
from pipeline.unwrap import UnwrapConfig, unwrap
from schemas.ledger import Measurements, Reason, Rejected
from schemas.mesh import TexturedMesh

pytestmark = pytest.mark.assets

TEXTURED, MV_ONLY = "textured", "mv_only"
AUTHORED, GROWN = "authored", "grown"

EXPECTED: dict[str, tuple[str, str | Reason]] = {
    # one clean layout: kept
    "water_bottle_pbr.glb": (TEXTURED, AUTHORED),
    "water_bottle_meshopt_ktx2.glb": (TEXTURED, AUTHORED),
    "egyptian_cat_statue_webp.glb": (TEXTURED, AUTHORED),
    "htc_vive_controller.glb": (TEXTURED, AUTHORED),
    "magicleap2_controller_alpha.glb": (TEXTURED, AUTHORED),
    "exploding_barrel.glb": (TEXTURED, AUTHORED),
    "cannon_palette_texture.glb": (TEXTURED, AUTHORED),
    "cloth_115k_textured.glb": (TEXTURED, AUTHORED),  # 115k faces, but nothing to unwrap
    "lumberjack_skinned_pbr.glb": (TEXTURED, AUTHORED),
    "fox_skinned.glb": (TEXTURED, AUTHORED),
    "fuze_bottle_obj/fuze.obj": (TEXTURED, AUTHORED),
    # textured, layout of no use for baking: a new one
    "low_poly_tree.glb": (TEXTURED, GROWN),  # all faces on points of a palette
    "grey_snapper_vertex_color_and_texture.glb": (TEXTURED, GROWN),  # left and right share texels
    "vintage_desk_fan_skinned_animated.glb": (TEXTURED, GROWN),  # second tile
    "attenuation_test_tiled_uv.glb": (TEXTURED, GROWN),
    "knight_skinned_palette.glb": (TEXTURED, GROWN),
    "crossbow_gltf/crossbow_2handed.gltf": (TEXTURED, GROWN),
    "box_textured_tiled_uv.glb": (TEXTURED, GROWN),
    "texture_wrap_modes_uv_outside.glb": (TEXTURED, GROWN),
    "milk_truck_mixed_textured_untextured.glb": (TEXTURED, GROWN),
    "alpha_blend_mode_test.glb": (TEXTURED, GROWN),  # a chart of test pictures; odd, but coloured and mostly opaque
    "spot_cow_obj/spot_triangulated.obj": (TEXTURED, GROWN),  # a corner at u = -0.05
    "steampunk_robot_base_color_3mat.glb": (TEXTURED, GROWN),  # three materials, one square each
    # no texture, but several colours: the baked map is the texture
    "terrain_vertex_color_only.glb": (TEXTURED, GROWN),
    "alien_flat_materials.glb": (TEXTURED, GROWN),
    "japanese_bridge_meshopt_no_uv.glb": (TEXTURED, GROWN),
    "icosahedron_no_base_color_texture.glb": (TEXTURED, GROWN),  # two flat colours
    # textured, layouts overlap, more faces than the unwrap budget: views only
    "chess_board_179k_draco.glb": (MV_ONLY, Reason.UNWRAP_BUDGET),
    "flight_helmet_95k_multi_material.glb": (MV_ONLY, Reason.UNWRAP_BUDGET),
    # one colour, or none
    "vr_hand_skinned_no_texture.glb": ("rejected", Reason.UNTEXTURED),
    "underwater_scene_no_material.glb": ("rejected", Reason.UNTEXTURED),
    "rigged_figure_no_uv.glb": ("rejected", Reason.UNTEXTURED),
    "koala_100k_geometry.obj": ("rejected", Reason.UNTEXTURED),
    "dense_sphere_draco_no_material.glb": ("rejected", Reason.UNTEXTURED),
    "house_alpha_mask_nonmanifold.glb": ("rejected", Reason.UNTEXTURED),  # its one image is a mask on white
    # unsuited shapes
    "two_sided_plane_flat.glb": ("rejected", Reason.FLAT),
    "glass_table_blend_no_texture.glb": ("rejected", Reason.TRANSPARENT),  # three quarters of it is glass
    "empty_scene.glb": ("rejected", Reason.NO_GEOMETRY),
    # not readable
    "box_textured_gltf_1_0.glb": ("rejected", Reason.UNSUPPORTED_VERSION),
    # broken: the geometry is there, the base-colour image is not
    "carriage_130k_meshopt_missing_textures_gltf/scene.gltf": ("rejected", Reason.MISSING_FILE),
    "bad_empty_file.glb": ("rejected", Reason.EMPTY_FILE),
    "bad_invalid_magic.glb": ("rejected", Reason.NOT_A_MESH),
    "bad_truncated_chunk_data.glb": ("rejected", Reason.TRUNCATED),
    "bad_length_mismatch.glb": ("rejected", Reason.LENGTH_MISMATCH),
    "bad_invalid_json_chunk.glb": ("rejected", Reason.INVALID_JSON),
    "bad_index_out_of_range_gltf/index_buffer_oob.gltf": ("rejected", Reason.INDEX_OUT_OF_RANGE),
    "bad_truncated_download.glb": ("rejected", Reason.TRUNCATED),
}
"""Path: regime, and layout or reason. The round trip after baking may still turn a textured asset into views only."""


def outcome(path: Path) -> tuple[str, str | Reason, str, TexturedMesh | None, Measurements | None]:
    """Regime, layout or reason, detail, and what was loaded and measured on the way."""
    facts = preflight(path, PreflightConfig())
    if isinstance(facts, Rejected):
        return "rejected", facts.reason, facts.detail, None, None
    mesh = load_mesh(path)
    if isinstance(mesh, Rejected):
        return "rejected", mesh.reason, mesh.detail, None, None
    measurements = measure(mesh, facts)
    fault = judge(measurements, JudgeConfig()).fault
    if fault is not None:
        return "rejected", fault.reason, fault.detail, mesh, measurements
    uv_mesh = unwrap(mesh, measurements, UnwrapConfig())
    if isinstance(uv_mesh, Rejected):
        return MV_ONLY, uv_mesh.reason, uv_mesh.detail, mesh, measurements
    return TEXTURED, uv_mesh.layout, "", mesh, measurements


def test_the_table_is_complete(assets_dir: Path) -> None:
    records = json.loads((assets_dir / "assets.json").read_text())["assets"]
    assert {record["path"] for record in records} == set(EXPECTED) and len(EXPECTED) == 47
    found = list(folder(assets_dir))
    assert {str(Path(ref.uri).relative_to(assets_dir.resolve())) for ref in found} == set(EXPECTED)
    assert len({ref.uid for ref in found}) == 47
    digests = {file["path"]: file["sha256"] for record in records for file in record["files"]}
    for ref in found:
        assert ref.sha256 == digests[str(Path(ref.uri).relative_to(assets_dir.resolve()))]


@pytest.mark.parametrize("name", EXPECTED)
def test_outcome(assets_dir: Path, name: str) -> None:
    regime, why, detail, mesh, measurements = outcome(assets_dir / name)
    assert (regime, why) == EXPECTED[name], f"{detail}\n{measurements}"
    if regime != TEXTURED:
        assert detail
    record = next(r for r in json.loads((assets_dir / "assets.json").read_text())["assets"] if r["path"] == name)[
        "properties"
    ]
    if mesh is not None and record.get("faces_instanced") is not None:  # counted by another program
        assert len(mesh.faces) == record["faces_instanced"]
    if mesh is not None and record.get("bbox") and not record.get("skins") and "draco" not in name:
        box = np.stack([mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)])
        np.testing.assert_allclose(box, record["bbox"], atol=1e-3 * np.abs(record["bbox"]).max())
    if (
        measurements is not None
        and measurements.uv_overlap_share is not None
        and record.get("overlap_ratio") is not None
    ):
        assert measurements.uv_overlap_share == pytest.approx(record["overlap_ratio"], abs=0.02)
