"""The surface that the views of a sample see, as a mesh: what there is to turn around where no mesh is stored."""

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from pipeline.report.images import side_by_side
from schemas.mesh import UvMesh
from schemas.sample import Views

GRID = 80
"""Points along a side of each view."""
MAX_STEP = 0.15
"""Longest edge in dataset units, about four steps of the grid: beyond it two points lie on different surfaces."""


def seen_surface(views: Views) -> tuple[UvMesh, UInt8[np.ndarray, "height all_widths 3"]] | None:
    """A grid of stored points per view, joined where they are neighbours on the surface, and its texture: the views in
    a row. None where the views see nothing."""
    count, height, width = views.mask.shape
    rows, columns = _every(height), _every(width)
    grid = np.ix_(np.arange(count), rows, columns)
    points, normals = views.position[grid].reshape(-1, 3), views.normal[grid].reshape(-1, 3)
    number = np.arange(len(points)).reshape(count, len(rows), len(columns))
    faces = _faces(points, views.mask[grid].ravel(), number)
    if not len(faces):
        return None
    view, row, column = np.meshgrid(np.arange(count), rows, columns, indexing="ij")
    u, v = (view + (column + 0.5) / width) / count, 1 - (row + 0.5) / height
    uv = np.stack([u.ravel(), v.ravel()], axis=1).astype(np.float32)
    used, corner = np.unique(faces, return_inverse=True)
    mesh = UvMesh(
        vertices=points[used],
        normals=normals[used],
        uv=uv[used],
        faces=corner.reshape(-1, 3).astype(np.int32),
        layout="views",
    )
    return mesh, side_by_side(views.rgb)


def _every(pixels: int) -> Int64[np.ndarray, " points"]:
    """Pixels spread evenly over a side."""
    points = min(GRID, pixels)
    return (np.arange(points) * pixels + pixels // 2) // points


def _faces(
    points: Float32[np.ndarray, "n 3"], covered: Bool[np.ndarray, " n"], number: Int64[np.ndarray, "views rows columns"]
) -> Int64[np.ndarray, "f 3"]:
    """Two triangles for every square of the grid, counter-clockwise as the camera sees them, less those that leave the
    surface."""
    top_left, top_right = number[:, :-1, :-1].ravel(), number[:, :-1, 1:].ravel()
    low_left, low_right = number[:, 1:, :-1].ravel(), number[:, 1:, 1:].ravel()
    upper = np.stack([top_left, low_left, top_right], axis=1)
    lower = np.stack([top_right, low_left, low_right], axis=1)
    faces = np.concatenate([upper, lower])
    corners = points[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(axis=1)
    return faces[covered[faces].all(axis=1) & (longest < MAX_STEP)]
