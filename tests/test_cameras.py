import json

import numpy as np

from geometry.cameras import project, seqtex4


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
