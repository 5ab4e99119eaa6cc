"""Encoded images to pixels, and the textures of a mesh, each image decoded once."""

import io
import math
import struct
import zlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image as PillowImage

from pipeline.mesh_io.image_header import KTX2, image_format, image_size
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason
from schemas.mesh import Texture, Wrap

_BROKEN = (
    OSError, SyntaxError, ValueError, TypeError, EOFError, IndexError, NotImplementedError, struct.error, zlib.error,
)  # fmt: skip
"""Errors that Pillow's decoders raise for data that they cannot read."""
CHANNELS = {"r": 0, "g": 1, "b": 2, "m": 3}
"""Values of MTL's -imfchan."""


def decode_ktx2(data: bytes | memoryview, where: str) -> UInt8[np.ndarray, "height width 4"]:
    """Level 0 as RGBA, row 0 at the top."""
    import opengl_basisu  # builds its tables when imported, 0.1 s that only such textures should cost

    width, height = image_size(data, where)
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


Key = TypeVar("Key", bound=Hashable)


def decode_image(data: bytes | memoryview, where: str, suffix: str = "") -> UInt8[np.ndarray, "height width 4"]:
    """Decode an image of `image_format` to RGBA, row 0 at the top; of several the first. Raises AssetError unless every
    pixel decodes. `suffix`: of its file, if it is one."""
    size, name = image_size(data, where, suffix), image_format(data, suffix)
    if name is None or name == KTX2:
        return decode_ktx2(data, where)
    try:
        with PillowImage.open(io.BytesIO(data), formats=(name,)) as image:
            if image.size != size:
                raise AssetError(Reason.BAD_IMAGE, f"{where}: header says {size}, decoder {image.size}")
            image.load()
            return _rgba(image, data[24] if name == "PNG" else 8)
    except PillowImage.DecompressionBombError as e:
        raise AssetError(Reason.TOO_LARGE, f"{where}: {e}") from e
    except _BROKEN as e:
        if "out of memory" in str(e):  # Pillow's words for its decoders' want of it
            raise MemoryError(f"{where}: {e}") from e
        raise AssetError(Reason.BAD_IMAGE, f"{where}: image cannot be decoded ({e})") from e


