"""Blender as a child: whatever it does the answer is a value; what it makes of an asset is the asset."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import seqtex4
from geometry.image_metrics import capped_psnr
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import sample_image
from pipeline.asset import process_asset
from pipeline.blender.host import BlenderConfig, convert, run_worker, tried
from pipeline.config import BuildConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.mesh_io.write_glb import write_glb
from pipeline.render.cycles import describe, read_views, render_cycles, scene
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, render_views, wear
from pipeline.sources.folder import folder, passed_over
from schemas.codec import encode
from schemas.errors import UserError
from schemas.ledger import Reason, Rejected
from schemas.mesh import AlphaMode, Material, MeshRef, Texture, TexturedMesh, UvMesh, Wrap

REPO = Path(__file__).resolve().parents[3]
MAX_BYTES = 1 << 20
COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8)


@pytest.fixture(scope="module")
def blender() -> BlenderConfig:
    python = os.environ.get("SEQTEX_BLENDER", str(REPO / ".venv-blender/bin/python"))
    if not os.access(python, os.X_OK):
        pytest.skip(f"no Blender at {python}: run `make blender` (or set SEQTEX_BLENDER) to run this test")
    return BlenderConfig(python=python, samples=4)


@pytest.fixture(scope="module")
def formats(blender, tmp_path_factory) -> Path:
    """A box in every format, and scenes with a snag."""
    path = tmp_path_factory.mktemp("formats") / "assets"
    path.mkdir()
    write_glb(path / "box.glb", *box(), None)
    in_blender(blender, str(path / "box.glb"), str(path))
    return path


def in_blender(cfg: BlenderConfig, *arguments: str) -> None:
    command = [cfg.python, "-I", str(REPO / "tests/support/blender_formats.py"), *arguments]
    subprocess.run(command, check=True, capture_output=True, timeout=100)


def box() -> tuple[UvMesh, np.ndarray]:
    """Sides 1, 2, 3 along x, y, z, centred; each of its sides has its own colour, an area in one texture."""
    points, normals, uv, image = [], [], [], np.zeros((32, 48, 3), np.uint8)
    for side in range(6):
        axis, sign = side // 2, 1 - 2 * (side % 2)
        column, row = 16 * (side % 3), 16 * (side // 3)
        image[row : row + 16, column : column + 16] = COLORS[side]
        for right, up in ((-1, -1), (1, -1), (1, 1), (-1, 1)):
            point = np.zeros(3)
            point[[axis, (axis + 1) % 3, (axis + 2) % 3]] = sign, right * sign, up
            points.append(point * (0.5, 1.0, 1.5))
            normals.append(np.eye(3)[axis] * sign)
            uv.append(((column + 8 + 4 * right) / 48, 1 - (row + 8 + 4 * up) / 32))
    first = np.arange(0, 24, 4)[:, None]
    faces = np.concatenate([first + np.array([0, 1, 2]), first + np.array([0, 2, 3])])
    arrays = [np.array(x, np.float32) for x in (points, normals, uv)]
    mesh = UvMesh(vertices=arrays[0], normals=arrays[1], uv=arrays[2], faces=faces.astype(np.int32), layout="authored")
    return mesh, image


def side_colors(mesh: TexturedMesh) -> dict[tuple[int, ...], tuple[int, ...]]:
    """Texture colour at the middle of each face, by the direction that the face looks in."""
    corners = mesh.vertices[mesh.faces]
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    image = mesh.textures[0].image[..., :3]
    colors = sample_image(image, mesh.uv[mesh.faces].mean(axis=1))
    return {tuple(n.round().astype(int)): tuple(c.round().astype(int)) for n, c in zip(normals, colors, strict=True)}


# a worker that misbehaves


def pretender(tmp_path: Path, body: str) -> BlenderConfig:
    """A configuration whose interpreter runs `body`, with `answer` the path that an answer belongs to."""
    path = tmp_path / "python"
    head = "import json, os, sys, time\nanswer = json.load(open(sys.argv[3]))['answer']\n"
    path.write_text(f"#!{sys.executable}\n{head}{body}\n")
    path.chmod(0o755)
    return BlenderConfig(python=str(path), timeout_s=30.0)


@pytest.mark.parametrize(
    ("body", "reason", "words"),
    [
        ("sys.exit('out of luck')", Reason.BLENDER_FAILED, "out of luck"),
        ("os.abort()", Reason.BLENDER_FAILED, "SIGABRT"),
        ("pass", Reason.BLENDER_FAILED, "FileNotFoundError"),
        ("open(answer, 'wb').write(b'\\xff\\x00{]')", Reason.BLENDER_FAILED, "answer"),
        ("open(answer, 'w').write('[' * 100_000)", Reason.BLENDER_FAILED, "answer"),
        ("open(answer, 'w').write('{\"results\": []}')", Reason.BLENDER_FAILED, "0 results for 1"),
        ("json.dump({'results': [{'fault': ['nonsense', '']}]}, open(answer, 'w'))", Reason.BLENDER_FAILED, "nonsense"),
        ("json.dump({'results': [{'fault': ['bad_image', 'x']}]}, open(answer, 'w'))", Reason.BAD_IMAGE, "x"),
        ("b = bytearray(10 << 30)", Reason.MEMORY_LIMIT, "GiB"),
    ],
)
def test_a_worker_that_fails_is_a_value(tmp_path, body, reason, words):
    answer = run_worker([{"command": "convert"}], pretender(tmp_path, body))
    assert isinstance(answer, Rejected)
    assert (answer.reason, words in answer.detail) == (reason, True), answer


def test_a_worker_that_hangs_is_stopped_with_its_descendants(tmp_path):
    pid = tmp_path / "pid"
    cfg = pretender(tmp_path, f"if os.fork() == 0: open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    answer = run_worker([{"command": "convert"}], BlenderConfig(python=cfg.python, timeout_s=2.0))
    assert isinstance(answer, Rejected)
    assert answer.reason is Reason.TIMEOUT
    for _ in range(100):  # killed; whoever adopted it may take a moment to bury it
        status = Path(f"/proc/{pid.read_text()}/stat")
        if not status.exists() or status.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("a descendant of the worker lives on")


def test_a_worker_sees_nothing_of_ours(tmp_path, monkeypatch):
    monkeypatch.setenv("CANARY", "secret")
    told = tmp_path / "environment"
    run_worker([], pretender(tmp_path, f"json.dump(dict(os.environ), open({str(told)!r}, 'w'))"))
    assert "HOME" in told.read_text()
    assert "secret" not in told.read_text()
    assert str(Path.home()) not in told.read_text()


def test_a_conversion_without_a_file_is_a_failure(tmp_path):
    asset = tmp_path / "chair.fbx"
    said = "{'blender': '0', 'start_s': 0, 'results': [{'fault': None, 'seconds': {}}]}"
    cfg = pretender(tmp_path, f"json.dump({said}, open(answer, 'w'))")
    target = tmp_path / "made.glb"
    assert convert(asset, target, cfg, MAX_BYTES) == Rejected(reason=Reason.MISSING_FILE, detail="no file 'chair.fbx'")
    asset.touch()
    assert convert(asset, target, cfg, MAX_BYTES) == Rejected(reason=Reason.EMPTY_FILE, detail="file has 0 bytes")
    asset.write_bytes(bytes(100))
    assert convert(asset, target, cfg, 99) == Rejected(reason=Reason.TOO_LARGE, detail="100 bytes, limit 99")
    answer = convert(asset, target, cfg, MAX_BYTES)
    assert isinstance(answer, Rejected)
    assert answer.reason is Reason.BLENDER_FAILED


def test_no_blender_is_told_before_a_build(tmp_path):
    with pytest.raises(UserError, match="make blender"):
        tried(BlenderConfig(python=str(tmp_path / "nothing")))
    with pytest.raises(UserError, match=r"No module named .bpy"):
        tried(BlenderConfig(python=sys.executable))
    assert tried(BlenderConfig()) == BlenderConfig()


def test_a_folder_says_what_it_passes_over(tmp_path):
    for name in ("a.glb", "b.FBX", "c/d.fbx", "c/e.x3d", "f.png", "g.usd", "h.stl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [Path(ref.uri).name for ref in folder(tmp_path)] == ["a.glb", "h.stl"]
    assert passed_over(tmp_path).startswith("2 .fbx, 1 .usd, 1 .x3d; .fbx .usd can be read through Blender")
    listed = [Path(ref.uri).name for ref in folder(tmp_path, blender=True)]
    assert listed == ["a.glb", "b.FBX", "d.fbx", "g.usd", "h.stl"]
    assert passed_over(tmp_path, blender=True) == "1 .x3d"
    without = process_asset(MeshRef(uid="b", uri=str(tmp_path / "b.FBX")), BuildConfig())
    assert isinstance(without.result, Rejected)
    assert without.result.reason is Reason.NEEDS_BLENDER


# Blender itself


@pytest.mark.parametrize("suffix", ["fbx", "blend", "usda", "usdz"])
def test_a_textured_box_survives_conversion(formats, blender, tmp_path, suffix):
    made = convert(formats / f"box.{suffix}", tmp_path / "made.glb", blender, MAX_BYTES)
    assert isinstance(made, Path), made
    mesh, source = load_mesh(made), load_mesh(formats / "box.glb")
    assert isinstance(mesh, TexturedMesh)
    assert isinstance(source, TexturedMesh)
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), np.ptp(source.vertices, axis=0), atol=1e-5)
    assert len(mesh.faces) == 12
    assert side_colors(mesh) == side_colors(source)
    assert len(set(side_colors(source).values())) == 6


def test_alembic_and_ply_carry_shape_coordinates_and_vertex_colours(formats, blender, tmp_path):
    made = convert(formats / "box.abc", tmp_path / "abc.glb", blender, MAX_BYTES)
    assert isinstance(made, Path), made
    mesh, source = load_mesh(made), load_mesh(formats / "box.glb")
    assert isinstance(mesh, TexturedMesh)
    assert isinstance(source, TexturedMesh)
    assert mesh.face_has_uv.all()
    rows = [{tuple(row) for row in np.hstack([m.vertices, m.uv]).round(4).tolist()} for m in (mesh, source)]
    assert rows[0] == rows[1]


def test_scripts_of_a_file_are_not_run(formats, blender, tmp_path):
    marks = [formats / "script-ran", formats / "driver-ran"]
    in_blender(blender, "--trusting", str(formats / "scripted.blend"))
    assert all(mark.exists() for mark in marks), "the trap is not set: nothing would be proven"
    for mark in marks:
        mark.unlink()
    assert isinstance(convert(formats / "scripted.blend", tmp_path / "made.glb", blender, MAX_BYTES), Path)
    assert not any(mark.exists() for mark in marks)


def test_what_would_be_rendered_is_converted(formats, blender, tmp_path):
    """A doubled box, one instance of it 10 away, nothing of the hidden ones 50 away."""
    made = convert(formats / "composed.blend", tmp_path / "made.glb", blender, MAX_BYTES)
    assert isinstance(made, Path), made
    mesh = load_mesh(made)
    assert isinstance(mesh, TexturedMesh)
    assert len(mesh.faces) == 3 * 12
    np.testing.assert_allclose(np.ptp(mesh.vertices, axis=0), (2, 3, 12), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("noisy.blend", Reason.UNSUPPORTED_MATERIAL),
        ("lost.blend", Reason.MISSING_FILE),
        ("outside.blend", Reason.UNSAFE_URI),
        ("broken.blend", Reason.BAD_IMAGE),
        ("emptied.blend", Reason.NO_GEOMETRY),
    ],
)
def test_what_blender_would_pass_in_silence_is_a_fault(formats, blender, tmp_path, name, reason):
    if not (path := formats / name).exists():
        path = tmp_path / name
        path.write_bytes(b"no asset")
    answer = convert(path, tmp_path / "made.glb", blender, MAX_BYTES)
    assert isinstance(answer, Rejected)
    assert answer.reason is reason, answer


def test_the_same_sample_on_repeat(formats, blender):
    cfg = BuildConfig(blender=blender, views=RenderConfig(resolution=32), uv=BakeConfig(resolution=128))
    ref = MeshRef(uid="box", uri=str(formats / "box.fbx"))
    first, second = (process_asset(ref, cfg) for _ in range(2))
    assert not isinstance(first.result, Rejected), first.result
    assert not isinstance(second.result, Rejected)
    assert encode(first.result) == encode(second.result)
    assert first.result.meta["source"]["uri"] == "box.fbx"
    assert first.measurements.bytes == (formats / "box.fbx").stat().st_size


def holed_mesh() -> TexturedMesh:
    """The box, its texture repeated, mirrored and clamped, with holes, a factor and vertex colours."""
    uv_mesh, image = box()
    plain = wear(uv_mesh, image)
    alpha = np.full((32, 48, 1), 255, np.uint8)
    alpha[12:20, 4:12] = 0
    textures = [
        Texture(image=np.concatenate([image, alpha], axis=-1), wrap_u=u, wrap_v=v)
        for u, v in ((Wrap.REPEAT, Wrap.REPEAT), (Wrap.MIRROR, Wrap.CLAMP), (Wrap.CLAMP, Wrap.REPEAT))
    ]
    materials = [
        Material(texture=number, base_color=(1.0, 0.5, 1.0, 1.0), alpha_mode=AlphaMode.MASK) for number in range(3)
    ]
    colors = np.linspace(0.3, 1.0, 24, dtype=np.float32)[:, None] * np.ones(4, np.float32)
    colors[:, 3] = 1.0
    return TexturedMesh(
        vertices=plain.vertices / np.float32(1.5),
        normals=plain.normals,
        uv=plain.uv * 2.5 - 0.7,
        colors=colors,
        faces=plain.faces,
        face_material=np.repeat([0, 1, 2], 4).astype(np.int32),
        face_has_uv=np.arange(12) > 0,
        materials=tuple(materials),
        textures=tuple(textures),
    )


def test_cycles_shows_what_the_rasteriser_shows(blender, tmp_path):
    """Unlit, the two renderers agree in shape, holes, wrap modes, factors and vertex colours."""
    mesh = holed_mesh()
    cameras = seqtex4(mesh.vertices.min(axis=0), mesh.vertices.max(axis=0))
    views = render_views(mesh, cameras, RenderConfig(resolution=128, supersample=4), CpuRasterizer())
    command = scene(mesh, tmp_path / "mesh.npz", "emission") | {
        "command": "render",
        "directory": str(tmp_path),
        "resolution": 128,
        "cameras": describe(cameras),
        "samples": 16,
        "seed": 0,
    }
    answer = run_worker([command], blender)
    assert not isinstance(answer, Rejected), answer
    pixels = read_views(tmp_path, 4, 128)
    assert isinstance(pixels, np.ndarray)
    mask = pixels[..., 3] >= 128
    assert (mask & views.mask).sum() / (mask | views.mask).sum() > 0.98
    assert np.abs(pixels[..., 3].astype(int) - views.coverage).mean() < 1.0
    inside = (pixels[..., 3] == 255) & (views.coverage == 255)
    assert capped_psnr(pixels[..., :3], views.rgb, inside) > 30


def test_lit_views_register_and_repeat(blender):
    mesh = holed_mesh()
    cameras = seqtex4(mesh.vertices.min(axis=0), mesh.vertices.max(axis=0))
    views = render_views(mesh, cameras, RenderConfig(resolution=64), CpuRasterizer())
    first, second, other = (render_cycles(mesh, cameras, 64, blender, seed) for seed in (1, 1, 2))
    assert isinstance(first, np.ndarray), first
    assert isinstance(second, np.ndarray)
    assert isinstance(other, np.ndarray)
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()
    mask = first[..., 3] >= 128
    assert (mask & views.mask).sum() / (mask | views.mask).sum() > 0.98
    shade = first[..., :3].mean(axis=-1) / np.maximum(views.rgb.mean(axis=-1), 1)
    front, back = (np.median(shade[view][views.mask[view]]) for view in (0, 2))
    assert front > 1.1 * back  # the sun stands in front
