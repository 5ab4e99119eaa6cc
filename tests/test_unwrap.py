"""Layouts: kept where good, new where not, never with two places on one texel."""

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipeline.unwrap
from geometry.raster_cpu import CpuRasterizer
from pipeline.bake import rasterize_layout
from pipeline.load import load_mesh
from pipeline.measure import measure
from pipeline.unwrap import UnwrapConfig, unwrap
from schemas.ledger import Reason, Rejected
from schemas.mesh import Material, TexturedMesh, UvMesh
from tests.small_gltf import box

CFG = UnwrapConfig()


def sphere(rows: int, columns: int) -> TexturedMesh:
    """Latitudes and longitudes; layout and seam as one expects (equirectangular)."""
    v, u = np.meshgrid(np.linspace(0, 1, rows + 1), np.linspace(0, 1, columns + 1), indexing="ij")
    theta, phi = (1 - v) * np.pi, u * 2 * np.pi
    points = np.stack([np.sin(theta) * np.cos(phi), np.cos(theta), np.sin(theta) * np.sin(phi)], axis=-1)
    points[:, -1] = points[:, 0]  # the seam closes to the bit
    corner = np.arange(rows * (columns + 1)).reshape(rows, columns + 1)[:, :-1].reshape(-1)
    up = corner + columns + 1
    faces = np.concatenate([np.stack([corner, up, corner + 1], 1), np.stack([corner + 1, up, up + 1], 1)])
    vertices = points.reshape(-1, 3).astype(np.float32)
    return TexturedMesh(
        vertices=vertices,
        normals=vertices,
        uv=np.stack([u, v], axis=-1).reshape(-1, 2).astype(np.float32),
        colors=np.ones((len(vertices), 4), np.float32),
        faces=faces.astype(np.int32),
        face_material=np.zeros(len(faces), np.int32),
        face_has_uv=np.ones(len(faces), bool),
        materials=(Material(),),
        textures=(),
    )


def checked(mesh: TexturedMesh, cfg: UnwrapConfig = CFG) -> UvMesh:
    """Unwrapped, with what must hold of every layout."""
    found = unwrap(mesh, measure(mesh), cfg)
    assert isinstance(found, UvMesh), found
    np.testing.assert_array_equal(found.vertices[found.faces], mesh.vertices[mesh.faces])
    np.testing.assert_array_equal(found.normals[found.faces], mesh.normals[mesh.faces])
    assert found.uv.min() >= 0 and found.uv.max() <= 1
    rasterizer = CpuRasterizer()
    front = rasterize_layout(found, 1024, rasterizer)
    u, v = found.uv.T
    clip = np.stack([2 * u - 1, 1 - 2 * v, np.zeros_like(u), np.ones_like(u)], axis=-1)[None]
    behind = rasterizer.rasterize(clip, found.faces, 1024, 1024, behind=front)
    assert (behind.face >= 0).sum() <= 0.01 * (front.face >= 0).sum()
    return found


def test_good_layout_is_kept() -> None:
    mesh = sphere(16, 32)
    found = checked(mesh)
    assert found.layout == "authored"
    np.testing.assert_array_equal(found.uv, mesh.uv)


def test_a_hair_outside_is_clipped() -> None:
    mesh = sphere(16, 32)
    found = checked(replace(mesh, uv=mesh.uv * np.float32(1.0005)))
    assert found.layout == "authored"


@pytest.mark.parametrize("fault", ["tiled", "mirrored", "missing", "palette"])
def test_bad_layouts_are_replaced(fault: str) -> None:
    mesh = sphere(16, 32)
    uv, has_uv = mesh.uv.copy(), mesh.face_has_uv.copy()
    if fault == "tiled":
        uv *= 3
    elif fault == "mirrored":
        uv[:, 0] = np.abs(uv[:, 0] * 2 - 1)
    elif fault == "missing":
        has_uv[-1] = False
    else:
        uv[:] = np.round(uv * 4) / 400  # every face on a point or a line of a palette
    found = checked(replace(mesh, uv=uv, face_has_uv=has_uv))
    assert found.layout == "grown"


