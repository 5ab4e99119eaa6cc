"""Images of every format that is read, their sizes known before they are decoded."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pipeline.mesh_io.image_header import image_format, image_size
from pipeline.mesh_io.images import decode_image
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

BLOCKS = np.array([[[220, 40, 40], [40, 200, 60], [9, 9, 9]], [[50, 70, 220], [230, 210, 50], [255] * 3]], np.uint8)
PIXELS = np.kron(BLOCKS, np.ones((4, 4, 1), np.uint8))
FORMATS = {"PNG": 0, "JPEG": 12, "WEBP": 0, "BMP": 0, "GIF": 6, "TIFF": 0, "DDS": 6, "TGA": 0}
"""Pillow's name, and by how much a value may differ."""


def encoded(name: str, pixels: np.ndarray = PIXELS, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, name, **options)
    return stream.getvalue()


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_told_by_its_bytes_and_decoded(name: str) -> None:
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(name, {})
    data = encoded(name, **options)
    assert image_format(data) == name
    assert image_size(data, "x") == (12, 8)
    found = decode_image(data, "x")
    assert (found[..., 3] == 255).all()
    assert np.abs(found[..., :3].astype(int) - PIXELS).max() <= FORMATS[name]


@pytest.mark.parametrize(
    ("name", "options"),
    [("TIFF", {"compression": c}) for c in ("tiff_lzw", "tiff_adobe_deflate", "packbits")]
    + [("TGA", {"compression": "tga_rle"}), ("BMP", {}), ("TIFF", {"big_tiff": False})],
)
def test_other_ways_to_store_a_format(name: str, options: dict[str, object]) -> None:
    alpha = np.dstack([PIXELS, np.full((8, 12), 255, np.uint8)])
    alpha[0, 0, 3] = 0
    for pixels in (PIXELS, PIXELS[..., 0], alpha):
        found = decode_image(encoded(name, pixels, **options), "x")
        np.testing.assert_array_equal(found[..., 0], pixels if pixels.ndim == 2 else pixels[..., 0])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_tiff_is_turned_as_it_says_and_a_jpeg_is_not(orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    turned = decode_image(encoded("TIFF", exif=exif), "x")
    assert turned.shape[:2] == ((8, 12) if orientation < 5 else (12, 8))
    assert decode_image(encoded("JPEG", exif=exif), "x").shape == (8, 12, 4)


def test_the_first_picture_of_several() -> None:
    frames = [Image.fromarray(np.full((4, 4, 3), value, np.uint8)) for value in (250, 10)]
    for name in ("GIF", "PNG", "WEBP", "TIFF"):
        stream = io.BytesIO()
        options = {"lossless": True} if name == "WEBP" else {}
        frames[0].save(stream, name, save_all=True, append_images=frames[1:], **options)
        assert (decode_image(stream.getvalue(), "x")[..., :3] >= 248).all(), name


def test_a_tga_has_a_sound_header_and_a_name_or_a_mark() -> None:
    whole = encoded("TGA")
    plain = whole[: whole.rindex(b"TRUEVISION") - 8]
    assert image_format(whole) == "TGA" and image_format(plain) is None
    assert image_format(plain, ".TGA") == "TGA" and image_format(plain, ".png") is None
    np.testing.assert_array_equal(decode_image(plain, "x", ".tga")[..., :3], PIXELS)
    for at, value in ((1, 2), (2, 7), (16, 9), (17, 0x40)):
        broken = bytearray(plain)
        broken[at] = value
        assert image_format(bytes(broken), ".tga") is None
    assert image_format(b"a text of more than 18 bytes", ".tga") is None


def png_chunks(depth: int, kind: int, width: int, rows: bytes, key: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, depth, kind, 0, 0, 0)) + chunk(b"tRNS", key)
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("depth", "kind", "rows", "key", "wanted"),
    [
        (1, 0, b"\0\x40", (1,), [(0, 255), (255, 0)]),
        (2, 0, b"\0\xb0", (2,), [(170, 0), (255, 255)]),
        (4, 0, b"\0\x5a", (5,), [(85, 0), (170, 255)]),
        (8, 0, b"\0\x05\x06", (5,), [(5, 0), (6, 255)]),
        (16, 0, b"\0\x05\x06\x05\x07", (0x506,), [(5, 0), (5, 255)]),
        (8, 2, b"\0\x01\x02\x03\x01\x02\x04", (1, 2, 3), [(1, 0), (1, 255)]),
        (16, 2, b"\0" + struct.pack(">6H", 0x1234, 2, 3, 0x3434, 2, 3), (0x1234, 2, 3), [(0x12, 0), (0x34, 255)]),
    ],
)
def test_a_key_colour_is_counted_in_the_samples_of_its_png(
    depth: int, kind: int, rows: bytes, key: tuple[int, ...], wanted: list[tuple[int, int]]
) -> None:
    data = png_chunks(depth, kind, 2, rows, struct.pack(f">{len(key)}H", *key))
    found = decode_image(data, "x")
    assert [(int(red), int(alpha)) for red, alpha in found[0][:, [0, 3]]] == wanted


def _u16(data: bytes, at: int, value: int) -> bytes:
    return data[:at] + struct.pack("<H", value) + data[at + 2 :]


HUGE: dict[str, Callable[[bytes], bytes]] = {
    "BMP": lambda data: data[:18] + struct.pack("<ii", 60_000, -60_000) + data[26:],
    "GIF": lambda data: _u16(_u16(data, 6, 60_000), 8, 60_000),
    "DDS": lambda data: data[:12] + struct.pack("<II", 60_000, 60_000) + data[20:],
    "TGA": lambda data: _u16(_u16(data, 12, 60_000), 14, 60_000),
}


@pytest.mark.parametrize("name", HUGE)
def test_the_size_comes_from_the_header(name: str) -> None:
    assert image_size(HUGE[name](encoded(name)), "x") == (60_000, 60_000)


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_cut_off_or_changed_is_an_image_or_a_reason(name: str) -> None:
    data, rng = encoded(name), np.random.default_rng(20250613)
    cuts = [data[:end] for end in range(0, len(data), max(1, len(data) // 40))]
    changed = []
    for _ in range(150):
        broken = bytearray(data)
        for at in rng.integers(0, min(len(broken), 200), 3):
            broken[at] = rng.integers(0, 256)
        changed.append(bytes(broken))
    for broken in cuts + changed:
        try:
            width, height = image_size(broken, "x", ".tga")
            if width * height > 1 << 22:
                continue  # beyond the limit that the loader would be given
            found = decode_image(broken, "x", ".tga")
        except AssetError as error:
            assert error.rejected.reason in (Reason.BAD_IMAGE, Reason.TOO_LARGE)
            continue
        assert found.shape == (height, width, 4)


def test_samples_of_32_bits_are_refused() -> None:
    for kind in (np.float32, np.int32):
        with pytest.raises(AssetError, match="32 bits"):
            decode_image(encoded("TIFF", np.ones((4, 4), kind)), "x")