def _rgba(image: PillowImage.Image, depth: int) -> UInt8[np.ndarray, "height width 4"]:
    """Pixels as RGBA without clipping. `depth`: bits of a sample of a PNG, whose key colour is counted in them (PNG
    specification, 11.3.2.1)."""
    key = image.info.get("transparency")
    if image.mode.startswith("I;16"):  # keep the high byte
        grey = np.asarray(image)
        alpha = np.where(grey == key, 0, 255) if key is not None else np.full(grey.shape, 255)
        return np.stack([grey >> 8] * 3 + [alpha], axis=-1).astype(np.uint8)
    if image.mode in ("I", "F"):
        raise ValueError(f"samples of 32 bits ({image.mode})")
    if image.mode == "L" and depth in (2, 4) and key is not None:
        image.info["transparency"] = key * (255 // (2**depth - 1))
    elif image.mode == "RGB" and depth == 16 and key is not None:
        image.info["transparency"] = tuple(sample >> 8 for sample in key)  # Pillow keeps the high bytes alone
    plain = {"CMYK": "RGB", "YCbCr": "RGB", "LAB": "RGB", "La": "LA"}.get(image.mode)
    return np.array((image.convert(plain) if plain else image).convert("RGBA"))


@dataclass(frozen=True, slots=True)
class _Slot(Generic[Key]):
    """A texture as it was asked for."""

    image: Key | None
    wrap_u: Wrap
    wrap_v: Wrap
    nearest: bool
    glossiness: float | None
    mask: Key | None
    channel: str


class TextureStore(Generic[Key]):
    """Textures in the order they were asked for. `fetch` gives an image's encoded bytes, its place in the file, and the
    suffix of its own file, if it is one."""

    def __init__(self, fetch: Callable[[Key], tuple[bytes | memoryview, str, str]], max_decoded_bytes: int) -> None:
        self._fetch, self._limit = fetch, max_decoded_bytes
        self._pixels: dict[Key, UInt8[np.ndarray, "height width 4"]] = {}
        self._slots: dict[_Slot[Key], int] = {}

    def slot(
        self,
        image: Key | None,
        wrap_u: Wrap,
        wrap_v: Wrap,
        nearest: bool = False,
        glossiness: float | None = None,
        mask: Key | None = None,
        channel: str = "",
    ) -> int:
        """Return the index of a texture, its image decoded when new. Raises AssetError where that fails.

        `glossiness`: the factor of an image with glossiness in A, of which a metallic-roughness texture is made.
        `mask`: the image that gives the texture its opacity (`_cut_out`), a white one where `image` is None."""
        for key in (image, mask):
            if key is not None:
                self.pixels(key)
        slot = _Slot(image, wrap_u, wrap_v, nearest, glossiness, mask, channel)
        return self._slots.setdefault(slot, len(self._slots))

    def pixels(self, image: Key) -> UInt8[np.ndarray, "height width 4"]:
        """Return an image, decoded when new. Raises AssetError where that fails."""
        if image not in self._pixels:
            self._pixels[image] = self._decoded(image)
        return self._pixels[image]

    def _decoded(self, key: Key) -> UInt8[np.ndarray, "height width 4"]:
        data, where, suffix = self._fetch(key)
        width, height = image_size(data, where, suffix)
        decoded = sum(pixels.nbytes for pixels in self._pixels.values()) + 4 * width * height
        if decoded > self._limit:
            raise AssetError(Reason.TOO_LARGE, f"{where}: images decode to {decoded:,} bytes, limit {self._limit:,}")
        return decode_image(data, where, suffix)

    def slot_or_none(
        self, image: Key, wrap_u: Wrap, wrap_v: Wrap, nearest: bool = False, glossiness: float | None = None
    ) -> int | None:
        """The same for a texture that one can do without."""
        try:
            return self.slot(image, wrap_u, wrap_v, nearest, glossiness)
        except AssetError:
            return None

    def textures(self, *, originals: bool = False) -> list[Texture]:
        """Return the textures. `originals`: with the encoded files of those that are used as they are."""
        return [
            Texture(
                image=self._image(slot),
                wrap_u=slot.wrap_u,
                wrap_v=slot.wrap_v,
                nearest=slot.nearest,
                file=self._file(slot) if originals else None,
            )
            for slot in self._slots
        ]

    def _file(self, slot: _Slot[Key]) -> bytes | None:
        changed = slot.image is None or slot.mask is not None or slot.glossiness is not None
        return None if changed or slot.image is None else bytes(self._fetch(slot.image)[0])

    def _image(self, slot: _Slot[Key]) -> UInt8[np.ndarray, "height width 4"]:
        pixels = None if slot.image is None else self._pixels[slot.image]
        if slot.mask is not None:
            return _cut_out(pixels, self._pixels[slot.mask], slot.channel)
        assert pixels is not None
        return pixels if slot.glossiness is None else _rough(pixels, slot.glossiness)


def _cut_out(
    pixels: UInt8[np.ndarray, "height width 4"] | None, mask: UInt8[np.ndarray, "height_m width_m 4"], channel: str
) -> UInt8[np.ndarray, "height_o width_o 4"]:
    """An image (None: white) with the opacity that an MTL's `map_d` gives it, in the size of the larger of them: the
    channel that the file names, else alpha where the mask has any, as Blender reads it, else green, as three.js does.
    An image without alpha that is its own mask is opaque."""
    alpha = mask[..., CHANNELS.get(channel, 3)]
    if channel not in CHANNELS and alpha.min() == 255 and mask is not pixels:
        alpha = mask[..., 1]
    colors = np.full((*alpha.shape, 3), 255, np.uint8) if pixels is None else pixels[..., :3]
    return np.dstack(alike([colors, alpha]))


def alike(images: Sequence[UInt8[np.ndarray, "..."]]) -> list[UInt8[np.ndarray, "..."]]:
    """Images of any channels, all in the size of the largest, bilinear."""
    height, width = max((image.shape[:2] for image in images), key=math.prod)
    return [
        image
        if image.shape[:2] == (height, width)
        else np.asarray(
            PillowImage.fromarray(np.ascontiguousarray(image)).resize((width, height), PillowImage.Resampling.BILINEAR)
        )
        for image in images
    ]


def _rough(pixels: UInt8[np.ndarray, "height width 4"], glossiness: float) -> UInt8[np.ndarray, "height width 4"]:
    """Roughness in G, no metal in B, as glTF's metallic-roughness textures have them."""
    table = np.round(255.0 - glossiness * np.arange(256)).astype(np.uint8)
    found = np.zeros_like(pixels)
    found[..., 1], found[..., 3] = table[pixels[..., 3]], 255
    return found
