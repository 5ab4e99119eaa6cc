"""Camera rigs: where they stand, what they see, and that a dataset may have any number of views."""

import dataclasses
import itertools

import numpy as np
import pytest

from geometry.cameras import (
    RELEASED_FOV_DEG,
    RigConfig,
    project,
    radical_inverse,
    rig_cameras,
    rig_directions,
    seqtex4,
    view_depth,
)
from geometry.raster_cpu import CpuRasterizer
from pipeline.asset import process_asset, seed_of
from pipeline.config import BuildConfig
from pipeline.filter.rules import FilterConfig
from pipeline.render.uv_maps import BakeConfig
from pipeline.render.views import RenderConfig, render_geometry, require_views_fit
from pipeline.report.images import in_rows
from pipeline.sources.procedural import procedural
from schemas.codec import decode, encode
from schemas.errors import UsageError
from schemas.mesh import UvMesh
from schemas.sample import TextureSample

RASTERIZER = CpuRasterizer()
CUBE = (np.full(3, -1.0), np.full(3, 1.0))
RIGS = (
    RigConfig(name="ortho6"),
    RigConfig(name="hammersley", num_views=16),
    RigConfig(name="hammersley", num_views=5, orthographic=True),
    RigConfig(name="turntable", num_views=7, elevation_deg=-90.0),
    RigConfig(name="turntable", num_views=12, elevation_deg=30.0),
    RigConfig(name="seqtex4", orthographic=True, elevation_deg=90.0),
)


def axes_in_world(cameras) -> np.ndarray:
    """Rows per camera: picture's right, picture's up, towards the viewer."""
    return cameras.world_to_cam[:, :3, :3].astype(float)


def corners(half: np.ndarray) -> np.ndarray:
    return np.array(list(itertools.product(*((-h, h) for h in half))), np.float32)


def test_the_default_rig_is_the_released_one():
    half = np.array([0.3, 1.0, 0.7])
    ours, released = rig_cameras(RigConfig(), -half, half, seed=5), seqtex4(-half, half)
    np.testing.assert_array_equal(ours.world_to_cam, released.world_to_cam)
    np.testing.assert_array_equal(ours.projection, released.projection)


@pytest.mark.parametrize("cfg", RIGS, ids=lambda cfg: f"{cfg.name}-{cfg.num_views}")
def test_cameras_are_rotations_that_look_at_the_origin(cfg):
    cameras = rig_cameras(cfg, *CUBE)
    assert len(cameras.world_to_cam) == cfg.view_count
    for pose in cameras.world_to_cam.astype(float):
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-6)
        assert np.linalg.det(pose[:3, :3]) == pytest.approx(1.0, abs=1e-6)
        np.testing.assert_allclose(pose[:2, 3], 0.0, atol=1e-6)
        assert pose[2, 3] < -1.0


def test_ortho6_shows_front_right_back_left_top_bottom():
    right, up, towards = np.moveaxis(axes_in_world(rig_cameras(RigConfig(name="ortho6"), *CUBE)), 1, 0)
    x, y, z = np.eye(3)
    np.testing.assert_allclose(towards, [-y, x, y, -x, z, -z], atol=1e-6)
    np.testing.assert_allclose(up, [z, z, z, z, y, -y], atol=1e-6)
    np.testing.assert_allclose(right, [x, y, -x, -y, x, x], atol=1e-6)


def test_hammersley_is_the_sequence_and_even():
    assert [radical_inverse(i) for i in range(8)] == [0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375, 0.875]
    towards = axes_in_world(rig_cameras(RigConfig(name="hammersley", num_views=64), *CUBE))[:, 2]
    np.testing.assert_allclose(towards.mean(axis=0), 0.0, atol=0.02)
    np.testing.assert_allclose(towards.T @ towards / 64, np.eye(3) / 3, atol=0.02)
    angles = np.degrees(np.arccos(np.clip(towards @ towards.T, -1, 1))) + 360 * np.eye(64)
    assert angles.min() > 10  # 64 even points are about 27 degrees apart
    anywhere = np.random.default_rng(0).normal(size=(2000, 3))
    anywhere /= np.linalg.norm(anywhere, axis=1, keepdims=True)
    assert np.degrees(np.arccos((anywhere @ towards.T).max(axis=1))).max() < 32


def test_a_turntable_starts_at_the_front_and_closes():
    towards = axes_in_world(rig_cameras(RigConfig(name="turntable", num_views=5, elevation_deg=0.0), *CUBE))[:, 2]
    np.testing.assert_allclose(towards[0], [0, -1, 0], atol=1e-6)
    steps = (towards * np.roll(towards, -1, axis=0)).sum(axis=1)
    np.testing.assert_allclose(steps, np.cos(np.deg2rad(72)), atol=1e-6)


