"""Camera rigs. The convention (SeqTex's released cameras): `schemas.camera`."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from geometry.raster_kernels import project_points
from schemas.camera import Cameras

FOCAL_MM = 50.0
SENSOR_MM = 36.0
NEAR = 0.1
FAR = 1000.0


def seqtex4(
    bbox_min: Float[np.ndarray, "3"],
    bbox_max: Float[np.ndarray, "3"],
    azimuths_deg: Sequence[float] = (-90.0, 0.0, 90.0, 180.0),
    elevation_deg: float = 10.0,
) -> Cameras:
    """SeqTex's views of a normalised mesh: around the origin at (50 / 36) bounding-box diagonals, the front first."""
    distance = FOCAL_MM / SENSOR_MM * float(np.linalg.norm(np.asarray(bbox_max, np.float64) - bbox_min))
    poses = [orbit(azimuth, elevation_deg, distance) for azimuth in azimuths_deg]
    return Cameras(
        world_to_cam=np.stack(poses).astype(np.float32),
        projection=np.repeat(perspective()[None].astype(np.float32), len(poses), axis=0),
    )


def orbit(azimuth_deg: float, elevation_deg: float, distance: float) -> Float64[np.ndarray, "4 4"]:
    """World-to-camera matrix of a camera that looks at the origin, up +Z. Azimuth from +X towards +Y."""
    azimuth, elevation = np.deg2rad(azimuth_deg), np.deg2rad(elevation_deg)
    cos_a, sin_a, cos_e, sin_e = np.cos(azimuth), np.sin(azimuth), np.cos(elevation), np.sin(elevation)
    pose = np.eye(4)
    pose[0, :3] = -sin_a, cos_a, 0.0
    pose[1, :3] = -cos_a * sin_e, -sin_a * sin_e, cos_e
    pose[2, :3] = cos_a * cos_e, sin_a * cos_e, sin_e
    pose[2, 3] = -distance
    return pose


def perspective(near: float = NEAR, far: float = FAR) -> Float64[np.ndarray, "4 4"]:
    """Square image, 50 mm lens on a 36 mm sensor; clip y points down, depth z / w in [-1, 1]."""
    focal = 2.0 * FOCAL_MM / SENSOR_MM
    matrix = np.zeros((4, 4))
    matrix[0, 0] = focal
    matrix[1, 1] = -focal
    matrix[2, 2] = -(far + near) / (far - near)
    matrix[2, 3] = -2.0 * far * near / (far - near)
    matrix[3, 2] = -1.0
    return matrix


def project(
    points: Float32[np.ndarray, "n 3"], world_to_clip: Float32[np.ndarray, "views 4 4"]
) -> Float32[np.ndarray, "views n 4"]:
    """Clip coordinates. Point by point, so that equal points project to equal bits wherever they stand in the array: a
    BLAS product does not promise that, and surfaces split at a seam would leak."""
    clip = np.empty((len(world_to_clip), len(points), 4), np.float32)
    project_points(points, world_to_clip.astype(np.float64), clip)
    return clip
