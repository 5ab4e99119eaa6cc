"""Depth maps as OpenEXR files, as Blender's compositor writes them: R, G and B all hold the distance along the camera's
axis (not along the ray), 32-bit float, ZIP."""

from pathlib import Path

import numpy as np
import OpenEXR
from jaxtyping import Float32

from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

BACKGROUND = 1e10
"""Depth written where nothing is: Blender's own value."""
FARTHEST = 1000.0
"""Depth from which on a pixel shows nothing: readers of such files agree on it, and renderers write 1001.03 (EEVEE),
65504 (half float) or 1e10."""
CHANNELS = ("R", "V", "Z", "Y")
"""Names under which depth is found, the first one there is taken."""
_MAX_CHANNELS = 8
_ERRORS = (RuntimeError, ValueError, TypeError, KeyError, IndexError)
"""Exceptions of the reader on files that are broken in one way or another."""


def write_depth(path: Path, depth: Float32[np.ndarray, "height width"]) -> None:
    """Equal depths give equal bytes. Three equal channels, because public readers take one of three."""
    channels = dict.fromkeys("RGB", np.ascontiguousarray(depth))
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, channels) as file:
        file.write(str(path))


def read_depth(path: Path, size: tuple[int, int]) -> Float32[np.ndarray, "height width"]:
    """Depth of a file that must have `size` (width, height) and one part; 0 where nothing is. Raises `AssetError`."""
    try:
        with OpenEXR.File(str(path), header_only=True) as file:
            _check_header(path.name, file.header(), len(file.parts), size)
            name = _channel(path.name, [channel.name for channel in file.header()["channels"]])
        with OpenEXR.File(str(path), separate_channels=True) as file:
            pixels = file.channels()[name].pixels
    except _ERRORS as error:
        raise AssetError(Reason.BAD_IMAGE, f"{path.name}: not a whole OpenEXR image ({error})") from error
    if pixels.shape != (size[1], size[0]) or pixels.dtype.kind != "f":
        raise AssetError(Reason.BAD_IMAGE, f"{path.name}: channel {name} is {pixels.dtype} {pixels.shape}")
    depth = pixels.astype(np.float32)
    return np.where((depth > 0) & (depth < FARTHEST), depth, np.float32(0))


def _check_header(name: str, header: dict, parts: int, size: tuple[int, int]) -> None:
    """Check, before pixels are decoded, for one flat image of the size that the colours have."""
    (left, top), (right, bottom) = (corner.tolist() for corner in header["dataWindow"])
    found = (right - left + 1, bottom - top + 1)
    if found != size:
        raise AssetError(Reason.BAD_IMAGE, f"{name}: {found[0]} x {found[1]} pixels, the colours {size[0]} x {size[1]}")
    flat = header.get("type") in (OpenEXR.scanlineimage, OpenEXR.tiledimage)
    if parts != 1 or not flat or len(header["channels"]) > _MAX_CHANNELS:
        detail = f"{name}: {parts} parts, {len(header['channels'])} channels, type {header.get('type')}"
        raise AssetError(Reason.BAD_IMAGE, f"{detail}; expected one flat image")


def _channel(name: str, channels: list[str]) -> str:
    for wanted in CHANNELS:
        for channel in channels:
            if channel.rpartition(".")[2] == wanted:
                return channel
    if len(channels) == 1:
        return channels[0]
    raise AssetError(Reason.BAD_IMAGE, f"{name}: channels {channels} hold none of {', '.join(CHANNELS)}")
