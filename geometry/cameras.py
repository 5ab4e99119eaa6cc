"""Poses, projections and what follows from them; the rigs stand in `geometry.rigs`. The convention (SeqTex's released
cameras): `schemas.camera`."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from geometry.kernels.raster import project_points
from schemas.camera import Cameras

RELEASED_FOV_DEG = 2.0 * math.degrees(math.atan(36.0 / 100.0))
"""39.598 degrees: a 50 mm lens on a 36 mm sensor."""
NEAR = 0.1
FAR = 1000.0


def seqtex4(
    bbox_min: Float[np.ndarray, "3"],
    bbox_max: Float[np.ndarray, "3"],
    azimuths_deg: Sequence[float] = (-90.0, 0.0, 90.0, 180.0),
    elevation_deg: float = 10.0,
    fov_y_deg: float = RELEASED_FOV_DEG,
) -> Cameras:
    """SeqTex's views of a normalised mesh, the front first: around the origin, from where the bounding-box diagonal
    would fill the picture's height, which is (50 / 36) diagonals with the released lens.

    Nearer corners look larger: a corner may stand up to `1 / sqrt(1 - tan(fov / 2)^2)` (1.072) half pictures from the
    centre, outside the frame."""
    diagonal = float(np.linalg.norm(np.asarray(bbox_max, np.float64) - bbox_min))
    distance = diagonal / (2.0 * math.tan(math.radians(fov_y_deg) / 2.0))
    poses = [orbit(azimuth, elevation_deg, distance) for azimuth in azimuths_deg]
    return Cameras(
        world_to_cam=np.stack(poses).astype(np.float32),
        projection=np.repeat(perspective(fov_y_deg)[None].astype(np.float32), len(poses), axis=0),
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


def perspective(
    fov_y_deg: float = RELEASED_FOV_DEG, near: float = NEAR, far: float = FAR
) -> Float64[np.ndarray, "4 4"]:
    """Square image; clip y points down, depth z / w in [-1, 1]."""
    focal = 1.0 / math.tan(math.radians(fov_y_deg) / 2.0)
    matrix = np.zeros((4, 4))
    matrix[0, 0] = focal
    matrix[1, 1] = -focal
    matrix[2, 2] = -(far + near) / (far - near)
    matrix[2, 3] = -2.0 * far * near / (far - near)
    matrix[3, 2] = -1.0
    return matrix


def orthographic(half_height: float, near: float, far: float) -> Float64[np.ndarray, "4 4"]:
    """Parallel rays, square image of 2 `half_height` world units; clip y points down, w is 1, depth in [-1, 1]."""
    matrix = np.diag([1.0 / half_height, -1.0 / half_height, -2.0 / (far - near), 1.0])
    matrix[2, 3] = -(far + near) / (far - near)
    return matrix


def project(
    points: Float32[np.ndarray, "n 3"], world_to_clip: Float32[np.ndarray, "views 4 4"]
) -> Float32[np.ndarray, "views n 4"]:
    """Clip coordinates. Point by point, so that equal points project to equal bits wherever they stand in the array: a
    BLAS product does not promise that, and surfaces split at a seam would leak."""
    clip = np.empty((len(world_to_clip), len(points), 4), np.float32)
    project_points(points, world_to_clip.astype(np.float64), clip)
    return clip


def view_depth(
    position: Float32[np.ndarray, "views height width 3"],
    mask: Bool[np.ndarray, "views height width"],
    world_to_cam: Float32[np.ndarray, "views 4 4"],
) -> Float32[np.ndarray, "views height width"]:
    """Distance of every pixel's surface from its camera along the viewing axis, world units; 0 outside the mask. It
    needs no field of its own: positions and cameras hold it."""
    axis, offset = world_to_cam[:, 2, :3], world_to_cam[:, 2, 3]
    depth = -(np.einsum("vhwc,vc->vhw", position, axis) + offset[:, None, None])
    return np.where(mask, depth, np.float32(0.0)).astype(np.float32)
