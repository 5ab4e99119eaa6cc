"""Cameras in a `meta.json` as the public bpy-renderer writes it, and ours: `locations`, one entry a view, each with
`index`, `projection_type` (PERSP or ORTHO), `camera_angle_x` (radians) or `ortho_scale` (world units over the width),
and `transform_matrix`: camera to world, Z up, the camera looking down its own -z with +y up, as Blender does.

So the poses are ours (`schemas.sample`), inverted; Blender's import of glTF turns Y up to Z up as we do."""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from geometry.cameras import FAR, NEAR, orthographic, perspective
from geometry.frames import Frame
from pipeline.mesh_io.gltf.json_fields import Json
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason
from schemas.sample import Cameras

MAX_VIEWS = 64
LENSES = {"PERSP": (1e-3, math.pi - 1e-3), "ORTHO": (1e-4, 1e4)}
"""Angles (radians) and widths (world units) beyond which arithmetic would be all that is left of a picture."""
_INDEX = re.compile(r"\d{4}")
_RIGID = 1e-3
"""Largest deviation of a rotation from orthonormal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pose:
    """A view of a square picture."""

    index: str
    """Four digits, part of its file names."""
    perspective: bool
    extent: float
    """Half the width of what is seen: at distance 1 of a perspective camera, anywhere of an orthographic one."""
    cam_to_world: Float64[np.ndarray, "4 4"]

    def unproject(self, depth: Float32[np.ndarray, "h w"]) -> Float64[np.ndarray, "h w 3"]:
        """World points at the centres of pixels whose distance along the camera's axis is `depth`."""
        height, width = depth.shape
        x = (2.0 * np.arange(width) + 1.0) / width - 1.0
        y = 1.0 - (2.0 * np.arange(height) + 1.0) / height
        reach = self.extent * (depth.astype(np.float64) if self.perspective else np.ones(depth.shape))
        points = np.stack([x * reach, y[:, None] * reach, -depth.astype(np.float64)], axis=-1)
        return points @ self.cam_to_world[:3, :3].T + self.cam_to_world[:3, 3]


def read_poses(meta: Json) -> list[Pose]:
    """The views of a `meta.json`. Raises `AssetError` where it is not one."""
    locations = meta.objects("locations")
    if not 0 < len(locations) <= MAX_VIEWS:
        detail = f"meta.json has {len(locations)} locations, expected 1 to {MAX_VIEWS}"
        raise AssetError(Reason.INVALID_STRUCTURE, detail)
    poses = [_read_pose(meta, location) for location in locations]
    if len({pose.index for pose in poses}) < len(poses):
        raise AssetError(Reason.INVALID_STRUCTURE, "meta.json gives two locations one index")
    return poses


def _read_pose(meta: Json, location: Json) -> Pose:
    """Angle and scale may stand above the locations, for all of them."""
    index = location.text("index") or ""
    if not _INDEX.fullmatch(index):
        location.wrong("index", "four digits")
    kind = location.text("projection_type", "PERSP")
    key = {"PERSP": "camera_angle_x", "ORTHO": "ortho_scale"}.get(kind or "")
    if key is None:
        location.wrong("projection_type", "PERSP or ORTHO")
    holder = location if key in location else meta
    size = holder.number(key, 0.0)
    lowest, highest = LENSES[kind or ""]
    if not lowest < size < highest:
        holder.wrong(key, f"a number between {lowest:g} and {highest:g}")
    extent = math.tan(size / 2) if kind == "PERSP" else size / 2
    matrix = _read_matrix(location)
    return Pose(index=index, perspective=kind == "PERSP", extent=extent, cam_to_world=matrix)


def _read_matrix(location: Json) -> Float64[np.ndarray, "4 4"]:
    rows = location.value.get("transform_matrix")
    if not isinstance(rows, list) or len(rows) != 4 or not all(isinstance(row, list) for row in rows):
        location.wrong("transform_matrix", "four rows of four numbers")
    matrix = np.array([location.numbers_of(row, "transform_matrix", 4) for row in rows])
    rotation = matrix[:3, :3]
    rigid = np.abs(rotation @ rotation.T - np.eye(3)).max() < _RIGID and np.linalg.det(rotation) > 0
    if not rigid or not np.array_equal(matrix[3], [0, 0, 0, 1]) or np.abs(matrix).max() > 1e6:
        location.wrong("transform_matrix", "a rotation and a translation")
    return matrix


def to_cameras(poses: list[Pose], frame: Frame) -> Cameras:
    """Our cameras, seeing the scene after `x -> (x - center) * scale` as these see it before."""
    world_to_cam, projection = [], []
    for pose in poses:
        turned = np.linalg.inv(pose.cam_to_world)
        turned[:3, 3] = frame.scale * (turned[:3, 3] + turned[:3, :3] @ frame.center)
        world_to_cam.append(turned)
        if pose.perspective:
            projection.append(perspective(math.degrees(2 * math.atan(pose.extent)), NEAR, FAR))
        else:
            projection.append(orthographic(pose.extent * frame.scale, NEAR, FAR))
    return Cameras(
        world_to_cam=np.stack(world_to_cam).astype(np.float32), projection=np.stack(projection).astype(np.float32)
    )


def locations(cameras: Cameras, scale: float) -> list[dict[str, Any]]:
    """The entry of `meta.json`: our cameras in a world whose lengths are `scale` times ours."""
    entries = []
    for number, (world_to_cam, projection) in enumerate(zip(cameras.world_to_cam, cameras.projection, strict=True)):
        cam_to_world = np.linalg.inv(world_to_cam.astype(np.float64))
        cam_to_world[3] = 0, 0, 0, 1
        x, y, z = cam_to_world[:3, 3].tolist()
        cam_to_world[:3, 3] *= scale
        half = 1.0 / float(projection[0, 0])
        lens = (
            {"projection_type": "PERSP", "camera_angle_x": 2 * math.atan(half)}
            if projection[3, 2] != 0
            else {"projection_type": "ORTHO", "ortho_scale": 2 * half * scale}
        )
        angles = {"elevation": math.atan2(z, math.hypot(x, y)), "azimuth": math.atan2(y, x)}
        entries.append({"index": f"{number:04d}"} | lens | angles | {"transform_matrix": cam_to_world.tolist()})
    return entries
