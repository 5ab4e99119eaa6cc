"""Arrays to pictures for a page."""

import base64
from io import BytesIO

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from schemas.mesh import UvMesh
from schemas.sample import Views


def as_rgb(direction_or_position: Float32[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """A map in [-1, 1] as colours: (x + 1) / 2, so that 0 is mid-grey."""
    return np.clip((direction_or_position + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def side_by_side(images: UInt8[np.ndarray, "count height width c"]) -> UInt8[np.ndarray, "height all_widths c"]:
    return np.concatenate(list(images), axis=1)


def in_rows(images: UInt8[np.ndarray, "count height width c"], columns: int) -> UInt8[np.ndarray, "rows all_widths c"]:
    """`columns` to a row, the last row filled up with zeros; fewer than that stay one row of their own width."""
    columns = min(columns, len(images))
    spare = -len(images) % columns
    filled = np.concatenate([images, np.zeros((spare, *images.shape[1:]), np.uint8)])
    return np.concatenate([side_by_side(filled[i : i + columns]) for i in range(0, len(filled), columns)])


def data_uri(image: UInt8[np.ndarray, "height width 3"], height: int | None = None) -> str:
    """A PNG as a data: URI, scaled down to `height` pixels when it is taller."""
    picture = Image.fromarray(image)
    if height is not None and picture.height > height:
        picture = picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


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
