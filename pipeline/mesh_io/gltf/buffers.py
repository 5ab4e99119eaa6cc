"""Bytes behind a glTF: buffers, and the views into them, plain or meshopt-compressed."""

from dataclasses import dataclass
from pathlib import Path

import meshopt

from pipeline.mesh_io.gltf.json_fields import Json
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, decode_data_uri, is_data_uri, read_limited
from schemas.ledger import NoteKind, Reason

MESHOPT = ("EXT_meshopt_compression", "KHR_meshopt_compression")
"""The second adds a version of the bitstream and the COLOR filter; the decoder knows both, and so may either file."""
_FILTER_STRIDES = {"OCTAHEDRAL": (4, 8), "QUATERNION": (8,), "COLOR": (4, 8), "EXPONENTIAL": range(4, 257, 4)}


@dataclass(frozen=True, slots=True)
class BufferView:
    where: str
    data: memoryview
    stride: int | None


def reference(entry: Json, folders: Folders | None) -> Path | None:
    """The other file that an entry with a `uri` names; `folders` is None where none is allowed."""
    uri = entry.text("uri")
    if uri is None or is_data_uri(uri):
        return None
    if folders is None:
        detail = f"{entry.at('uri')}: a .glb of this source may not refer to another file ({uri[:80]!r})"
        raise AssetError(Reason.UNSAFE_URI, detail)
    return folders.find((uri,), entry.at("uri"), encoded=True)


def read_buffers(
    entries: list[Json], binary: memoryview | None, folders: Folders | None, max_bytes: int
) -> list[memoryview | None]:
    """Buffers, at most `max_bytes` together; None for one that only stands in for compressed views."""
    buffers: list[memoryview | None] = []
    for number, entry in enumerate(entries):
        left = max_bytes - sum(len(buffer) for buffer in buffers if buffer is not None)
        buffers.append(_buffer(entry, binary if number == 0 else None, folders, left))
    return buffers


def _buffer(entry: Json, binary: memoryview | None, folders: Folders | None, max_bytes: int) -> memoryview | None:
    length = entry.integer("byteLength", low=1)
    path = reference(entry, folders)
    for name in MESHOPT:
        stated = entry.extension(name)
        if stated is not None and stated.flag("fallback"):
            return None  # holds what the compressed views decode to, for readers that cannot
    uri = entry.text("uri")
    if uri is None:
        data = binary
    elif path is None:
        data = memoryview(decode_data_uri(uri, entry.at("uri"), max_bytes))
    else:
        data = memoryview(read_limited(path, entry.at("uri"), max_bytes))
    if data is None:
        return None
    if length > len(data):
        raise AssetError(Reason.OUT_OF_BOUNDS, f"{entry.where}.byteLength is {length:,}, but {len(data):,} bytes exist")
    return data[:length]


class ViewReader:
    """Parses buffer views, and decompresses those that need it, within a limit on what all decompress to."""

    def __init__(self, buffers: list[memoryview | None], max_decoded_bytes: int, notes: Notes) -> None:
        self._buffers, self._limit, self._left = buffers, max_decoded_bytes, max_decoded_bytes
        self._notes = notes

    def __call__(self, entry: Json) -> BufferView:
        stride = entry.integer("byteStride", high=2**31) if "byteStride" in entry else None
        if stride == 0:
            self._notes.add(NoteKind.VALUE_CORRECTED, f"{entry.at('byteStride')} is 0: read as tightly packed")
            stride = None
        for name in MESHOPT:
            compressed = entry.extension(name)
            if compressed is not None:
                return BufferView(entry.where, self._decompressed(compressed, entry), stride)
        return BufferView(entry.where, self._window(entry), stride)

    def _window(self, entry: Json) -> memoryview:
        number = entry.index("buffer", len(self._buffers), "buffers")
        if number is None:
            entry.wrong("buffer", "a reference")
        buffer = self._buffers[number]
        offset, length = entry.integer("byteOffset", 0), entry.integer("byteLength", low=1)
        if buffer is None:
            raise AssetError(Reason.INVALID_STRUCTURE, f"{entry.where} refers to a buffer that has no bytes")
        if offset + length > len(buffer):
            raise AssetError(
                Reason.OUT_OF_BOUNDS,
                f"{entry.where} covers bytes {offset:,} to {offset + length:,} of a buffer of {len(buffer):,}",
            )
        return buffer[offset : offset + length]

    def _decompressed(self, compressed: Json, entry: Json) -> memoryview:
        """EXT_meshopt_compression: `count` elements of `byteStride` bytes."""
        source = self._window(compressed)
        count, size = compressed.integer("count", low=1), compressed.integer("byteStride", low=2, high=256)
        mode, kind = compressed.text("mode"), compressed.text("filter", "NONE") or "NONE"
        if mode not in ("ATTRIBUTES", "TRIANGLES", "INDICES"):
            compressed.wrong("mode", "ATTRIBUTES, TRIANGLES or INDICES")
        if kind != "NONE" and kind not in _FILTER_STRIDES:
            compressed.wrong("filter", f"NONE, {', '.join(_FILTER_STRIDES)}")
        strides = _FILTER_STRIDES.get(kind, range(4, 257, 4)) if mode == "ATTRIBUTES" else (2, 4)
        if size not in strides or (mode != "ATTRIBUTES" and kind != "NONE"):
            compressed.wrong("byteStride", f"what mode {mode} and filter {kind} allow")
        if entry.integer("byteLength", low=1) != count * size or (mode == "TRIANGLES" and count % 3):
            compressed.wrong("count", f"the byteLength of {entry.where} in strides of {size}; whole triangles")
        if count * size > self._left:
            raise AssetError(Reason.TOO_LARGE, f"compressed views decode to more than the limit {self._limit:,} bytes")
        self._left -= count * size
        try:
            return memoryview(meshopt.decode_gltf_buffer(source, count, size, mode, kind)).cast("B")
        except ValueError as error:
            raise AssetError(
                Reason.LOAD_ERROR, f"{compressed.where}: meshopt stream cannot be decoded ({error})"
            ) from error