@pytest.mark.parametrize("fov", [10.0, RELEASED_FOV_DEG, 90.0, 120.0])
@pytest.mark.parametrize("cfg", RIGS, ids=lambda cfg: f"{cfg.name}-{cfg.num_views}")
def test_the_whole_box_is_in_frame(cfg, fov):
    """From everywhere, in front of the near plane; and no camera stands further off than it needs for a sphere."""
    cfg = dataclasses.replace(cfg, fov_y_deg=fov)
    for half in ((1.0, 1.0, 1.0), (1.0, 0.02, 0.02), (0.6, 0.01, 1.0)):
        box = np.array(half)
        clip = project(corners(box), rig_cameras(cfg, -box, box).world_to_clip).astype(float)
        assert np.abs(clip[..., :2] / clip[..., 3:]).max() <= 1 + 1e-5
        assert (np.abs(clip[..., 2]) < clip[..., 3]).all()
        around = np.random.default_rng(0).normal(size=(4000, 3))
        around *= np.linalg.norm(box) / np.linalg.norm(around, axis=1, keepdims=True)
        clip = project(around.astype(np.float32), rig_cameras(cfg, -box, box).world_to_clip)
        assert np.abs(clip[..., :2] / clip[..., 3:]).max() > 0.98


def test_the_released_distance_cuts_at_most_seven_percent():
    rng = np.random.default_rng(0)
    furthest = 0.0
    for _ in range(300):
        half = rng.uniform(0.0, 1.0, 3)
        half /= half.max()
        cfg = RigConfig(elevation_deg=float(rng.uniform(-89, 89)))
        clip = project(corners(half), rig_cameras(cfg, -half, half).world_to_clip)
        furthest = max(furthest, float(np.abs(clip[..., :2] / clip[..., 3:]).max()))
    assert 1.0 < furthest <= 1 / np.sqrt(1 - 0.36**2)


def test_jitter_is_that_of_the_uid_and_within_its_bounds():
    cfg = RigConfig(
        name="turntable", num_views=3, jitter_azimuth_deg=20.0, jitter_elevation_deg=5.0, jitter_fov_deg=8.0
    )
    plain = axes_in_world(
        rig_cameras(dataclasses.replace(cfg, jitter_azimuth_deg=0.0, jitter_elevation_deg=0.0), *CUBE)
    )
    turns, lifts, fovs = [], [], []
    for uid in map(str, range(60)):
        cameras, again = (rig_cameras(cfg, *CUBE, seed=seed_of(uid)) for _ in range(2))
        np.testing.assert_array_equal(cameras.world_to_clip, again.world_to_clip)
        towards = axes_in_world(cameras)[:, 2]
        turn = np.degrees(np.arctan2(towards[:, 1], towards[:, 0]) - np.arctan2(plain[:, 2, 1], plain[:, 2, 0]))
        turn = (turn + 180) % 360 - 180
        np.testing.assert_allclose(turn, turn[0], atol=1e-4)  # the rig turns as a whole
        turns.append(turn[0])
        lifts.append(np.degrees(np.arcsin(towards[0, 2])) - cfg.elevation_deg)
        fovs.append(2 * np.degrees(np.arctan(1 / cameras.projection[0, 0, 0])) - cfg.fov_y_deg)
    for drawn, bound in ((turns, 20.0), (lifts, 5.0), (fovs, 8.0)):
        assert np.abs(drawn).max() <= bound + 1e-3
        assert np.ptp(drawn) > bound  # both sides of the middle
        assert len(np.unique(np.round(drawn, 3))) > 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"name": "seqtex4", "num_views": 5},
        {"name": "hammersley", "num_views": 0},
        {"elevation_deg": 91.0},
        {"fov_y_deg": 125.0},
        {"fov_y_deg": 30.0, "jitter_fov_deg": 25.0},
        {"jitter_azimuth_deg": -1.0},
    ],
)
def test_rigs_that_cannot_be_are_refused(wrong):
    with pytest.raises(UsageError, match=r"rig\."):
        RigConfig(**wrong)


def test_views_that_make_no_image_are_refused():
    require_views_fit(31, 512)
    with pytest.raises(UsageError, match=r"views\.resolution of 32 views is 512; give 1 to 511"):
        BuildConfig(rig=RigConfig(name="hammersley", num_views=32))
    with pytest.raises(UsageError, match=r"views\.resolution of 4 views is 4096"):
        BuildConfig(views=RenderConfig(resolution=4096))


