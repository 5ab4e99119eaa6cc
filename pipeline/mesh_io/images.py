"""Encoded images to pixels, and the textures of a mesh, each image decoded once."""

import io
import struct
import zlib
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason
from schemas.mesh import Texture, Wrap

_IDENTIFIER = b"\xabKTX 20\xbb\r\n\x1a\n"
_HEADER_BYTES = 104
"""Identifier, header and index up to the first level's record, which is that of the full size."""
_NONE, _BASIS_LZ, _ZSTANDARD = 0, 1, 2
_UASTC_BLOCK_BYTES = 16


def is_ktx2(data: bytes | memoryview) -> bool:
    return data[:12] == _IDENTIFIER


def ktx2_size(data: bytes | memoryview, where: str) -> tuple[int, int]:
    """Return (width, height) of level 0. Raises AssetError for the header of anything but a 2D Basis texture."""
    if len(data) < _HEADER_BYTES:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image ends inside its header ({len(data)} bytes)")
    vk_format, _, width, height, depth, layers, faces, _, packing = struct.unpack_from("<9I", data, 12)
    if vk_format != 0 or packing not in (_NONE, _BASIS_LZ, _ZSTANDARD):
        raise AssetError(
            Reason.BAD_IMAGE, f"{where}: KTX2 image is not Basis Universal (vkFormat {vk_format}, scheme {packing})"
        )
    if depth or layers or faces != 1:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image has {depth} slices, {layers} layers, {faces} faces")
    offset, length, unpacked = struct.unpack_from("<3Q", data, 80)
    if offset + length > len(data):
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image ends inside its first level ({len(data)} bytes)")
    blocks = -(-width // 4) * -(-height // 4)
    if packing != _BASIS_LZ and unpacked != blocks * _UASTC_BLOCK_BYTES:  # what the transcoder would set aside for it
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 level of {unpacked:,} bytes for {width} x {height} pixels")
    return width, height


def decode_ktx2(data: bytes | memoryview, where: str) -> UInt8[np.ndarray, "height width 4"]:
    """Level 0 as RGBA, row 0 at the top."""
    import opengl_basisu  # builds its tables when imported, 0.1 s that only such textures should cost

    width, height = ktx2_size(data, where)
    try:
        texture = opengl_basisu.open(bytes(data))
        if (texture.width, texture.height) != (width, height) or texture.codec not in (
            opengl_basisu.Codec.ETC1S,
            opengl_basisu.Codec.UASTC_LDR_4x4,
        ):
            raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image is {texture!r}, not ETC1S or UASTC")
        return np.asarray(texture.transcode(opengl_basisu.Target.RGBA8).data)
    except opengl_basisu.BasisuError as error:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image cannot be decoded ({error})") from error


_JPEG_SIZE_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Start-of-frame segments (ITU T.81, table B.1); C4, C8 and CC are something else."""


def image_size(data: bytes | memoryview, where: str) -> tuple[int, int]:
    """Return (width, height) in pixels, at least 1. Raises AssetError for anything but PNG, JPEG, WebP and KTX2."""
    try:
        size = ktx2_size(data, where) if is_ktx2(data) else _size(data)
    except (struct.error, IndexError) as error:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: image ends inside its header ({len(data)} bytes)") from error
    if size is None:
        raise AssetError(
            Reason.BAD_IMAGE, f"{where}: not a PNG, JPEG, WebP or KTX2 image (starts with {bytes(data[:12])!r})"
        )
    if min(size) < 1:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: image is {size[0]} x {size[1]} pixels")
    return size


def _size(data: bytes | memoryview) -> tuple[int, int] | None:
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    if data[:2] == b"\xff\xd8":
        return _jpeg_size(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp_size(data)
    return None


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int] | None:
    position = 2
    while data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _JPEG_SIZE_MARKERS:
            height, width = struct.unpack_from(">HH", data, position + 5)
            return width, height
        standalone = marker == 0x01 or 0xD0 <= marker <= 0xD8
        position += 2 if standalone else 2 + max(2, struct.unpack_from(">H", data, position + 2)[0])
    return None


def _webp_size(data: bytes | memoryview) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


Key = TypeVar("Key", bound=Hashable)


def decode_image(data: bytes | memoryview, where: str) -> UInt8[np.ndarray, "height width 4"]:
    """Decode PNG, JPEG, WebP or KTX2 to RGBA, row 0 at the top. Raises AssetError unless every pixel decodes."""
    size = image_size(data, where)
    if is_ktx2(data):
        return decode_ktx2(data, where)
    try:
        with PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != size:
                raise AssetError(Reason.BAD_IMAGE, f"{where}: header says {size}, decoder {image.size}")
            image.load()
            return np.array(_eight_bit(image).convert("RGBA"))
    except PillowImage.DecompressionBombError as e:
        raise AssetError(Reason.TOO_LARGE, f"{where}: {e}") from e
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as e:
        if "out of memory" in str(e):  # Pillow's words for its decoders' want of it
            raise MemoryError(f"{where}: {e}") from e
        raise AssetError(Reason.BAD_IMAGE, f"{where}: image cannot be decoded ({e})") from e


def _eight_bit(image: PillowImage.Image) -> PillowImage.Image:
    """A mode that Pillow converts to RGBA without clipping."""
    if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
        return PillowImage.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB") else image


class TextureStore(Generic[Key]):
    """Textures in the order they were asked for. `fetch` gives an image's encoded bytes and its place in the file."""

    def __init__(self, fetch: Callable[[Key], tuple[bytes | memoryview, str]], max_decoded_bytes: int) -> None:
        self._fetch, self._limit = fetch, max_decoded_bytes
        self._pixels: dict[Key, UInt8[np.ndarray, "height width 4"]] = {}
        self._slots: dict[tuple[Key, Wrap, Wrap, bool, float | None], int] = {}

    def slot(
        self, image: Key, wrap_u: Wrap, wrap_v: Wrap, nearest: bool = False, glossiness: float | None = None
    ) -> int:
        """Return the index of a texture, its image decoded when new. Raises AssetError where that fails.

        `glossiness`: the factor of an image with glossiness in A, of which a metallic-roughness texture is made."""
        self.pixels(image)
        return self._slots.setdefault((image, wrap_u, wrap_v, nearest, glossiness), len(self._slots))

    def pixels(self, image: Key) -> UInt8[np.ndarray, "height width 4"]:
        """Return an image, decoded when new. Raises AssetError where that fails."""
        if image not in self._pixels:
            data, where = self._fetch(image)
            width, height = image_size(data, where)
            decoded = sum(pixels.nbytes for pixels in self._pixels.values()) + 4 * width * height
            if decoded > self._limit:
                raise AssetError(
                    Reason.TOO_LARGE, f"{where}: images decode to {decoded:,} bytes, limit {self._limit:,}"
                )
            self._pixels[image] = decode_image(data, where)
        return self._pixels[image]

    def slot_or_none(
        self, image: Key, wrap_u: Wrap, wrap_v: Wrap, nearest: bool = False, glossiness: float | None = None
    ) -> int | None:
        """The same for a texture that one can do without."""
        try:
            return self.slot(image, wrap_u, wrap_v, nearest, glossiness)
        except AssetError:
            return None

    def textures(self) -> list[Texture]:
        return [
            Texture(
                image=self._pixels[image] if glossiness is None else _rough(self._pixels[image], glossiness),
                wrap_u=wrap_u,
                wrap_v=wrap_v,
                nearest=nearest,
            )
            for image, wrap_u, wrap_v, nearest, glossiness in self._slots
        ]


def _rough(pixels: UInt8[np.ndarray, "height width 4"], glossiness: float) -> UInt8[np.ndarray, "height width 4"]:
    """Roughness in G, no metal in B, as glTF's metallic-roughness textures have them."""
    table = np.round(255.0 - glossiness * np.arange(256)).astype(np.uint8)
    found = np.zeros_like(pixels)
    found[..., 1], found[..., 3] = table[pixels[..., 3]], 255
    return found
