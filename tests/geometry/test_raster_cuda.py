"""The GPU rasteriser: its glue on a stand-in for nvdiffrast that follows nvdiffrast's documentation, and, where there
is a CUDA device, the real one against the CPU's."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from geometry import raster_cuda
from geometry.cameras import RigConfig, project, rig_cameras
from geometry.frames import bounding_box, normalise
from geometry.raster import Fragments, Rasterizer
from geometry.raster_cpu import CpuRasterizer
from geometry.raster_cuda import CudaRasterizer, batches, drawing_order, to_fragments
from pipeline.mesh_io.load import load_mesh
from pipeline.sources.procedural import procedural
from schemas.errors import UserError
from schemas.mesh import TexturedMesh
from seqtex.cli.main import main

CPU = CpuRasterizer()


class Context:
    """Stand-in for `RasterizeCudaContext`."""

    def __init__(self, device=None) -> None:
        self.device = device
        self.active_depth_peeler = None


def documented_raster(fragments: Fragments, count: int) -> torch.Tensor:
    """(u, v, z / w, triangle_id + 1), all zero where nothing is; row 0 is clip y = -1. Faces came in reverse."""
    there = fragments.face >= 0
    number = np.where(there, count - fragments.face, 0)
    depth = np.where(there, fragments.depth, 0)
    return torch.from_numpy(
        np.concatenate([fragments.bary, depth[..., None], number[..., None]], axis=-1).astype(np.float32)
    )


def check_arguments(context, pos, tri, resolution) -> None:
    assert isinstance(context, Context)
    assert pos.ndim == 3 and pos.shape[2] == 4 and pos.dtype == torch.float32 and pos.is_contiguous()
    assert tri.ndim == 2 and tri.shape[1] == 3 and tri.dtype == torch.int32 and tri.is_contiguous() and len(tri)
    assert len(resolution) == 2 and all(isinstance(side, int) for side in resolution)


def backwards(tri: torch.Tensor) -> np.ndarray:
    """The CPU gives the lowest face of equal depth, nvdiffrast the last one drawn."""
    return np.ascontiguousarray(tri.numpy()[::-1])


def fake_rasterize(context, pos, tri, resolution, ranges=None, grad_db=True):
    check_arguments(context, pos, tri, resolution)
    assert context.active_depth_peeler is None
    raster = documented_raster(CPU.rasterize(pos.numpy(), backwards(tri), *resolution), len(tri))
    return raster, torch.zeros_like(raster)


class FakePeeler:
    def __init__(self, context, pos, tri, resolution, ranges=None, grad_db=True) -> None:
        check_arguments(context, pos, tri, resolution)
        self.context, self.pos, self.tri, self.resolution = context, pos, tri, resolution
        self.last = None

    def __enter__(self):
        assert self.context.active_depth_peeler is None
        self.context.active_depth_peeler = self
        return self

    def __exit__(self, *args) -> None:
        self.context.active_depth_peeler = None

    def rasterize_next_layer(self):
        faces = backwards(self.tri)
        layer = CPU.rasterize(self.pos.numpy(), faces, *self.resolution, self.last)
        self.last = layer
        raster = documented_raster(layer, len(self.tri))
        return raster, torch.zeros_like(raster)


@pytest.fixture
def stand_in(monkeypatch) -> CudaRasterizer:
    package, module = ModuleType("nvdiffrast"), ModuleType("nvdiffrast.torch")
    module.RasterizeCudaContext, module.rasterize, module.DepthPeeler = Context, fake_rasterize, FakePeeler
    package.torch = module
    monkeypatch.setitem(sys.modules, "nvdiffrast", package)
    monkeypatch.setitem(sys.modules, "nvdiffrast.torch", module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(raster_cuda, "_CONTEXTS", {})
    return CudaRasterizer(device="cpu")


def soup(count: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Clip coordinates of triangles at all depths from four cameras, and their faces; several layers deep."""
    rng = np.random.default_rng(seed)
    points = rng.uniform(-0.9, 0.9, (count, 1, 3)) * 0.6 + rng.uniform(-0.4, 0.4, (count, 3, 3))
    cameras = rig_cameras(RigConfig(), np.full(3, -1.0), np.full(3, 1.0))
    faces = np.arange(3 * count, dtype=np.int32).reshape(-1, 3)
    return project(points.reshape(-1, 3).astype(np.float32), cameras.world_to_clip), faces


def assert_same(ours: Fragments, truth: Fragments) -> None:
    np.testing.assert_array_equal(ours.face, truth.face)
    np.testing.assert_array_equal(ours.bary, truth.bary)
    np.testing.assert_array_equal(ours.depth, truth.depth)


# on the stand-in