def quad(corner_list: list[tuple[float, float, float]]) -> UvMesh:
    return UvMesh(
        vertices=np.array(corner_list, np.float32),
        normals=np.tile(np.array([0, 0, 1], np.float32), (4, 1)),
        uv=np.zeros((4, 2), np.float32),
        faces=np.array([[0, 1, 2], [0, 2, 3]], np.int32),
        layout="authored",
    )


@pytest.mark.parametrize("cfg", [RigConfig(), RigConfig(name="ortho6"), RigConfig(name="hammersley", num_views=6)])
def test_depth_is_the_distance_along_the_viewing_axis(cfg):
    """The rasteriser's own z / w, turned back into a distance by the projection's entries."""
    mesh = quad([(-1, -0.9, -0.3), (1, -0.8, 0.4), (0.7, 0.9, 0.8), (-0.9, 0.6, -0.8)])
    cameras = rig_cameras(cfg, *CUBE)
    position, _, mask = render_geometry(mesh, cameras, 64, RASTERIZER)
    depth = view_depth(position, mask, cameras.world_to_cam)
    fragments = RASTERIZER.rasterize(project(mesh.vertices, cameras.world_to_clip), mesh.faces, 64, 64)
    entries = cameras.projection.astype(float)[:, :, :, None, None]
    ndc = np.where(mask, fragments.depth, 0.0)
    if entries[0, 3, 2, 0, 0] == 0.0:
        truth = (entries[:, 2, 3] - ndc) / -entries[:, 2, 2] * -1.0
    else:
        truth = entries[:, 2, 3] / (entries[:, 2, 2] + ndc)
    assert mask.any(axis=(1, 2)).sum() >= 4
    assert (depth[~mask] == 0).all() and (depth[mask] > 0.1).all()
    np.testing.assert_allclose(depth[mask], np.abs(truth[mask]), rtol=2e-3)


def test_parallel_rays_keep_size_and_position():
    """A square of side 1 straight below the camera covers (0.5 / radius)^2 of an orthographic picture at any height."""
    cameras = rig_cameras(RigConfig(name="ortho6"), *CUBE)
    for height in (-0.9, 0.8):
        mesh = quad([(-0.5, -0.5, height), (0.5, -0.5, height), (0.5, 0.5, height), (-0.5, 0.5, height)])
        position, _, mask = render_geometry(mesh, cameras, 200, RASTERIZER)
        assert mask[4].mean() == pytest.approx((0.5 / np.sqrt(3)) ** 2, rel=0.02)
        rows, columns = np.nonzero(mask[4])
        step = 2 * np.sqrt(3) / 200
        np.testing.assert_allclose(position[4][rows, columns, 0], (columns + 0.5) * step - np.sqrt(3), atol=1e-5)
        np.testing.assert_allclose(position[4][rows, columns, 1], np.sqrt(3) - (rows + 0.5) * step, atol=1e-5)


@pytest.mark.parametrize(
    "cfg",
    [RigConfig(name="ortho6"), RigConfig(name="hammersley", num_views=9, jitter_azimuth_deg=10.0)],
    ids=lambda cfg: cfg.name,
)
def test_samples_may_have_any_number_of_views(cfg, tmp_path):
    ref = next(iter(procedural(1, tmp_path)))
    build = BuildConfig(
        rig=cfg,
        views=RenderConfig(resolution=64),
        uv=BakeConfig(resolution=128),
        filter=FilterConfig(min_round_trip_db=15.0),
    )
    processed = process_asset(ref, build)
    sample = processed.result
    assert isinstance(sample, TextureSample)
    assert processed.measurements.round_trip_psnr is not None
    back = decode(encode(sample))
    assert back.views.rgb.shape == (cfg.view_count, 64, 64, 3)
    np.testing.assert_array_equal(back.views.rgb, sample.views.rgb)
    np.testing.assert_array_equal(back.cameras.projection, sample.cameras.projection)
    depth = view_depth(back.views.position, back.views.mask, back.cameras.world_to_cam)
    exact = view_depth(sample.views.position, sample.views.mask, sample.cameras.world_to_cam)
    np.testing.assert_allclose(depth, exact, atol=1e-4)  # positions have 16 bits
    colour = in_rows(back.views.rgb, 6)
    assert colour.shape[1::-1] == (6 * 64, -(-cfg.view_count // 6) * 64)
    np.testing.assert_array_equal(colour[-64:, :64], back.views.rgb[(cfg.view_count - 1) // 6 * 6])
    assert sorted(rig_directions(cfg)) != sorted(rig_directions(RigConfig()))
