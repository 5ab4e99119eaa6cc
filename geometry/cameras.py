"""Poses, projections, and rigs: where the cameras of an asset stand. The convention (SeqTex's released
cameras): `schemas.sample`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from geometry.kernels.clip import project_points
from schemas.errors import UsageError, require_between
from schemas.sample import Cameras

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
    project_points(points.reshape(-1), world_to_clip.astype(np.float64), clip.reshape(len(clip), 4 * len(points)))
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


FRONT_DEG = -90.0
"""Azimuth from which an asset's front is seen."""
SEQTEX4 = tuple((FRONT_DEG + 90.0 * turn, 0.0) for turn in range(4))
ORTHO6 = (*SEQTEX4, (FRONT_DEG, 90.0), (FRONT_DEG, -90.0))
"""Azimuth and elevation, degrees: front, right, back, left, top, bottom."""


@dataclass(frozen=True, kw_only=True)
class RigConfig:
    """The cameras that look at an asset."""

    name: Literal["seqtex4", "ortho6", "hammersley", "turntable"] = "seqtex4"
    """`seqtex4`: the four released ones. `ortho6`: front, right, back, left, top, bottom in parallel projection.
    `hammersley`: spread evenly over the sphere. `turntable`: evenly around, the front first."""
    num_views: int | None = None
    """Cameras of `hammersley` and `turntable` (8 unless given); the others have 4 and 6."""
    elevation_deg: float = 10.0
    """Height of `seqtex4` and `turntable` over the horizon, degrees (released code)."""
    fov_y_deg: float = RELEASED_FOV_DEG
    """Field of view of perspective cameras, degrees (released code: 50 mm on 36 mm)."""
    orthographic: bool = False
    """Parallel projection; `ortho6` always has it."""
    jitter_azimuth_deg: float = 0.0
    """The whole rig of an asset is turned by up to so many degrees either way; drawn from its uid."""
    jitter_elevation_deg: float = 0.0
    """Likewise raised or lowered."""
    jitter_fov_deg: float = 0.0
    """Likewise its field of view widened or narrowed."""

    def __post_init__(self) -> None:
        fixed = {"seqtex4": len(SEQTEX4), "ortho6": len(ORTHO6)}.get(self.name)
        if self.num_views is not None and fixed not in (None, self.num_views):
            raise UsageError(f"rig.num_views is {self.num_views} but {self.name} has {fixed}; leave it out")
        require_between("rig.num_views", self.view_count, 1, 64)
        require_between("rig.elevation_deg", self.elevation_deg, -90, 90)
        require_between("rig.jitter_azimuth_deg", self.jitter_azimuth_deg, 0, 180)
        require_between("rig.jitter_elevation_deg", self.jitter_elevation_deg, 0, 90)
        require_between("rig.jitter_fov_deg", self.jitter_fov_deg, 0, 55)
        for jitter in (-self.jitter_fov_deg, self.jitter_fov_deg):
            require_between("rig.fov_y_deg with its jitter", self.fov_y_deg + jitter, 10, 120)

    @property
    def view_count(self) -> int:
        """Number of cameras."""
        fixed = {"seqtex4": len(SEQTEX4), "ortho6": len(ORTHO6)}.get(self.name)
        return fixed or (8 if self.num_views is None else self.num_views)

    @property
    def is_orthographic(self) -> bool:
        return self.orthographic or self.name == "ortho6"


def rig_cameras(
    cfg: RigConfig, bbox_min: Float[np.ndarray, "3"], bbox_max: Float[np.ndarray, "3"], seed: int = 0
) -> Cameras:
    """Cameras around a mesh whose bounding box is centred at the origin; `seed` decides the jitter.

    The box is wholly in frame from everywhere: cameras stand where the sphere around it just fits. `seqtex4` in
    perspective keeps the released distance instead, from which a corner may leave the frame (`cameras.seqtex4`)."""
    rng = np.random.default_rng(seed)
    turn, lift, widen = rng.uniform(-1.0, 1.0, 3) * (
        cfg.jitter_azimuth_deg, cfg.jitter_elevation_deg, cfg.jitter_fov_deg
    )  # fmt: skip
    directions = [(azimuth + turn, elevation + lift) for azimuth, elevation in rig_directions(cfg)]
    fov_y_deg = cfg.fov_y_deg + float(widen)
    if cfg.name == "seqtex4" and not cfg.is_orthographic:
        azimuths = [azimuth for azimuth, _ in directions]
        return seqtex4(bbox_min, bbox_max, azimuths, directions[0][1], fov_y_deg)
    radius = float(np.linalg.norm(np.maximum(np.abs(bbox_min), np.abs(bbox_max)).astype(np.float64)))
    if cfg.is_orthographic:
        distance = 2.0 * radius
        projection = orthographic(radius, NEAR, distance + 2.0 * radius)
    else:
        distance = radius / math.sin(math.radians(fov_y_deg) / 2.0)
        projection = perspective(fov_y_deg)
    return _around(directions, distance, projection)


def rig_directions(cfg: RigConfig) -> list[tuple[float, float]]:
    """Azimuth and elevation of every camera before jitter, degrees."""
    count = cfg.view_count
    if cfg.name == "ortho6":
        return list(ORTHO6)
    if cfg.name == "hammersley":
        return [(360.0 * radical_inverse(i), _asin_deg(1.0 - (2.0 * i + 1.0) / count)) for i in range(count)]
    step = 360.0 / count
    return [(FRONT_DEG + step * i, cfg.elevation_deg) for i in range(count)]


def radical_inverse(index: int) -> float:
    """Van der Corput sequence in base 2: the binary digits mirrored at the point (Hammersley 1960)."""
    result, digit = 0.0, 0.5
    while index:
        result += digit * (index & 1)
        index, digit = index >> 1, digit / 2.0
    return result


def _asin_deg(height: float) -> float:
    return math.degrees(math.asin(height))


def _around(
    directions: Sequence[tuple[float, float]], distance: float, projection: Float64[np.ndarray, "4 4"]
) -> Cameras:
    poses = [orbit(azimuth, elevation, distance) for azimuth, elevation in directions]
    return Cameras(
        world_to_cam=np.stack(poses).astype(np.float32),
        projection=np.repeat(projection[None].astype(np.float32), len(poses), axis=0),
    )
