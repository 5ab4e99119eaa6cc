"""Layouts: kept where good, new where not, never with two places on one texel."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pipeline.unwrap.unwrap
from benchmarks.seams import seam_length
from geometry.raster_cpu import CpuRasterizer
from pipeline.filter.measure_mesh import measure, topology
from pipeline.mesh_io.load import load_mesh
from pipeline.render.uv_maps import rasterize_layout
from pipeline.unwrap.pack import pack
from pipeline.unwrap.unwrap import UnwrapConfig, unwrap
from pipeline.unwrap.uv_metrics import layout_stretch, signed_areas
from schemas.ledger import Reason, Rejected
from schemas.mesh import Material, TexturedMesh, UvMesh
from tests.support.small_gltf import box

pytestmark = pytest.mark.usefixtures("layout_kernels")

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


@pytest.mark.parametrize("resolution", [256, 1024])
def test_padding_keeps_charts_apart(resolution: int) -> None:
    """Between two charts lie at least the 2 texels asked for, whatever the size of the map."""
    mesh = replace(sphere(24, 48), face_has_uv=np.zeros(24 * 48 * 2, bool))
    found = unwrap(mesh, measure(mesh), CFG, resolution)
    assert isinstance(found, UvMesh)
    chart = topology(found).chart
    face = rasterize_layout(found, resolution, CpuRasterizer()).face[0]
    seen = np.where(face >= 0, chart[np.maximum(face, 0)], -1)
    assert len(np.unique(chart)) > 3
    for down in range(-2, 3):
        for right in range(3):
            near = np.roll(seen, (down, right), axis=(0, 1))[2:-2, 2:-2]
            here = seen[2:-2, 2:-2]
            assert not ((near != here) & (near >= 0) & (here >= 0)).any()


def bare(vertices: np.ndarray, faces: np.ndarray) -> TexturedMesh:
    """A mesh without texture coordinates."""
    return TexturedMesh(
        vertices=np.ascontiguousarray(vertices, np.float32),
        normals=np.tile(np.array([0, 0, 1], np.float32), (len(vertices), 1)),
        uv=np.zeros((len(vertices), 2), np.float32),
        colors=np.ones((len(vertices), 4), np.float32),
        faces=np.ascontiguousarray(faces, np.int32),
        face_material=np.zeros(len(faces), np.int32),
        face_has_uv=np.zeros(len(faces), bool),
        materials=(Material(),),
        textures=(),
    )


def moebius(columns: int = 100) -> TexturedMesh:
    angle, across = np.linspace(0, 2 * np.pi, columns, endpoint=False)[:, None], np.array([-0.2, 0.0, 0.2])
    radius = 1 + across * np.cos(angle / 2)
    points = np.stack([radius * np.cos(angle), radius * np.sin(angle), across * np.sin(angle / 2)], -1)
    here = np.arange(columns)[:, None] * 3 + np.array([0, 1])
    there, beyond = here + 3, here + 4
    there[-1], beyond[-1] = [2, 1], [1, 0]
    faces = np.stack([np.stack([here, there, here + 1], -1), np.stack([here + 1, there, beyond], -1)])
    return bare(points.reshape(-1, 3), faces.reshape(-1, 3))


def twice_both_ways() -> TexturedMesh:
    mesh = sphere(12, 24)
    return bare(mesh.vertices, np.concatenate([mesh.faces, mesh.faces, mesh.faces[:, ::-1]]))


def book(pages: int = 60) -> TexturedMesh:
    """All faces on one edge."""
    angle = np.arange(pages) / pages
    points = np.concatenate([[[0, 0, 0], [0, 0, 1]], np.stack([np.cos(angle), np.sin(angle), angle * 0], 1)])
    return bare(points, np.stack([angle * 0, angle * 0 + 1, np.arange(pages) + 2], 1))


def confetti(parts: int = 300) -> TexturedMesh:
    rng = np.random.default_rng(0)
    points = rng.random((parts, 1, 3)) + rng.normal(size=(parts, 3, 3)) * 0.01
    return bare(points.reshape(-1, 3), np.arange(3 * parts).reshape(-1, 3))


def crumpled(side: int = 30) -> TexturedMesh:
    """A height field of noise: hardly two faces look one way."""
    row, column = np.indices((side, side))
    height = np.random.default_rng(0).random((side, side)) * 5
    corner = (row * side + column)[:-1, :-1].reshape(-1, 1)
    faces = corner + np.array([[0, side, 1, 1, side, side + 1]])
    return bare(np.stack([row, column, height], -1).reshape(-1, 3), faces.reshape(-1, 3))


def ring(rows: int = 30, columns: int = 80) -> TexturedMesh:
    """A torus with bumps."""
    around = np.linspace(0, 2 * np.pi, columns, endpoint=False)
    across = np.linspace(0, 2 * np.pi, rows, endpoint=False)[:, None]
    tube = 0.3 + 0.06 * np.sin(9 * around) * np.cos(5 * across)
    radius = 0.65 + tube * np.cos(across)
    points = np.stack([radius * np.cos(around), radius * np.sin(around), tube * np.sin(across)], -1)
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c = index, np.roll(index, -1, 1), np.roll(index, -1, 0)
    faces = np.stack([np.stack([a, b, c], -1), np.stack([b, np.roll(b, -1, 0), c], -1)])
    return bare(points.reshape(-1, 3), faces.reshape(-1, 3))


def charts(uv_mesh: UvMesh) -> int:
    """Count the charts of the faces with area."""
    return len(np.unique(topology(uv_mesh).chart[signed_areas(uv_mesh.uv, uv_mesh.faces) != 0]))


@pytest.mark.parametrize("make", [moebius, twice_both_ways, book, confetti, crumpled])
def test_unfriendly_shapes_get_sound_layouts(make: Callable[[], TexturedMesh]) -> None:
    """Every face is laid flat face up, in a place of its own."""
    mesh = make()
    found = checked(mesh)
    corners = mesh.vertices[mesh.faces]
    doubled = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1)
    assert (signed_areas(found.uv, found.faces)[doubled > 1e-7] > 0).all()
    assert found.layout == "grown" and len(found.faces) == len(mesh.faces)


def test_more_charts_than_the_map_can_hold() -> None:
    mesh = confetti()
    found = unwrap(mesh, measure(mesh), CFG, resolution=32)
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_FAILED and "too many" in found.detail


def zigzags(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Charts as `pack` takes them: strips of one to seven triangles, of any length, width and turn."""
    rng = np.random.default_rng(seed)
    corners, places, first_vertex, first_face = [], [], [0], [0]
    for _ in range(count):
        triangles, width, length = int(rng.integers(1, 8)), rng.uniform(0.02, 0.6) ** 1.5, rng.uniform(0.1, 1)
        cos, sin = np.cos(angle := rng.uniform(0, 6)), np.sin(angle)
        wide = [width * (j % 2) + 0.3 * rng.random() * width for j in range(triangles + 2)]
        along = length * np.arange(triangles + 2) / triangles
        places.append(np.stack([along, wide], axis=1) @ np.array([[cos, -sin], [sin, cos]]))
        corners += [[first_vertex[-1] + j + k for k in range(3)] for j in range(triangles)]
        first_vertex.append(first_vertex[-1] + triangles + 2)
        first_face.append(first_face[-1] + triangles)
    faces, uv = np.array(corners), np.concatenate(places)
    (ax, ay), (bx, by) = ((uv[faces[:, k]] - uv[faces[:, 0]]).T for k in (1, 2))
    turned = ax * by - ay * bx < 0
    faces[turned] = faces[turned][:, [0, 2, 1]]
    return faces, np.array(first_vertex), np.arange(len(faces)), np.array(first_face), uv


