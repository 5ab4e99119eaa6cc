"""Pictures of the gallery, made from arrays."""

import base64
from io import BytesIO

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import Image

from schemas.mesh import UvMesh
from schemas.sample import Views


def as_rgb(direction_or_position: Float32[np.ndarray, "*shape 3"]) -> UInt8[np.ndarray, "*shape 3"]:
    """Show a map in [-1, 1] as colours: (x + 1) / 2, so that 0 is mid-grey."""
    return np.clip((direction_or_position + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)


def cut_out(
    rgb: UInt8[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"]
) -> UInt8[np.ndarray, "height width 4"]:
    """Make an image transparent outside its mask."""
    return np.dstack([rgb, mask * np.uint8(255)])


def side_by_side(images: UInt8[np.ndarray, "count height width c"]) -> UInt8[np.ndarray, "height all_widths c"]:
    """Join images in one row."""
    return np.concatenate(list(images), axis=1)


def in_rows(images: UInt8[np.ndarray, "count height width c"], columns: int) -> UInt8[np.ndarray, "rows all_widths c"]:
    """Join images in rows of `columns`, the last one filled with zeros; fewer images form one row of their width."""
    columns = min(columns, len(images))
    spare = -len(images) % columns
    filled = np.concatenate([images, np.zeros((spare, *images.shape[1:]), np.uint8)])
    return np.concatenate([side_by_side(filled[i : i + columns]) for i in range(0, len(filled), columns)])


ERROR_LEVELS = 64
"""Difference of a channel, of 255, from which the colour of an error stays the same."""
_ERROR_STOPS = np.array(
    [(0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191)], np.float64
)
"""Colours of an error from 0 to `ERROR_LEVELS` (matplotlib's magma); `gallery.css` shows them as a legend."""


def error_colors(
    error: UInt8[np.ndarray, "height width"], mask: Bool[np.ndarray, "height width"], side: int
) -> UInt8[np.ndarray, "rows columns 4"]:
    """Show differences as colours, transparent outside a mask. A larger image is reduced by a whole factor, each pixel
    the largest difference of those that it stands for: an error of one pixel stays visible."""
    factor = max(1, -(-len(error) // side))
    spare = (-len(error) % factor, -error.shape[1] % factor)

    def reduced(image: np.ndarray) -> np.ndarray:
        padded = np.pad(image, ((0, spare[0]), (0, spare[1])))
        rows, columns = padded.shape[0] // factor, padded.shape[1] // factor
        return padded.reshape(rows, factor, columns, factor).max(axis=(1, 3))

    share = np.minimum(reduced(np.where(mask, error, np.uint8(0))) / ERROR_LEVELS, 1)
    stops = np.linspace(0, 1, len(_ERROR_STOPS))
    color = np.stack([np.interp(share, stops, channel) for channel in _ERROR_STOPS.T], axis=-1)
    return cut_out(np.rint(color).astype(np.uint8), reduced(mask).astype(bool))


def webp(image: UInt8[np.ndarray, "height width c"], height: int) -> bytes:
    """Encode an image, scaled down to `height` if it is taller: by a whole factor first, which takes half the time."""
    picture = Image.fromarray(image)
    if (factor := picture.height // height) > 1:
        picture = picture.reduce(factor)
    if picture.height > height:
        picture = picture.resize((round(picture.width * height / picture.height), height), Image.Resampling.LANCZOS)
    buffer = BytesIO()
    picture.save(buffer, "WEBP", quality=82, method=2)
    return buffer.getvalue()


def data_uri(image: UInt8[np.ndarray, "height width c"], height: int) -> str:
    """Return a `webp` of an image as a data: URI."""
    return "data:image/webp;base64," + base64.b64encode(webp(image, height)).decode()


GRID = 80
"""Most points along a side of each view."""
MAX_STEP = 0.15
"""Longest edge in dataset units, about four steps of the grid: beyond it two points lie on different surfaces."""


def seen_surface(views: Views) -> UvMesh | None:
    """Mesh the surface that views show; its texture are the views in a row. Each view gives a grid of points, joined
    where they are neighbours on the surface. Returns None if the views show nothing."""
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
    return UvMesh(
        vertices=points[used],
        normals=normals[used],
        uv=uv[used],
        faces=corner.reshape(-1, 3).astype(np.int32),
        layout="views",
    )


def _every(pixels: int) -> Int64[np.ndarray, " points"]:
    """Spread at most `GRID` pixels evenly over a side."""
    points = min(GRID, pixels)
    return (np.arange(points) * pixels + pixels // 2) // points


def _faces(
    points: Float32[np.ndarray, "n 3"], covered: Bool[np.ndarray, " n"], number: Int64[np.ndarray, "views rows columns"]
) -> Int64[np.ndarray, "f 3"]:
    """Make two triangles of every square of the grid, counter-clockwise as the camera sees them, without those that
    leave the surface."""
    top_left, top_right = number[:, :-1, :-1].ravel(), number[:, :-1, 1:].ravel()
    low_left, low_right = number[:, 1:, :-1].ravel(), number[:, 1:, 1:].ravel()
    upper = np.stack([top_left, low_left, top_right], axis=1)
    lower = np.stack([top_right, low_left, low_right], axis=1)
    faces = np.concatenate([upper, lower])
    corners = points[faces]
    longest = np.linalg.norm(corners - np.roll(corners, 1, axis=1), axis=-1).max(axis=1)
    return faces[covered[faces].all(axis=1) & (longest < MAX_STEP)]
