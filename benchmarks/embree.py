"""Embree (robust mode) as oracle and rival: rays through the pixel centres that the rasteriser samples."""

from dataclasses import dataclass

import numpy as np
from embreex.mesh_construction import TriangleMesh
from embreex.rtcore_scene import EmbreeScene
from jaxtyping import Float32, Int32

from schemas.sample import Cameras


@dataclass(frozen=True, slots=True, kw_only=True)
class Rays:
    origins: Float32[np.ndarray, "n 3"]
    directions: Float32[np.ndarray, "n 3"]


def scene_of(vertices: Float32[np.ndarray, "v 3"], faces: Int32[np.ndarray, "f 3"]) -> EmbreeScene:
    """Robust: without it, rays leak through shared edges."""
    scene = EmbreeScene(robust=True)
    TriangleMesh(scene, np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.int32))
    return scene


def view_rays(cameras: Cameras, resolution: int) -> list[Rays]:
    """Return the rays of each camera, row by row, from the eye through every pixel centre."""
    centres = (2.0 * np.arange(resolution) + 1.0) / resolution - 1.0
    y, x = np.meshgrid(centres, centres, indexing="ij")
    rays = []
    for pose, projection in zip(cameras.world_to_cam.astype(np.float64), cameras.projection, strict=True):
        in_camera = np.stack([x / projection[0, 0], y / projection[1, 1], -np.ones_like(x)], axis=-1).reshape(-1, 3)
        rotation = pose[:3, :3]
        eye = -rotation.T @ pose[:3, 3]
        rays.append(
            Rays(
                origins=np.repeat(eye[None].astype(np.float32), len(in_camera), axis=0),
                directions=np.ascontiguousarray((in_camera @ rotation).astype(np.float32)),
            )
        )
    return rays


def layout_rays(resolution: int) -> Rays:
    """Straight down at every texel centre of a UV layout that lies flat at z = 0, row 0 = v 1."""
    centres = (np.arange(resolution) + 0.5) / resolution
    v, u = np.meshgrid(centres[::-1], centres, indexing="ij")
    origins = np.stack([u, v, np.ones_like(u)], axis=-1).reshape(-1, 3).astype(np.float32)
    return Rays(origins=origins, directions=np.tile(np.array([0, 0, -1], np.float32), (len(origins), 1)))


def hits(scene: EmbreeScene, rays: Rays) -> tuple[np.ndarray, np.ndarray]:
    """First face along each ray (-1 for none) and the point hit, from the distance in float64."""
    answer = scene.run(rays.origins, rays.directions, output=True)
    distance = np.where(answer["primID"] >= 0, answer["tfar"], 0.0).astype(np.float64)
    return answer["primID"], rays.origins + distance[:, None] * rays.directions


def hits_only(scene: EmbreeScene, rays: Rays) -> np.ndarray:
    """First face along each ray and nothing else: the least that Embree can be asked for."""
    return scene.run(rays.origins, rays.directions)