@pytest.mark.parametrize(("seed", "count"), [(170, 14), *((seed, 4 + seed) for seed in range(40))])
def test_packing_always_finds_a_scale(seed: int, count: int) -> None:
    """Six guesses at the scale of the first one miss the map by a texel each."""
    for resolution in (96, 128, 160):
        placed = pack(*zigzags(seed, count), resolution, CFG.padding)
        assert placed is not None and placed.min() >= 0 and placed.max() <= 1


def test_xatlas_is_tried_before_an_asset_loses_its_map(monkeypatch: pytest.MonkeyPatch) -> None:
    """xatlas follows a layout that failed or is poor; never after a timeout, nor for meshes beyond its budget."""
    mesh = replace(sphere(8, 16), face_has_uv=np.zeros(256, bool))
    real = pipeline.unwrap.unwrap.grown_layout
    for squeeze, charts in ((1e-3, 1), (1.0, 0)):  # a poor one; one that could not be packed

        def ours(*arguments: object, squeeze: float = squeeze, charts: int = charts) -> dict[str, np.ndarray]:
            out = real(*arguments)  # type: ignore[arg-type]
            return out | {"uv": out["uv"] * np.float32([squeeze, 1]), "charts": np.array(charts)}

        monkeypatch.setattr(pipeline.unwrap.unwrap, "grown_layout", ours)
        assert checked(mesh, UnwrapConfig(max_stretch=10.0)).layout == "xatlas"
        lost = unwrap(mesh, measure(mesh), UnwrapConfig(max_rescue_faces=255))
        assert isinstance(lost, Rejected) and lost.detail.startswith("grown: ")
    both = unwrap(mesh, measure(mesh), UnwrapConfig(min_fill=1.0))
    assert isinstance(both, Rejected) and "grown: " in both.detail and "; xatlas: the layout is poor" in both.detail


