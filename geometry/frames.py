"""The dataset frame: Z up, bounding box centred at the origin, largest side 2. The only place where axes change."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Float64

from schemas.mesh import TexturedMesh

_FAR = 8.0
"""Largest sides of a box that its centre may be away from 0: a coordinate of single precision then is wrong by up to
half of 2^-20 sides, 4.8e-7."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """`p_dataset = (R p_asset - center) * scale`, R the rotation from Y up to Z up."""

    center: Float64[np.ndarray, "3"]
    """Centre of the bounding box after the rotation, asset units."""
    scale: float
    """Dataset units per asset unit."""

    def to_asset(self, points: Float[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
        """Points of the dataset frame in the asset's own Y-up frame."""
        return z_up_to_y_up(np.asarray(points, np.float64) / self.scale + self.center)


def y_up_to_z_up(vectors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """(x, y, z) -> (x, -z, y): glTF's axes to the dataset's, points and directions alike."""
    return np.stack([vectors[..., 0], -vectors[..., 2], vectors[..., 1]], axis=-1)


def z_up_to_y_up(vectors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """The inverse of `y_up_to_z_up`."""
    return np.stack([vectors[..., 0], vectors[..., 2], -vectors[..., 1]], axis=-1)


def bounding_box(
    vertices: Float[np.ndarray, "v 3"], faces: np.ndarray
) -> tuple[Float64[np.ndarray, "3"], Float64[np.ndarray, "3"]]:
    """Corners of the box around the vertices that faces use."""
    used = np.zeros(len(vertices), bool)
    used[faces.reshape(-1)] = True
    points = vertices[used]
    return points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64)


def far_origin(lower: Float64[np.ndarray, "3"], upper: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3"]:
    """Return the origin from which single precision places all points of a box within 1e-6 of its largest side: its
    centre where the box is far from 0, else 0."""
    center = (lower + upper) / 2
    return center if np.abs(center).max() > _FAR * (upper - lower).max() else np.zeros(3)


def normalise(mesh: TexturedMesh) -> tuple[TexturedMesh, Frame]:
    """An asset in the dataset frame, and the way back."""
    if not len(mesh.faces):
        raise ValueError("cannot normalise a mesh without faces; reject it before")
    lower, upper = bounding_box(mesh.vertices, mesh.faces)
    largest_side = float((upper - lower).max())
    if not (np.isfinite(largest_side) and largest_side > 0.0):
        raise ValueError(f"cannot normalise a mesh whose largest side is {largest_side}; reject it before")
    center, scale = y_up_to_z_up((lower + upper) / 2), 2.0 / largest_side
    points = (y_up_to_z_up(mesh.vertices.astype(np.float64)) - center) * scale
    frame = Frame(center=center + y_up_to_z_up(np.array(mesh.offset, np.float64)), scale=scale)
    turned = replace(mesh, vertices=points.astype(np.float32), normals=y_up_to_z_up(mesh.normals))
    if mesh.layers is not None:
        tangents = mesh.layers.tangents
        directions = np.concatenate([y_up_to_z_up(tangents[..., :3]), tangents[..., 3:]], axis=-1)
        turned = replace(turned, layers=replace(mesh.layers, tangents=directions))
    return replace(turned, offset=(0.0, 0.0, 0.0)), frame
