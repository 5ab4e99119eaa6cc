"""Cameras. Stated once: world is Z up; `world_to_cam` looks down -z with +y up (OpenGL); `projection` maps to clip
space with y pointing **down**, so that image row 0 is the top. clip = projection @ world_to_cam @ (x, 1)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Cameras:
    """V cameras."""

    world_to_cam: Float32[np.ndarray, "views 4 4"]
    projection: Float32[np.ndarray, "views 4 4"]

    @property
    def world_to_clip(self) -> Float32[np.ndarray, "views 4 4"]:
        return self.projection @ self.world_to_cam