def test_poor_layouts_are_refused() -> None:
    """A tape two hundred thousand times as long as wide covers nothing of a square."""
    along = np.repeat(np.arange(500.0), 2)
    corner = np.arange(0, 998, 2)[:, None]
    faces = (corner + np.array([[0, 2, 1, 2, 3, 1]])).reshape(-1, 3)
    mesh = bare(np.stack([along, np.tile([0, 2.5e-3], 500), along * 0], 1), faces)
    found = unwrap(mesh, measure(mesh), CFG)
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_POOR and "map are used" in found.detail
    for cfg in (UnwrapConfig(max_charts=1), UnwrapConfig(max_stretch=1.0)):
        mesh = replace(sphere(16, 32), face_has_uv=np.zeros(1024, bool))
        found = unwrap(mesh, measure(mesh), cfg)
        assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_POOR


def test_against_xatlas() -> None:
    """Up to the number asked for xatlas makes the layout; ours of a bumpy ring has fewer charts and shorter seams."""
    mesh = ring()
    ours = checked(mesh, UnwrapConfig(max_xatlas_faces=len(mesh.faces) - 1))
    theirs = checked(mesh, UnwrapConfig(max_xatlas_faces=len(mesh.faces), max_stretch=10.0))
    assert (ours.layout, theirs.layout) == ("grown", "xatlas")
    assert charts(ours) < charts(theirs) and seam_length(ours) < seam_length(theirs)


def test_stretch_of_known_layouts() -> None:
    """A square squeezed to the width w: its lengths grow by 1 / w and 1 on the way back, its area by 1 / w, so that
    sqrt(w * (1 / w^2 + 1) / 2) is left once the areas are made equal."""
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], np.float32)
    faces = np.array([[0, 1, 2], [1, 3, 2]], np.int32)
    for width, expected in ((1.0, 1.0), (0.5, 1.25**0.5), (0.25, (17 / 8) ** 0.5)):
        uv = square[:, :2] * np.array([width, 1], np.float32)
        assert layout_stretch(square, faces, uv) == pytest.approx(expected)


def test_seams_of_a_cube_with_six_charts(tmp_path: Path) -> None:
    """Twelve edges of side 1 over the root of six squares."""
    path = tmp_path / "box.glb"
    path.write_bytes(box().glb())
    mesh = load_mesh(path)
    assert isinstance(mesh, TexturedMesh)
    found = checked(mesh)
    assert charts(found) == 6  # a side is a sixth of the surface: none are sewn
    edge = np.ptp(mesh.vertices, axis=0)
    area = 2 * (edge[0] * edge[1] + edge[1] * edge[2] + edge[0] * edge[2])
    assert seam_length(found) == pytest.approx(4 * edge.sum() / area**0.5, rel=1e-5)


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
    monkeypatch.setattr(pipeline.unwrap.unwrap, "grown_layout", lambda *_: time.sleep(600))
    mesh = replace(sphere(4, 8), face_has_uv=np.zeros(64, bool))
    start = time.monotonic()
    found = unwrap(mesh, measure(mesh), UnwrapConfig(timeout_s=0.5))
    assert time.monotonic() - start < 5
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_BUDGET and "0.5 s" in found.detail


def test_xatlas_that_fails_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> dict[str, np.ndarray]:
        raise RuntimeError("no atlas")

    monkeypatch.setattr(pipeline.unwrap.unwrap, "xatlas_layout", broken)
    mesh = replace(sphere(4, 8), face_has_uv=np.zeros(64, bool))
    assert checked(mesh, UnwrapConfig(max_xatlas_faces=100)).layout == "grown"


@pytest.mark.parametrize("fault", ["charts", "nan", "faces", "outside"])
def test_silent_failures_are_noticed(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    real = pipeline.unwrap.unwrap.grown_layout

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

    monkeypatch.setattr(pipeline.unwrap.unwrap, "grown_layout", broken)
    mesh = replace(sphere(4, 8), face_has_uv=np.zeros(64, bool))
    found = unwrap(mesh, measure(mesh), UnwrapConfig(max_rescue_faces=0))
    assert isinstance(found, Rejected) and found.reason == Reason.UNWRAP_FAILED and found.detail
    assert checked(mesh, UnwrapConfig(max_stretch=10.0)).layout == "xatlas"