def test_fragments_are_those_of_the_protocol(stand_in):
    assert isinstance(stand_in, Rasterizer)
    clip, faces = soup()
    ours = stand_in.rasterize(clip, faces, 48, 40)
    assert ours.face.shape == (4, 48, 40) and (ours.face >= 0).mean() > 0.1
    assert (ours.face.dtype, ours.bary.dtype, ours.depth.dtype) == (np.int32, np.float32, np.float32)
    assert_same(ours, CPU.rasterize(clip, faces, 48, 40))
    np.testing.assert_array_equal(stand_in.sides(clip, faces, 48, 40), CPU.sides(clip, faces, 48, 40))
    single = np.random.default_rng(2).random(len(faces)) < 0.5
    ours = stand_in.rasterize(clip, faces, 48, 40, single_sided=single)
    assert_same(ours, CPU.rasterize(clip, faces, 48, 40, single_sided=single))
    np.testing.assert_array_equal(stand_in.sides(clip, faces, 48, 40, single), CPU.sides(clip, faces, 48, 40, single))
    behind = stand_in.rasterize(clip, faces, 48, 40, ours, single)
    np.testing.assert_array_equal(behind.face, CPU.rasterize(clip, faces, 48, 40, ours, single).face)
    ours = stand_in.rasterize(clip, faces, 48, 40)
    attributes = np.random.default_rng(1).normal(size=(clip.shape[1], 5)).astype(np.float32)
    np.testing.assert_array_equal(
        stand_in.interpolate(ours, faces, attributes), CPU.interpolate(ours, faces, attributes)
    )


def test_row_zero_is_the_top_of_our_pictures(stand_in):
    """Clip y = -1 is row 0 there and here: a face in the upper left quarter stays there."""
    clip = np.array([[[-0.9, -0.9, 0, 1], [-0.1, -0.9, 0, 1], [-0.9, -0.1, 0, 1]]], np.float32)
    face = stand_in.rasterize(clip, np.array([[0, 1, 2]], np.int32), 16, 16).face[0]
    assert (face[:8, :8] == 0).any() and (face[8:] == -1).all() and (face[:, 8:] == -1).all()


def test_layers_behind_are_peeled(stand_in):
    clip, faces = soup()
    ours, truth = (rasterizer.rasterize(clip, faces, 40, 40) for rasterizer in (stand_in, CPU))
    pixels = np.random.default_rng(0).uniform(size=ours.face.shape) < 0.5
    for depth in range(4):
        wanted = pixels & (ours.face >= 0)
        assert depth == 3 or wanted.sum() > 20
        ours = replace(ours, depth=np.where(wanted, ours.depth, np.float32(np.inf)))
        truth = replace(truth, depth=np.where(wanted, truth.depth, np.float32(np.inf)))
        ours, truth = (r.rasterize(clip, faces, 40, 40, f) for r, f in ((stand_in, ours), (CPU, truth)))
        assert_same(ours, truth)
        assert (ours.face[~wanted] == -1).all()


def test_the_lowest_of_coinciding_faces_wins(stand_in):
    clip = np.tile(np.array([[-1, -1, 0, 1], [1, -1, 0, 1], [-1, 1, 0, 1]], np.float32), (1, 3, 1))
    faces = np.arange(9, dtype=np.int32).reshape(3, 3)
    face = stand_in.rasterize(clip, faces, 8, 8).face
    assert set(np.unique(face)) == {-1, 0}


def test_faces_that_are_not_finite_are_left_out(stand_in):
    clip, faces = soup(20)
    clip[:, faces[7, 1]] = np.nan
    ours = stand_in.rasterize(clip, faces, 32, 32)
    assert 7 not in ours.face and (ours.face >= 0).any()
    assert_same(ours, CPU.rasterize(clip, faces, 32, 32))
    nothing = stand_in.rasterize(clip, faces[7:8], 32, 32)
    assert (nothing.face == -1).all() and np.isinf(nothing.depth).all()


def test_batches_hold_what_fits(stand_in, monkeypatch):
    assert list(batches(4, 1000, 512**2)) == [slice(0, 4)]
    assert list(batches(5, 3 << 21, 512**2)) == [slice(i, i + 1) for i in range(5)]
    assert list(batches(5, 10, 1 << 23)) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    assert list(batches(2, 10, 1 << 25)) == [slice(0, 1), slice(1, 2)]
    with pytest.raises(UserError, match="lower the resolution"):
        list(batches(1, 10, 1 << 27))
    clip, faces = soup()
    whole = stand_in.rasterize(clip, faces, 32, 32)
    monkeypatch.setattr(raster_cuda, "BATCH_PIXELS", 3 * 32 * 32)
    assert_same(stand_in.rasterize(clip, faces, 32, 32), whole)
    assert_same(stand_in.rasterize(clip, faces, 32, 32, whole), CPU.rasterize(clip, faces, 32, 32, whole))


