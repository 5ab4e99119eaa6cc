"""Encoded images to pixels, and the textures of a mesh, each image decoded once."""

import io
import struct
import zlib
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from pipeline.formats.fault import AssetFault
from pipeline.formats.image_header import image_size
from pipeline.formats.ktx2 import decode_ktx2, is_ktx2
from schemas.ledger import Reason
from schemas.mesh import Texture, Wrap

Key = TypeVar("Key", bound=Hashable)


def decode_image(data: bytes | memoryview, where: str) -> UInt8[np.ndarray, "height width 4"]:
    """PNG, JPEG, WebP or KTX2 to RGBA, row 0 at the top; a fault unless every pixel decodes."""
    size = image_size(data, where)
    if is_ktx2(data):
        return decode_ktx2(data, where)
    try:
        with PillowImage.open(io.BytesIO(data), formats=("PNG", "JPEG", "WEBP")) as image:
            if image.size != size:
                raise AssetFault(Reason.BAD_IMAGE, f"{where}: header says {size}, decoder {image.size}")
            image.load()
            return np.array(_eight_bit(image).convert("RGBA"))
    except PillowImage.DecompressionBombError as e:
        raise AssetFault(Reason.TOO_LARGE, f"{where}: {e}") from e
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as e:
        if "out of memory" in str(e):  # Pillow's words for its decoders' want of it
            raise MemoryError(f"{where}: {e}") from e
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: image cannot be decoded ({e})") from e


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
        """Index of a texture, its image decoded when new; a fault where that does not do.

        `glossiness`: the factor of an image with glossiness in A, of which a metallic-roughness texture is made."""
        if image not in self._pixels:
            data, where = self._fetch(image)
            width, height = image_size(data, where)
            decoded = sum(pixels.nbytes for pixels in self._pixels.values()) + 4 * width * height
            if decoded > self._limit:
                raise AssetFault(
                    Reason.TOO_LARGE, f"{where}: images decode to {decoded:,} bytes, limit {self._limit:,}"
                )
            self._pixels[image] = decode_image(data, where)
        return self._slots.setdefault((image, wrap_u, wrap_v, nearest, glossiness), len(self._slots))

    def slot_or_none(
        self, image: Key, wrap_u: Wrap, wrap_v: Wrap, nearest: bool = False, glossiness: float | None = None
    ) -> int | None:
        """The same for a texture that one can do without."""
        try:
            return self.slot(image, wrap_u, wrap_v, nearest, glossiness)
        except AssetFault:
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
