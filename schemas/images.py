"""Images as bytes of a sample, in standard lossless formats. Declared sizes are checked before memory is taken for
them. PNG images are written with one filter and libdeflate, which is several times as fast as trying every filter; any
PNG reader reads them."""

import io
import struct
from collections.abc import Mapping
from typing import Any

import deflate
import numpy as np
from jaxtyping import Bool, Float32, UInt8
from PIL import Image

from schemas.png_kernels import UP, normal_pixels, normal_rows, position_pixels, position_rows

MAX_SIDE = 16_383
"""Longest side of a stored image, pixels (WebP's own limit); of positions the side of a plane."""
MAX_PIXELS = 1 << 26
POSITION_STEPS = 32_767
DEFLATE_LEVEL = 6
"""Level of libdeflate, 1 to 12: positions are 4 to 8 % smaller than at level 3, for a third to a half more time."""
_SIGNATURE, _END = b"\x89PNG\r\n\x1a\n", b"\0\0\0\0IEND\xaeB`\x82"
_HEADER = struct.Struct(">4sIIBBBBB")
_GREY, _RGB = 0, 2


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
    """Encode an image (uint8) in a format of Pillow."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, form, **options)
    return out.getvalue()


def encode_grey(image: UInt8[np.ndarray, "height width"] | Bool[np.ndarray, "height width"]) -> bytes:
    """Encode a grey image as PNG of 8 bits, a mask as PNG of 1 bit."""
    if image.dtype == bool:
        return encode_png(np.packbits(image, axis=1), image.shape[1], depth=1)
    return encode_png(image, image.shape[1], depth=8)


def encode_png(pixels: UInt8[np.ndarray, "height bytes"], width: int, depth: int, *, rgb: bool = False) -> bytes:
    """Encode the bytes of the rows of an image as PNG: grey of 1, 8 or 16 bits (big-endian), or RGB."""
    rows = np.empty((len(pixels), 1 + pixels.shape[1]), np.uint8)
    rows[:, 0], rows[0, 1:] = UP, pixels[0]
    np.subtract(pixels[1:], pixels[:-1], out=rows[1:, 1:])
    return _png(rows, width, depth, _RGB if rgb else _GREY)


def encode_positions(
    position: Float32[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], name: str
) -> bytes:
    """Encode positions in [-1, 1] as a grey PNG of 16 bits: three planes, x above y above z, each value
    round(32767 p) + 32768, 0 outside the mask. Raises ValueError for positions outside [-1, 1]."""
    height, width = mask.shape
    rows = np.empty((3 * height, 1 + 2 * width), np.uint8)
    if not (largest := position_rows(position, mask, rows)) <= 1 + 1e-5:
        raise ValueError(f"field {name!r}: positions reach {largest}, outside [-1, 1]")
    return _png(rows, width, 16, _GREY)


def encode_normals(
    normal: Float32[np.ndarray, "height width 3"], mask: Bool[np.ndarray, "height width"], name: str
) -> bytes:
    """Encode unit vectors as an RGB PNG of 8 bits, each value round(127 n) + 128, black outside the mask. Raises
    ValueError for vectors that are not finite."""
    if not np.isfinite(normal).all():
        raise ValueError(f"field {name!r}: not finite")
    height, width = mask.shape
    rows = np.empty((height, 1 + 3 * width), np.uint8)
    normal_rows(normal, mask, rows)
    return _png(rows, width, 8, _RGB)


def _png(rows: UInt8[np.ndarray, "height bytes"], width: int, depth: int, color: int) -> bytes:
    header = _HEADER.pack(b"IHDR", width, len(rows), depth, color, 0, 0, 0)
    pixels = b"IDAT" + bytes(deflate.zlib_compress(rows.data, DEFLATE_LEVEL))
    return b"".join((_SIGNATURE, _chunk(header), _chunk(pixels), _END))


def _chunk(content: bytes) -> bytes:
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", deflate.crc32(content))


def decode_image(fields: Mapping[str, Any], name: str, form: str, mode: str) -> np.ndarray:
    """Decode an image, given its format and mode in Pillow. Raises ValueError where it is another or not whole."""
    data = field_bytes(fields, name)
    if form == "PNG" and not data.endswith(_END):  # Pillow reads one without
        raise ValueError(f"field {name!r} is not a whole PNG image: it has no end")
    try:
        with Image.open(io.BytesIO(data), formats=[form]) as image:
            check_size(name, image.height, image.width)
            if image.mode != mode or getattr(image, "n_frames", 1) != 1:
                raise ValueError(f"field {name!r}: mode {image.mode}, expected one image of mode {mode}")
            return np.array(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"field {name!r} is not a whole {form} image: {error}") from error


def with_empty_red(pair: UInt8[np.ndarray, "height width 2"]) -> UInt8[np.ndarray, "height width 3"]:
    """Metallic and roughness as the RGB image that glTF has them in: roughness in G, metallic in B, nothing in R."""
    image = np.zeros((*pair.shape[:2], 3), np.uint8)
    image[..., 2], image[..., 1] = pair[..., 0], pair[..., 1]
    return image


def decode_metallic_roughness(fields: Mapping[str, Any], name: str) -> UInt8[np.ndarray, "height width 2"]:
    """Decode metallic and roughness as `with_empty_red` has them. Raises ValueError where red is not empty."""
    image = decode_image(fields, name, "WEBP", "RGB")
    if image[..., 0].any():
        raise ValueError(f"field {name!r} has values in its red channel, which is empty as it is written here")
    return np.ascontiguousarray(image[..., :0:-1])


def decode_positions(
    fields: Mapping[str, Any], name: str, mask: Bool[np.ndarray, "height width"] | None = None
) -> Float32[np.ndarray, "height width 3"]:
    """Decode positions as `encode_positions` wrote them; 0 outside the mask, which the image itself shows."""
    height, width = mask.shape if mask is not None else _declared_size(fields, name, planes=3)
    rows = _rows(fields, name, (3 * height, width), 16, _GREY)
    position = np.empty((height, width, 3), np.float32)
    inside = np.empty((0, 0), bool) if mask is None else mask
    position_pixels(rows, inside, mask is not None, np.float32(1 / POSITION_STEPS), position)
    return position


def decode_normals(
    fields: Mapping[str, Any], name: str, mask: Bool[np.ndarray, "height width"] | None = None
) -> Float32[np.ndarray, "height width 3"]:
    """Decode unit vectors as `encode_normals` wrote them; 0 where the image is black. The mask gives the size alone."""
    height, width = mask.shape if mask is not None else _declared_size(fields, name)
    normal = np.empty((height, width, 3), np.float32)
    normal_pixels(_rows(fields, name, (height, width), 8, _RGB), normal)
    return normal


def _declared_size(fields: Mapping[str, Any], name: str, planes: int = 1) -> tuple[int, int]:
    """Return height and width of each of the planes of a PNG image, by its header. Raises ValueError where they are too
    large."""
    width, rows = struct.unpack(">II", field_bytes(fields, name)[16:24].ljust(8, b"\0"))
    check_size(name, rows // planes, width)
    return rows // planes, width


def _rows(
    fields: Mapping[str, Any], name: str, size: tuple[int, int], depth: int, color: int
) -> UInt8[np.ndarray, "height bytes"]:
    """Inflate a PNG image of a size that was checked: its rows, each behind the number of its filter, which is not
    undone. Raises ValueError where it is another image."""
    data, (height, width) = field_bytes(fields, name), size
    wanted = _SIGNATURE + _chunk(_HEADER.pack(b"IHDR", width, height, depth, color, 0, 0, 0))
    start = len(wanted)
    length = int.from_bytes(data[start : start + 4], "big")
    if not data.startswith(wanted) or len(data) != start + 12 + length + len(_END) or not data.endswith(_END):
        raise ValueError(f"field {name!r} is not a PNG image of {height} x {width} pixels as it is written here")
    content = memoryview(data)[start + 4 : start + 8 + length]
    if data[start : start + len(content) + 8] != _chunk(bytes(content)):
        raise ValueError(f"field {name!r} is damaged: its checksum is another")
    row_bytes = 1 + width * depth * (3 if color == _RGB else 1) // 8
    try:
        raw = deflate.zlib_decompress(content[4:], height * row_bytes)
    except deflate.DeflateError as error:
        raise ValueError(f"field {name!r} does not hold {height} x {width} pixels: {error}") from error
    if len(raw) != height * row_bytes:
        raise ValueError(f"field {name!r} holds {len(raw)} bytes of pixels, not {height * row_bytes}")
    rows = np.frombuffer(raw, np.uint8).reshape(height, row_bytes)
    if (rows[:, 0] != UP).any():
        raise ValueError(f"field {name!r}: rows are not filtered as they are written here")
    return rows