def test_new_layout_has_room_and_whole_charts() -> None:
    """A sphere needs few charts and fills more than a third of the map: welding joined its seam and poles."""
    mesh = replace(sphere(24, 48), face_has_uv=np.zeros(24 * 48 * 2, bool))
    split = replace(  # as an exporter without shared vertices writes it
        mesh,
        vertices=mesh.vertices[mesh.faces].reshape(-1, 3),
        normals=mesh.normals[mesh.faces].reshape(-1, 3),
        uv=mesh.uv[mesh.faces].reshape(-1, 2),
        colors=np.ones((mesh.faces.size, 4), np.float32),
        faces=np.arange(mesh.faces.size, dtype=np.int32).reshape(-1, 3),
    )
    for variant in (mesh, split):
        found = checked(variant)
        covered = rasterize_layout(found, 1024, CpuRasterizer()).face >= 0
        assert covered.mean() > 0.33
        places = np.unique(np.concatenate([found.vertices, found.uv], axis=1), axis=0)
        assert len(places) < 1.5 * len(mesh.vertices)  # 6 per vertex if faces were apart


def test_padding_keeps_charts_apart(tmp_path: Path) -> None:
    """The sides of a box are charts of their own: between two of them lie at least the 2 texels asked for."""
    path = tmp_path / "box.glb"
    path.write_bytes(box().glb())
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh)
    found = checked(mesh)
    assert found.layout == "grown"
    face = rasterize_layout(found, 1024, CpuRasterizer()).face[0]
    side = np.where(face >= 0, np.abs(mesh.normals[mesh.faces[np.maximum(face, 0)]]).argmax(axis=-1)[..., 0], -1)
    for axis in (0, 1):
        a, b = (np.roll(side, -1, axis), side)
        assert not ((a != b) & (a >= 0) & (b >= 0)).any()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e20])
def test_size_does_not_matter(scale: float) -> None:
    mesh = sphere(8, 16)
    mesh = replace(mesh, vertices=mesh.vertices * np.float32(scale), face_has_uv=np.zeros(len(mesh.faces), bool))
    assert checked(mesh).layout == "grown"


def test_same_bits_every_time() -> None:
    mesh = replace(sphere(16, 32), face_has_uv=np.zeros(1024, bool))
    first, second = checked(mesh), checked(mesh)
    np.testing.assert_array_equal(first.uv, second.uv)
    np.testing.assert_array_equal(first.faces, second.faces)


def test_degenerate_faces_stay_in_their_place() -> None:
    mesh = sphere(8, 16)
    faces = mesh.faces.copy()
    faces[[0, 57, -1]] = [[3, 3, 3], [20, 20, 21], [40, 41, 40]]
    found = checked(replace(mesh, faces=faces, face_has_uv=np.zeros(len(faces), bool)))
    assert len(found.faces) == len(faces)


def test_nothing_but_degenerate_faces() -> None:
    mesh = sphere(4, 8)
    mesh = replace(mesh, vertices=np.zeros_like(mesh.vertices), face_has_uv=np.zeros(len(mesh.faces), bool))
    found = unwrap(mesh, measure(mesh), CFG)
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_FAILED


def test_budget_in_faces() -> None:
    mesh = replace(sphere(16, 32), face_has_uv=np.zeros(1024, bool))
    found = unwrap(mesh, measure(mesh), UnwrapConfig(max_faces=1023))
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_BUDGET
    assert "1,024" in found.detail and "1,023" in found.detail


def test_budget_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that hangs for ever is killed, and the asset keeps its views."""
    monkeypatch.setattr(pipeline.unwrap, "grown_layout", lambda *_: time.sleep(600))
    mesh = replace(sphere(4, 8), face_has_uv=np.zeros(64, bool))
    start = time.monotonic()
    found = unwrap(mesh, measure(mesh), UnwrapConfig(timeout_s=0.5))
    assert time.monotonic() - start < 5
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_BUDGET and "0.5 s" in found.detail


@pytest.mark.parametrize("fault", ["charts", "nan", "faces", "outside"])
def test_silent_failures_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    real = pipeline.unwrap.grown_layout

    def broken(*arguments: object) -> dict[str, np.ndarray]:
        out = real(*arguments)  # type: ignore[arg-type]
        if fault == "charts":
            out["charts"] = np.array(0)
        elif fault == "nan":
            out["uv"][3] = np.nan
        elif fault == "faces":
            out["faces"] = out["faces"][::-1].copy()
        else:
            out["uv"][3] = 1.5
        return out

    monkeypatch.setattr(pipeline.unwrap, "grown_layout", broken)
    mesh = replace(sphere(4, 8), face_has_uv=np.zeros(64, bool))
    found = unwrap(mesh, measure(mesh), CFG)
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_FAILED and found.detail
