"""Lit views from the baked maps against lit views of the source: the same light on both, in the rasteriser and, where
Blender is there, in Cycles."""

import copy
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from geometry.cameras import RigConfig, rig_cameras
from geometry.frames import normalise
from geometry.image_metrics import capped_psnr
from geometry.mesh import mikktspace
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset
from pipeline.blender.host import BlenderConfig
from pipeline.mesh_io.load import load_mesh
from pipeline.render.cycles import render_cycles
from pipeline.render.lit import render_lit
from pipeline.render.materials import wear_materials
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig
from pipeline.sources.folder import folder
from pipeline.sources.procedural import procedural
from schemas.mesh import MeshRef, TexturedMesh
from schemas.sample import TextureSample
from tests.pipeline.blender.test_blender_materials import BUMPS, GLOW, MAPPED, REPO, ROUGH, ball
from tests.pipeline.mesh_io.test_load_mtl_materials import speckled, write
from tests.pipeline.render.test_materials import CFG, maps_of

LEAST_DB = 40.0
"""PSNR of lit views from a 256 map against those of the source, over the pixels of both."""
SIDE = 64
CAMERAS = rig_cameras(RigConfig(name="ortho6"), np.full(3, -1.0), np.full(3, 1.0))


def pair(ref: MeshRef, resolution: int = 256) -> tuple[TexturedMesh, TexturedMesh]:
    """An asset as it is loaded, and unwrapped with its baked maps, both in the dataset frame."""
    processed = process_asset(ref, replace(CFG, uv=BakeConfig(resolution=resolution)))
    sample = processed.result
    assert isinstance(sample, TextureSample) and sample.uv is not None and sample.mesh is not None, processed
    loaded = load_mesh(Path(ref.uri), shading=True, materials=True)
    assert isinstance(loaded, TexturedMesh)
    mesh = sample.mesh
    frames = mikktspace(mesh.vertices, mesh.normals, mesh.uv, mesh.faces)
    strength = sample.meta["materials"]["emissive_strength"]
    return normalise(loaded)[0], wear_materials(mesh, sample.uv, maps_of(sample), frames, strength)


def bumpy(directory: Path, repeats: float) -> MeshRef:
    """A sphere with all four maps; its light is no stronger than white."""
    material = copy.deepcopy(MAPPED) | {"emissiveFactor": [0.2, 0.1, 0.05]}
    material.pop("extensions")
    (directory / "asset.glb").write_bytes(ball(material, [ROUGH, BUMPS, GLOW], repeats).glb())
    return next(iter(folder(directory)))


def assert_alike(views: list[np.ndarray], least: float) -> None:
    source, baked = views
    both = (source.max(axis=-1) > 0) & (baked.max(axis=-1) > 0)
    assert both.mean() > 0.1
    assert capped_psnr(source[..., :3], baked[..., :3], both) > least


@pytest.mark.parametrize("repeats", [1.0, 2.0], ids=["authored layout", "new layout"])
def test_lit_views_of_a_bumpy_sphere(tmp_path, repeats):
    meshes = pair(bumpy(tmp_path, repeats))
    lit = [render_lit(mesh, CAMERAS, RenderConfig(resolution=SIDE), CpuRasterizer()) for mesh in meshes]
    assert_alike(lit, LEAST_DB)
    matt = [
        replace(mesh, materials=tuple(replace(m, shading=type(m.shading)()) for m in mesh.materials)) for mesh in meshes
    ]
    plain = render_lit(matt[0], CAMERAS, RenderConfig(resolution=SIDE), CpuRasterizer())
    both = lit[0].max(axis=-1) > 0
    assert capped_psnr(plain, lit[0], both) < 21, "the materials are what is compared"


@pytest.mark.parametrize("index", [0, 1, 3])
def test_lit_views_of_procedural_materials(tmp_path, index):
    ref = list(procedural(index + 1, tmp_path, materials=True))[index]
    lit = [render_lit(mesh, CAMERAS, RenderConfig(resolution=SIDE), CpuRasterizer()) for mesh in pair(ref)]
    assert_alike(lit, LEAST_DB)


def test_lit_views_of_an_obj(tmp_path):
    """Constants, a map and a normal map of an MTL are lit as they are baked."""
    words = "map_Kd k.png\nPm 0.75\nmap_Pr r.png\nnorm n.png\nKe 0.3 0 0"
    write(tmp_path, words, words, k=speckled(), r=ROUGH, n=BUMPS)
    meshes = pair(next(iter(folder(tmp_path))))
    assert meshes[0].materials[0].shading.metallic == 0.75 and meshes[0].materials[0].shading.normal_map is not None
    lit = [render_lit(mesh, CAMERAS, RenderConfig(resolution=SIDE), CpuRasterizer()) for mesh in meshes]
    front = [views[:1] for views in lit]
    assert_alike(front, LEAST_DB)


def test_cycles_lights_the_maps_as_the_source(tmp_path):
    python = os.environ.get("SEQTEX_BLENDER", str(REPO / ".venv-blender/bin/python"))
    if not os.access(python, os.X_OK):
        pytest.skip(f"no Blender at {python}: run `make blender` (or set SEQTEX_BLENDER) to run this test")
    cfg = BlenderConfig(python=python, samples=64)
    views = []
    for mesh in pair(bumpy(tmp_path, 2.0)):
        image = render_cycles(mesh, CAMERAS, SIDE, cfg)
        assert isinstance(image, np.ndarray), image
        views.append(image[..., :3] * (image[..., 3:] == 255))
    assert_alike(views, LEAST_DB)
