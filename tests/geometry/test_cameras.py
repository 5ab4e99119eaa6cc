import json

import numpy as np
import pytest

from geometry.cameras import RigConfig, project, rig_cameras, seqtex4
from geometry.raster_cpu import CpuRasterizer
from pipeline.render.views import RenderConfig, render_views
from schemas.mesh import AlphaMode, Material, Texture, TexturedMesh
from schemas.sample import Cameras, Views


def test_released_cameras_are_reproduced(golden_dir):
    boxes = json.loads((golden_dir / "cameras.json").read_text())
    assert len(boxes) >= 3
    for name, box in boxes.items():
        half = np.array(box["bbox_half_extent"])
        cameras = seqtex4(-half, half)
        np.testing.assert_allclose(cameras.world_to_cam, box["w2c"], atol=1e-5, err_msg=name)
        np.testing.assert_allclose(cameras.projection @ cameras.world_to_cam, box["mvp"], atol=1e-5, err_msg=name)


def test_rows_go_down_and_columns_go_right():
    cameras = seqtex4(-np.ones(3), np.ones(3), elevation_deg=0.0)
    front = project(np.array([[0, 0, 0], [0, 0, 0.5], [0.5, 0, 0]], np.float32), cameras.world_to_clip)[0]
    centre, up, right = front[:, :2] / front[:, 3:]
    np.testing.assert_allclose(centre, 0.0, atol=1e-6)
    assert up[1] < 0 and abs(up[0]) < 1e-6
    assert right[0] > 0 and abs(right[1]) < 1e-6


def test_cameras_stay_valid_straight_above():
    pose = seqtex4(-np.ones(3), np.ones(3), azimuths_deg=(30.0,), elevation_deg=90.0).world_to_cam[0].astype(float)
    np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
    np.testing.assert_allclose(-pose[:3, :3].T @ pose[:3, 3], [0, 0, 50 / 36 * np.sqrt(12)], atol=1e-5)


def test_equal_points_project_to_equal_bits():
    rng = np.random.default_rng(0)
    point = rng.normal(size=3).astype(np.float32)
    points = rng.normal(size=(1003, 3)).astype(np.float32)
    copies = rng.choice(1003, 100, replace=False)
    points[copies] = point
    clip = project(points, seqtex4(-np.ones(3), np.ones(3)).world_to_clip)
    assert clip.shape == (4, 1003, 4)
    assert (clip[:, copies] == clip[:, copies[:1]]).all()


def square(side: float, texture: np.ndarray | None = None) -> TexturedMesh:
    """An upright square around the origin that faces the front, cut out where its texture is."""
    corners = np.array([[-1, 0, -1], [1, 0, -1], [1, 0, 1], [-1, 0, 1]], np.float32) * np.float32(side / 2)
    image = np.full((1, 1, 4), 255, np.uint8) if texture is None else texture
    return TexturedMesh(
        vertices=corners,
        normals=np.tile(np.array([0, -1, 0], np.float32), (4, 1)),
        uv=np.array([[0, 0], [1, 0], [1, 1], [0, 1]], np.float32),
        colors=np.ones((4, 4), np.float32),
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        face_material=np.zeros(2, np.int32),
        face_has_uv=np.ones(2, bool),
        materials=(Material(texture=0, alpha_mode=AlphaMode.MASK),),
        textures=(Texture(image=image, nearest=True),),
    )


def front_view(mesh: TexturedMesh, resolution: int, supersample: int) -> Views:
    """In parallel projection, 2 sqrt(3) units high."""
    cameras = rig_cameras(RigConfig(name="ortho6"), np.full(3, -1.0), np.full(3, 1.0))
    front = Cameras(world_to_cam=cameras.world_to_cam[:1], projection=cameras.projection[:1])
    return render_views(mesh, front, RenderConfig(resolution=resolution, supersample=supersample), CpuRasterizer())


@pytest.mark.parametrize("supersample", [1, 2, 4])
@pytest.mark.parametrize("side", [0.7, 1.234])
def test_coverage_sums_up_to_the_area_that_is_seen(side, supersample):
    views = front_view(square(side), 64, supersample)
    coverage = views.coverage[0].astype(float) / 255
    step = 2 * np.sqrt(3) / 64
    assert coverage.sum() * step**2 == pytest.approx(side**2, rel=2 * step / supersample / side)
    assert set(np.unique(views.coverage)) <= {round(255 * k / supersample**2) for k in range(supersample**2 + 1)}
    assert (views.coverage[views.mask] > 0).all()
    if supersample == 1:
        np.testing.assert_array_equal(views.coverage, views.mask * 255)
    inner = views.mask[0]
    for axis in (0, 1):
        inner = inner & np.roll(views.mask[0], 1, axis) & np.roll(views.mask[0], -1, axis)
    assert (coverage[inner] == 1.0).all()


def test_coverage_knows_of_holes():
    """A fine grid of holes, three quarters of the square: pixels are partly covered, in sum by a quarter."""
    grid = np.full((64, 64, 4), 255, np.uint8)
    grid[..., 3] = 0
    grid[::2, ::2, 3] = 255
    views = front_view(square(1.5, grid), 32, 8)
    whole = front_view(square(1.5), 32, 8)
    share = views.coverage.astype(float).sum() / whole.coverage.astype(float).sum()
    assert share == pytest.approx(0.25, abs=0.06)
    assert (views.coverage <= whole.coverage).all()
    assert (views.coverage[views.mask] > 0).all()