def test_faces_beyond_the_limit_are_refused(monkeypatch):
    """Up to the limit a float32 holds their number."""
    assert all(int(np.float32(n)) == n for n in range(raster_cuda.MAX_FACES - 5, raster_cuda.MAX_FACES + 1))
    raster = np.array([[[[0.5, 0.25, -0.5, 3.0], [0.0, 0.0, 0.0, 0.0]]]], np.float32)
    fragments = to_fragments(raster, np.array([9, 8, 7, 6]))
    np.testing.assert_array_equal(fragments.face, [[[7, -1]]])
    np.testing.assert_array_equal(fragments.bary, [[[[0.5, 0.25], [0, 0]]]])
    np.testing.assert_array_equal(fragments.depth, [[[-0.5, np.inf]]])
    monkeypatch.setattr(raster_cuda, "MAX_FACES", 3)
    with pytest.raises(UserError, match="4 faces are more than nvdiffrast's 3"):
        drawing_order(np.ones((1, 1, 4), np.float32), np.zeros((4, 3), np.int32))


def test_one_context_to_a_process_and_none_after_a_fork(stand_in, monkeypatch):
    clip, faces = soup(4)
    stand_in.rasterize(clip, faces, 8, 8)
    stand_in.rasterize(clip, faces, 8, 8)
    assert list(raster_cuda._CONTEXTS) == [(os.getpid(), "cpu")]
    monkeypatch.setattr(raster_cuda.os, "getpid", lambda: 1)
    with pytest.raises(UserError, match="forked"):
        stand_in.rasterize(clip, faces, 8, 8)


def test_without_nvdiffrast_or_a_device_the_remedy_is_named(stand_in, monkeypatch, tmp_path, capsys):
    clip, faces = soup(4)
    build = ["build", "--source", "procedural:1", "--out", str(tmp_path / "d"), "--rasterizer", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="a CUDA device and there is none"):
        stand_in.rasterize(clip, faces, 8, 8)
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    with pytest.raises(UserError, match=r"pip install --no-build-isolation -e '.\[gpu\]'"):
        stand_in.rasterize(clip, faces, 8, 8)
    assert main(build) == 1
    assert "needs nvdiffrast" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


# on a GPU


@pytest.fixture
def cuda() -> CudaRasterizer:
    pytest.importorskip("nvdiffrast.torch", reason="nvdiffrast is not installed: pip install -e '.[gpu]'")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return CudaRasterizer()


@pytest.mark.gpu
@pytest.mark.parametrize("rig", ["seqtex4", "ortho6"])
def test_the_gpu_agrees_with_the_cpu(cuda, rig, tmp_path):
    """At least 99.5 % of the pixels that both cover show the same face, and those the same point to 1e-4; pixels that
    one of them covers are 1 % of the covered ones at most."""
    for ref in procedural(10, tmp_path):
        loaded = load_mesh(Path(ref.uri))
        if not isinstance(loaded, TexturedMesh):
            continue
        mesh, _ = normalise(loaded)
        cameras = rig_cameras(RigConfig(name=rig), *bounding_box(mesh.vertices, mesh.faces))
        clip = project(mesh.vertices, cameras.world_to_clip)
        ours, truth = (r.rasterize(clip, mesh.faces, 256, 256) for r in (cuda, CPU))
        compare(ours, truth, mesh.vertices, mesh.faces, position_error=1e-4)


@pytest.mark.gpu
def test_the_gpu_peels_like_the_cpu(cuda):
    clip, faces = soup()
    vertices = np.random.default_rng(0).normal(size=(clip.shape[1], 3)).astype(np.float32)
    ours, truth = (r.rasterize(clip, faces, 200, 200) for r in (cuda, CPU))
    for _ in range(3):
        ours, truth = (r.rasterize(clip, faces, 200, 200, f) for r, f in ((cuda, ours), (CPU, truth)))
        compare(ours, truth, vertices, faces, position_error=2e-3)


@pytest.mark.gpu
def test_the_lowest_of_coinciding_faces_wins_on_the_gpu(cuda):
    test_the_lowest_of_coinciding_faces_wins(cuda)


def compare(ours: Fragments, truth: Fragments, vertices, faces, position_error: float) -> None:
    either, both = (ours.face >= 0) | (truth.face >= 0), (ours.face >= 0) & (truth.face >= 0)
    assert both.sum() >= 0.99 * either.sum() > 0
    same = both & (ours.face == truth.face)
    assert same.sum() >= 0.995 * both.sum()
    points = [CPU.interpolate(f, faces, vertices)[same] for f in (ours, truth)]
    error = np.linalg.norm(points[0] - points[1], axis=-1)
    assert np.quantile(error, 0.999) < position_error
    np.testing.assert_allclose(ours.depth[same], truth.depth[same], atol=1e-4)
