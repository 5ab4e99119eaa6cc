"""Measurements against values known by construction, and every rule at its threshold."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.judge import JudgeConfig, judge, measure
from pipeline.load import load_mesh
from schemas.ledger import Measurements, Reason
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh
from tests.small_gltf import box

CFG = JudgeConfig()
SOUND = Measurements(
    faces=100, degenerate_share=0.0, flatness=0.5, transparent_share=0.0, distinct_colors=9, color_std=0.2
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"faces": 0}, Reason.NO_GEOMETRY),
        ({"faces": 12}, None),
        ({"faces": 11}, Reason.TOO_FEW_FACES),
        ({"faces": 500_000}, None),
        ({"faces": 500_001}, Reason.TOO_MANY_FACES),
        ({"degenerate_share": 0.26}, Reason.DEGENERATE),
        ({"flatness": 0.009}, Reason.FLAT),
        ({"flatness": 0.009, "faces": 2}, Reason.FLAT),
        ({"transparent_share": 0.51}, Reason.TRANSPARENT),
        ({"distinct_colors": 1}, Reason.UNTEXTURED),
        ({"distinct_colors": 2}, None),
        ({"color_std": 0.009}, Reason.UNTEXTURED),
        ({"degenerate_share": None, "flatness": None, "distinct_colors": None}, None),
    ],
)
def test_rules(change: dict[str, float | int | None], reason: Reason | None) -> None:
    verdict = judge(replace(SOUND, **change), CFG)
    assert (verdict.reason if verdict else None) == reason


def test_details_name_value_and_threshold() -> None:
    verdict = judge(replace(SOUND, faces=600_000), CFG)
    assert verdict is not None and "600,000" in verdict.detail and "500,000" in verdict.detail


def test_thresholds_come_from_the_config() -> None:
    assert judge(replace(SOUND, faces=600_000), JudgeConfig(max_faces=10**6)) is None


@pytest.fixture
def cube(tmp_path: Path) -> TexturedMesh:
    path = tmp_path / "box.glb"
    path.write_bytes(box().glb())
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh)
    return mesh


def painted(mesh: TexturedMesh, texel: np.ndarray, **material: object) -> TexturedMesh:
    image = np.ascontiguousarray(np.broadcast_to(np.asarray(texel, np.uint8), (16, 16, 4)))
    return replace(mesh, textures=(Texture(image=image),), materials=(Material(texture=0, **material),))  # type: ignore[arg-type]


def test_cube(cube: TexturedMesh) -> None:
    m = measure(cube)
    assert (m.faces, m.vertices, m.parts, m.materials, m.textures, m.texture_side_max) == (12, 36, 1, 1, 1, 8)
    assert m.degenerate_share == 0 and m.flatness == pytest.approx(1) and m.transparent_share == 0
    assert m.uv_faces_share == 1 and m.uv_outside_share == 0
    # front and back show the whole picture on the same texels; the four other sides are lines in the layout
    assert m.uv_overlap_share == pytest.approx(1)
    assert m.uv_degenerate_share == pytest.approx(4 / 6)
    assert m.distinct_colors is not None and m.distinct_colors >= 4
    assert judge(m, CFG) is None


def test_grey_never_slips_in(cube: TexturedMesh) -> None:
    """A texture of one colour; the same with JPEG-like noise across a quantisation step; no texture; white vertices."""
    noise = np.random.default_rng(0).integers(126, 131, (16, 16, 1), np.uint8)
    noisy = np.concatenate([np.repeat(noise, 3, axis=2), np.full((16, 16, 1), 255, np.uint8)], axis=2)
    plain = replace(cube, textures=(), materials=(Material(base_color=(0.5, 0.5, 0.5, 1.0)),))
    for grey in (painted(cube, [128, 128, 128, 255]), painted(cube, noisy), plain):
        verdict = judge(measure(grey), CFG)
        assert verdict is not None and verdict.reason == Reason.UNTEXTURED, verdict


def test_colour_without_textures_counts(cube: TexturedMesh) -> None:
    """Two flat materials, and vertex colours: both are something to learn."""
    red, blue = Material(base_color=(0.8, 0.1, 0.1, 1.0)), Material(base_color=(0.1, 0.1, 0.8, 1.0))
    two = replace(cube, textures=(), materials=(red, blue), face_material=np.arange(12, dtype=np.int32) % 2)
    m = measure(two)
    assert m.distinct_colors == 2 and judge(m, CFG) is None
    colors = np.ones_like(cube.colors)
    colors[:, 0] = (cube.vertices[:, 1] + 1) / 2
    shaded = replace(cube, textures=(), materials=(Material(),), colors=colors)
    assert judge(measure(shaded), CFG) is None


def test_a_colour_weighs_by_its_area(cube: TexturedMesh) -> None:
    """One face of twelve, all of one size, is red on white: std of the two other channels is sqrt(p (1 - p))."""
    red = Material(base_color=(1.0, 0.0, 0.0, 1.0))
    which = np.zeros(12, np.int32)
    which[5] = 1
    m = measure(replace(cube, textures=(), materials=(Material(), red), face_material=which))
    share = 1 / 12
    assert m.color_std == pytest.approx(2 / 3 * np.sqrt(share * (1 - share)), rel=1e-3)


def test_transparency(cube: TexturedMesh) -> None:
    glass = measure(painted(cube, [255, 0, 0, 40], alpha_mode=AlphaMode.BLEND))
    assert glass.transparent_share == 1
    verdict = judge(glass, CFG)
    assert verdict is not None and verdict.reason == Reason.TRANSPARENT
    assert measure(painted(cube, [255, 0, 0, 40])).transparent_share == 0  # opaque materials ignore alpha


def test_degenerate_faces_and_parts(cube: TexturedMesh) -> None:
    far = replace(
        cube,
        vertices=np.concatenate([cube.vertices, cube.vertices + np.float32(9)]),
        normals=np.tile(cube.normals, (2, 1)),
        uv=np.tile(cube.uv, (2, 1)),
        colors=np.tile(cube.colors, (2, 1)),
        faces=np.concatenate([cube.faces, cube.faces + 36, [[0, 0, 0]] * 12]).astype(np.int32),
        face_material=np.zeros(36, np.int32),
        face_has_uv=np.ones(36, bool),
    )
    m = measure(far)
    assert m.parts == 2 and m.degenerate_share == pytest.approx(1 / 3)
    verdict = judge(m, CFG)
    assert verdict is not None and verdict.reason == Reason.DEGENERATE


def test_all_degenerate_does_not_raise(cube: TexturedMesh) -> None:
    m = measure(replace(cube, vertices=np.zeros_like(cube.vertices)))
    verdict = judge(m, CFG)
    assert verdict is not None and verdict.reason == Reason.DEGENERATE
    tiny = measure(replace(cube, vertices=cube.vertices * np.float32(1e-30)))
    assert judge(tiny, CFG) is None  # size does not matter
    huge = measure(replace(cube, vertices=cube.vertices * np.float32(1e29)))
    assert judge(huge, CFG) is None
