"""Arrays to pictures for a page."""

import base64
from io import BytesIO

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image


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
