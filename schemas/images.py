"""Images and integer maps as bytes of a sample: lossless, declared sizes checked before memory is taken for them."""

import io
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, Int8, Int16
from PIL import Image

from schemas.delta_kernels import scaled_rows, unit_rows

MAX_SIDE = 16_383
"""Longest side of a stored image, pixels (WebP's own limit)."""
MAX_PIXELS = 1 << 26
ZSTD_LEVEL = 9
"""Twice the encoding time of level 3 for 12 % less; decoding takes the same time at every level."""
_PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
_HEADER = struct.Struct("<4sBBHII")
_MAGIC = b"SFDZ"


def field_bytes(fields: Mapping[str, Any], name: str) -> bytes:
    """Return a field of a sample. Raises ValueError where it is missing."""
    data = fields.get(name)
    if not isinstance(data, bytes):
        raise ValueError(f"field {name!r} is missing or not bytes: the shard is incomplete, rebuild it")
    return data


def check_size(name: str, height: int, width: int) -> None:
    """Raise ValueError where an image of a field is empty or too large, pixels."""
    if not (0 < height <= MAX_SIDE and 0 < width <= MAX_SIDE and height * width <= MAX_PIXELS):
        raise ValueError(f"field {name!r}: {height} x {width} pixels; a side is 1 to {MAX_SIDE}, an image {MAX_PIXELS}")


def encode_image(image: np.ndarray, form: str, **options: Any) -> bytes:
    """Encode an image (uint8 or bool) in a format of Pillow."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, form, **options)
    return out.getvalue()


def decode_image(fields: Mapping[str, Any], name: str, form: str, mode: str) -> np.ndarray:
    """Decode an image, given its format and mode in Pillow. Raises ValueError where it is another or not whole."""
    data = field_bytes(fields, name)
    if form == "PNG" and not data.endswith(_PNG_END):  # Pillow reads one without
        raise ValueError(f"field {name!r} is not a whole PNG image: it has no end")
    try:
        with Image.open(io.BytesIO(data), formats=[form]) as image:
            check_size(name, image.height, image.width)
            if image.mode != mode or getattr(image, "n_frames", 1) != 1:
                raise ValueError(f"field {name!r}: mode {image.mode}, expected one image of mode {mode}")
            return np.array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"field {name!r} is not a whole {form} image: {error}") from error


def encode_deltas(image: Int16[np.ndarray, "h w c"] | Int8[np.ndarray, "h w c"]) -> bytes:
    """Encode an image as differences between rows (modulo the type's range), bytes of equal significance together,
    zstd; a header with type and size in front."""
    deltas = image.copy()
    deltas[1:] -= image[:-1]
    height, width, channels = image.shape
    planes = deltas.astype(deltas.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, image.itemsize).T
    header = _HEADER.pack(_MAGIC, image.itemsize, channels, 0, height, width)
    return header + pa.Codec("zstd", compression_level=ZSTD_LEVEL).compress(planes.tobytes(), asbytes=True)


def decode_scaled(fields: Mapping[str, Any], name: str, scale: np.float32) -> Float32[np.ndarray, "height width 3"]:
    """Decode an image of 16-bit values, times `scale`."""
    height, width, raw = _deltas(fields, name, 2)
    low, high = np.frombuffer(raw, np.uint8).reshape(2, height, width * 3)
    image = np.empty((height, width * 3), np.float32)
    scaled_rows(low, high, scale, image)
    return image.reshape(height, width, 3)


def decode_units(fields: Mapping[str, Any], name: str) -> Float32[np.ndarray, "height width 3"]:
    """Decode an image of 8-bit vectors, scaled to unit length; 0 stays 0."""
    height, width, raw = _deltas(fields, name, 1)
    image = np.empty((height, width, 3), np.float32)
    unit_rows(np.frombuffer(raw, np.int8).reshape(height, width, 3), image)
    return image


def _deltas(fields: Mapping[str, Any], name: str, itemsize: int) -> tuple[int, int, bytes]:
    """Unpack height, width and bytes: differences between rows, bytes of equal significance together."""
    data = field_bytes(fields, name)
    if len(data) < _HEADER.size:
        raise ValueError(f"field {name!r} is shorter than its header")
    magic, item, channels, reserved, height, width = _HEADER.unpack_from(data)
    if magic != _MAGIC or (item, channels, reserved) != (itemsize, 3, 0):
        raise ValueError(f"field {name!r}: not an array of three {itemsize}-byte channels")
    check_size(name, height, width)
    size = height * width * channels * itemsize
    try:
        raw = pa.Codec("zstd").decompress(memoryview(data)[_HEADER.size :], decompressed_size=size, asbytes=True)
    except OSError as error:
        raise ValueError(f"field {name!r} does not hold {height} x {width} pixels: {error}") from error
    return height, width, raw
