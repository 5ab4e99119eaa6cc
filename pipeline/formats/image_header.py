"""Width and height of a PNG, JPEG, WebP or KTX2 from its first bytes, so that nothing large is decoded unseen."""

import struct

from pipeline.formats.fault import AssetFault
from pipeline.formats.ktx2 import is_ktx2, ktx2_size
from schemas.ledger import Reason

_JPEG_SIZE_MARKERS = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
"""Start-of-frame segments (ITU T.81, table B.1); C4, C8 and CC are something else."""


def image_size(data: bytes | memoryview, where: str) -> tuple[int, int]:
    """(width, height) in pixels, both at least 1; a fault for anything but PNG, JPEG, WebP and KTX2."""
    try:
        size = ktx2_size(data, where) if is_ktx2(data) else _size(data)
    except (struct.error, IndexError) as error:
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: image ends inside its header ({len(data)} bytes)") from error
    if size is None:
        raise AssetFault(
            Reason.BAD_IMAGE, f"{where}: not a PNG, JPEG, WebP or KTX2 image (starts with {bytes(data[:12])!r})"
        )
    if min(size) < 1:
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: image is {size[0]} x {size[1]} pixels")
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
