"""KTX2 textures as KHR_texture_basisu allows them: Basis Universal (ETC1S or UASTC), plain 2D (Khronos KTX 2.0)."""

import struct

import numpy as np
from jaxtyping import UInt8

from pipeline.formats.fault import AssetFault
from schemas.ledger import Reason

_IDENTIFIER = b"\xabKTX 20\xbb\r\n\x1a\n"
_HEADER_BYTES = 104
"""Identifier, header and index up to the first level's record, which is that of the full size."""
_NONE, _BASIS_LZ, _ZSTANDARD = 0, 1, 2
_UASTC_BLOCK_BYTES = 16


def is_ktx2(data: bytes | memoryview) -> bool:
    return data[:12] == _IDENTIFIER


def ktx2_size(data: bytes | memoryview, where: str) -> tuple[int, int]:
    """(width, height) of level 0; a fault where the header is not that of a sound 2D Basis Universal texture."""
    if len(data) < _HEADER_BYTES:
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: KTX2 image ends inside its header ({len(data)} bytes)")
    vk_format, _, width, height, depth, layers, faces, _, packing = struct.unpack_from("<9I", data, 12)
    if vk_format != 0 or packing not in (_NONE, _BASIS_LZ, _ZSTANDARD):
        raise AssetFault(
            Reason.BAD_IMAGE, f"{where}: KTX2 image is not Basis Universal (vkFormat {vk_format}, scheme {packing})"
        )
    if depth or layers or faces != 1:
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: KTX2 image has {depth} slices, {layers} layers, {faces} faces")
    offset, length, unpacked = struct.unpack_from("<3Q", data, 80)
    if offset + length > len(data):
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: KTX2 image ends inside its first level ({len(data)} bytes)")
    blocks = -(-width // 4) * -(-height // 4)
    if packing != _BASIS_LZ and unpacked != blocks * _UASTC_BLOCK_BYTES:  # what the transcoder would set aside for it
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: KTX2 level of {unpacked:,} bytes for {width} x {height} pixels")
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
            raise AssetFault(Reason.BAD_IMAGE, f"{where}: KTX2 image is {texture!r}, not ETC1S or UASTC")
        return np.asarray(texture.transcode(opengl_basisu.Target.RGBA8).data)
    except opengl_basisu.BasisuError as error:
        raise AssetFault(Reason.BAD_IMAGE, f"{where}: KTX2 image cannot be decoded ({error})") from error
