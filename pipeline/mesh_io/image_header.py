"""Format and size of an encoded image, from its header alone: what decoding it would take is known before."""

import struct
from collections.abc import Callable

from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

KTX2 = "KTX2"
"""Basis Universal; all other formats are decoded by Pillow, which knows them by the names used here."""
_IDENTIFIER = b"\xabKTX 20\xbb\r\n\x1a\n"
_HEADER_BYTES = 104
"""Identifier, header and index up to the first level's record, which is that of the full size."""
_NONE, BASIS_LZ, _ZSTANDARD = 0, 1, 2
_UASTC_BLOCK_BYTES = 16
_STARTS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8": "JPEG",
    _IDENTIFIER: KTX2,
    b"BM": "BMP",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"DDS ": "DDS",
}
_TGA_FOOTER = b"TRUEVISION-XFILE.\0"
_TGA_DEPTHS = {1: (8,), 2: (15, 16, 24, 32), 3: (8, 16), 9: (8,), 10: (15, 16, 24, 32), 11: (8, 16)}
"""Bits of a pixel by the kind of image: palette, colour, grey; 8 more where it is compressed."""
_JPEG_SIZE_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Start-of-frame segments (ITU T.81, table B.1); C4, C8 and CC are something else."""
_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION = 256, 257, 274
Bytes = bytes | memoryview


def image_format(data: Bytes, suffix: str = "") -> str | None:
    """The format of an image. `suffix`: of its file, if it is one: a TGA has no mark at its start, so that one must
    have the suffix or the mark at its end."""
    start = bytes(data[:12])
    for mark, name in _STARTS.items():
        if start.startswith(mark):
            return name
    if start[:4] == b"RIFF" and start[8:] == b"WEBP":
        return "WEBP"
    named = suffix.lower() == ".tga" or bytes(data[-len(_TGA_FOOTER) :]) == _TGA_FOOTER
    return "TGA" if named and _is_tga(data) else None


def image_size(data: Bytes, where: str, suffix: str = "") -> tuple[int, int]:
    """Return (width, height) in pixels, at least 1. Raises AssetError for what is none of the formats read."""
    name = image_format(data, suffix)
    try:
        size = _ktx2_size(data, where) if name == KTX2 else _SIZES[name](data) if name else None
    except (struct.error, IndexError) as error:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: image ends inside its header ({len(data)} bytes)") from error
    if size is None:
        raise AssetError(
            Reason.BAD_IMAGE,
            f"{where}: not a PNG, JPEG, WebP, KTX2, TGA, BMP, TIFF, GIF or DDS image, starts with {bytes(data[:12])!r}",
        )
    if min(size) < 1:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: image is {size[0]} x {size[1]} pixels")
    return size


def _ktx2_size(data: Bytes, where: str) -> tuple[int, int]:
    """Return (width, height) of level 0. Raises AssetError for the header of anything but a 2D Basis texture."""
    if len(data) < _HEADER_BYTES:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image ends inside its header ({len(data)} bytes)")
    vk_format, _, width, height, depth, layers, faces, _, packing = struct.unpack_from("<9I", data, 12)
    if vk_format != 0 or packing not in (_NONE, BASIS_LZ, _ZSTANDARD):
        raise AssetError(
            Reason.BAD_IMAGE, f"{where}: KTX2 image is not Basis Universal (vkFormat {vk_format}, scheme {packing})"
        )
    if depth or layers or faces != 1:
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image has {depth} slices, {layers} layers, {faces} faces")
    offset, length, unpacked = struct.unpack_from("<3Q", data, 80)
    if offset + length > len(data):
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 image ends inside its first level ({len(data)} bytes)")
    blocks = -(-width // 4) * -(-height // 4)
    if packing != BASIS_LZ and unpacked != blocks * _UASTC_BLOCK_BYTES:  # what the transcoder would set aside for it
        raise AssetError(Reason.BAD_IMAGE, f"{where}: KTX2 level of {unpacked:,} bytes for {width} x {height} pixels")
    return width, height


def _png_size(data: Bytes) -> tuple[int, int] | None:
    width, height = struct.unpack_from(">II", data, 16)
    return (width, height) if data[12:16] == b"IHDR" else None


def _jpeg_size(data: Bytes) -> tuple[int, int] | None:
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


def _webp_size(data: Bytes) -> tuple[int, int] | None:
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


def _bmp_size(data: Bytes) -> tuple[int, int]:
    old = struct.unpack_from("<I", data, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", data, 18)
    return width, abs(height)  # negative: rows from the top


def _gif_size(data: Bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _dds_size(data: Bytes) -> tuple[int, int]:
    height, width = struct.unpack_from("<II", data, 12)
    return width, height


def _tga_size(data: Bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 12)
    return width, height


def _is_tga(data: Bytes) -> bool:
    """Return whether all 18 bytes of a header make sense as a TGA's."""
    if len(data) < 18:
        return False
    palette, kind, depth, layout = data[1], data[2], data[16], data[17]
    return palette in (0, 1) and (kind % 8 != 1 or palette == 1) and depth in _TGA_DEPTHS.get(kind, ()) and layout < 64


def _tiff_size(data: Bytes) -> tuple[int, int] | None:
    """Return the size of the first page, turned as it says (as Pillow does)."""
    order = "<" if data[:2] == b"II" else ">"
    (start,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, start)
    found = {_TIFF_ORIENTATION: 1}
    for entry in range(start + 2, start + 2 + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (_TIFF_WIDTH, _TIFF_HEIGHT, _TIFF_ORIENTATION) and kind in (3, 4):  # 16 or 32 bits
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, entry + 8)
    if not {_TIFF_WIDTH, _TIFF_HEIGHT} <= found.keys():
        return None
    size = found[_TIFF_WIDTH], found[_TIFF_HEIGHT]
    return size[::-1] if 5 <= found[_TIFF_ORIENTATION] <= 8 else size


_SIZES: dict[str, Callable[[Bytes], tuple[int, int] | None]] = {
    "PNG": _png_size,
    "JPEG": _jpeg_size,
    "WEBP": _webp_size,
    "BMP": _bmp_size,
    "GIF": _gif_size,
    "TIFF": _tiff_size,
    "DDS": _dds_size,
    "TGA": _tga_size,
}
