"""Agreement with Embree's robust ray caster, pixel by pixel. No pixel is left out: silhouettes and places where two
surfaces cross count as disagreements (positions then differ by more than the bound)."""

import numpy as np
import pytest
import trimesh

from geometry.cameras import project, seqtex4
from geometry.frames import bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.mesh_io.load import load_mesh
from schemas.mesh import TexturedMesh

embree = pytest.importorskip("benchmarks.embree", reason="embreex has no wheel for this machine", exc_type=ImportError)

TEXTURED = [
    "water_bottle_pbr.glb",
    "egyptian_cat_statue_webp.glb",
    "htc_vive_controller.glb",
    "cloth_115k_textured.glb",
    "vintage_desk_fan_skinned_animated.glb",
    "house_alpha_mask_nonmanifold.glb",
    "milk_truck_mixed_textured_untextured.glb",
    "spot_cow_obj/spot_triangulated.obj",
    "steampunk_robot_base_color_3mat.glb",
]


def assert_agreement(vertices: np.ndarray, faces: np.ndarray, resolution: int) -> None:
    """>= 99.9 % of the pixels that both cover within 1e-4 of each other; < 30 of them covered by one alone."""
    rasterizer = CpuRasterizer()
    cameras = seqtex4(*bounding_box(vertices, faces))
    fragments = rasterizer.rasterize(project(vertices, cameras.world_to_clip), faces, resolution, resolution)
    position = rasterizer.interpolate(fragments, faces, vertices).reshape(4, -1, 3)
    ours = fragments.face.reshape(4, -1) >= 0
    scene = embree.scene_of(vertices, faces)
    answers = [embree.hits(scene, rays) for rays in embree.view_rays(cameras, resolution)]
    theirs, points = np.stack([face >= 0 for face, _ in answers]), np.stack([point for _, point in answers])
    both = ours & theirs
    assert both.sum() > 0.05 * both.size
    assert (ours != theirs).sum() < 30
    apart = np.abs(position - points).max(axis=-1)[both]
    assert (apart <= 1e-4).mean() >= 0.999
    assert np.median(apart) < 2e-6


@pytest.mark.assets
@pytest.mark.parametrize("name", TEXTURED)
def test_same_surface_on_real_assets(assets_dir, name):
    mesh = load_mesh(assets_dir / name)
    assert isinstance(mesh, TexturedMesh)
    mesh, _ = normalise(mesh)
    assert_agreement(mesh.vertices, mesh.faces, 256)


@pytest.mark.parametrize("subdivisions", [2, 6])
def test_same_surface_on_a_bumpy_sphere(subdivisions):
    sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
    points = sphere.vertices * (1.0 + 0.3 * np.sin(7.0 * sphere.vertices).prod(axis=1, keepdims=True))
    assert_agreement((points / np.abs(points).max()).astype(np.float32), sphere.faces.astype(np.int32), 512)


def test_same_surface_on_loose_triangles():
    """4000 triangles thrown into the box: overlaps and intersections everywhere."""
    rng = np.random.default_rng(5)
    centres = rng.uniform(-0.9, 0.9, (4000, 1, 3))
    corners = np.clip(centres + rng.normal(scale=0.08, size=(4000, 3, 3)), -1, 1)
    assert_agreement(corners.reshape(-1, 3).astype(np.float32), np.arange(12000, dtype=np.int32).reshape(-1, 3), 256)
