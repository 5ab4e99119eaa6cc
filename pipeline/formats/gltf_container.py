"""glTF 2.0 bytes to typed records (Khronos glTF 2.0 specification, chapters 3 and 4), every bound checked.

Nothing is decoded here beyond data URIs; `read_accessor` gives the values of one accessor.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import Shaped

from pipeline.formats.fault import AssetFault
from pipeline.formats.json_fields import Json
from pipeline.formats.uris import confined, decode_data_uri, is_data_uri, read_limited
from schemas.ledger import Reason

T = TypeVar("T")
COMPONENT = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
DRACO, MESHOPT, BASISU, WEBP = (
    "KHR_draco_mesh_compression",
    "EXT_meshopt_compression",
    "KHR_texture_basisu",
    "EXT_texture_webp",
)


@dataclass(frozen=True, slots=True)
class BufferView:
    where: str
    data: memoryview | None
    """None when the bytes exist only in a compressed form that we do not decode."""
    stride: int | None


@dataclass(frozen=True, slots=True)
class Sparse:
    count: int
    indices: BufferView
    indices_offset: int
    indices_dtype: np.dtype
    values: BufferView
    values_offset: int


@dataclass(frozen=True, slots=True)
class Accessor:
    where: str
    dtype: np.dtype
    width: int
    """Components per element."""
    count: int
    normalized: bool
    view: BufferView | None
    """None: zeros, or the values come from a Draco stream."""
    offset: int
    sparse: Sparse | None


@dataclass(frozen=True, slots=True)
class Image:
    where: str
    source: bytes | memoryview | Path | None


class Parsed(Generic[T]):
    """Entries of a list in the file, each parsed and checked when first asked for: animations have thousands of
    accessors and views that nobody reads."""

    def __init__(self, entries: list[Json], parse: Callable[[Json], T]) -> None:
        self._entries, self._parse = entries, parse
        self._done: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __getitem__(self, number: int) -> T:
        if number not in self._done:
            self._done[number] = self._parse(self._entries[number])
        return self._done[number]


@dataclass(frozen=True, slots=True)
class Container:
    """A parsed file: its JSON and the bytes that it refers to."""

    tree: Json
    views: Parsed[BufferView]
    accessors: Parsed[Accessor]
    images: list[Image]
    textures: list[Json]
    samplers: list[Json]
    nodes: list[Json]


def split_glb(data: bytes) -> tuple[bytes, memoryview | None]:
    """(JSON chunk, binary chunk) of a GLB whose container is sound."""
    if len(data) < 12 or data[:4] != b"glTF":
        raise AssetFault(Reason.NOT_A_MESH, f"not a GLB: starts with {data[:4]!r}, expected b'glTF'")
    version, declared = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise AssetFault(Reason.UNSUPPORTED_VERSION, f"GLB container version {version}, only 2 is supported")
    chunks: list[tuple[bytes, memoryview]] = []
    position = 12
    while position < len(data):
        if len(data) - position < 8:
            raise AssetFault(Reason.TRUNCATED, f"chunk {len(chunks)} ends inside its header at byte {position:,}")
        (length,) = struct.unpack_from("<I", data, position)
        kind = data[position + 4 : position + 8]
        position += 8
        if length > len(data) - position:
            raise AssetFault(
                Reason.TRUNCATED,
                f"chunk {len(chunks)} declares {length:,} bytes, {len(data) - position:,} are left; "
                f"header declares {declared:,} bytes, file has {len(data):,}",
            )
        chunks.append((kind, memoryview(data)[position : position + length]))
        position += length
    if declared != len(data):
        raise AssetFault(Reason.LENGTH_MISMATCH, f"header declares {declared:,} bytes, file has {len(data):,}")
    if not chunks or chunks[0][0] != b"JSON":
        raise AssetFault(Reason.INVALID_STRUCTURE, "first GLB chunk is not JSON")
    binary = chunks[1][1] if len(chunks) > 1 and chunks[1][0] == b"BIN\0" else None
    return bytes(chunks[0][1]), binary


def read_container(tree: Json, binary: memoryview | None, directory: Path | None, max_bytes: int) -> Container:
    """Buffers, buffer views, accessors and images of a glTF tree.

    `directory`: where external files may lie; None when they are not allowed (.glb).
    """
    images = tree.objects("images")
    for image in images:  # first of all: a hostile reference rejects a file whether or not it would be followed
        _reference(image, directory)
    buffers: list[memoryview | None] = []
    for number, entry in enumerate(tree.objects("buffers")):
        left = max_bytes - sum(len(buffer) for buffer in buffers if buffer is not None)
        buffers.append(_buffer(entry, binary if number == 0 else None, directory, left))
    views = Parsed(tree.objects("bufferViews"), lambda entry: _view(entry, buffers))
    return Container(
        tree=tree,
        views=views,
        accessors=Parsed(tree.objects("accessors"), lambda entry: _accessor(entry, views)),
        images=[_image(entry, views, directory, max_bytes) for entry in images],
        textures=tree.objects("textures"),
        samplers=tree.objects("samplers"),
        nodes=tree.objects("nodes"),
    )


def _reference(entry: Json, directory: Path | None) -> Path | None:
    uri = entry.text("uri")
    if uri is None or is_data_uri(uri):
        return None
    if directory is None:
        raise AssetFault(Reason.UNSAFE_URI, f"{entry.at('uri')}: a .glb may not refer to another file ({uri[:80]!r})")
    return confined(uri, directory, entry.at("uri"))


def _buffer(entry: Json, binary: memoryview | None, directory: Path | None, max_bytes: int) -> memoryview | None:
    length = entry.integer("byteLength", low=1)
    uri = entry.text("uri")
    if uri is None:
        data = binary
    elif is_data_uri(uri):
        data = memoryview(decode_data_uri(uri, entry.at("uri"), max_bytes))
    else:
        path = _reference(entry, directory)
        data = memoryview(read_limited(path, entry.at("uri"), max_bytes)) if path else None
    if data is None:
        return None
    if length > len(data):
        raise AssetFault(Reason.OUT_OF_BOUNDS, f"{entry.where}.byteLength is {length:,}, but {len(data):,} bytes exist")
    return data[:length]


def _view(entry: Json, buffers: list[memoryview | None]) -> BufferView:
    number = entry.index("buffer", len(buffers), "buffers")
    if number is None:
        entry.wrong("buffer", "a reference")
    buffer = buffers[number]
    offset, length = entry.integer("byteOffset", 0), entry.integer("byteLength", low=1)
    stride = entry.integer("byteStride", low=4, high=252) if "byteStride" in entry else None
    if buffer is None:
        if entry.extension(MESHOPT) is None:
            raise AssetFault(Reason.INVALID_STRUCTURE, f"{entry.where} refers to a buffer that has no bytes")
        return BufferView(entry.where, None, stride)
    if offset + length > len(buffer):
        raise AssetFault(
            Reason.OUT_OF_BOUNDS,
            f"{entry.where} covers bytes {offset:,} to {offset + length:,} of a buffer of {len(buffer):,}",
        )
    return BufferView(entry.where, buffer[offset : offset + length], stride)


def _accessor(entry: Json, views: Parsed[BufferView]) -> Accessor:
    component, kind = entry.integer("componentType"), entry.text("type")
    if component not in COMPONENT:
        entry.wrong("componentType", f"one of {sorted(COMPONENT)}")
    if kind not in WIDTH:
        entry.wrong("type", f"one of {', '.join(WIDTH)}")
    number = entry.index("bufferView", len(views), "bufferViews")
    accessor = Accessor(
        where=entry.where,
        dtype=np.dtype(COMPONENT[component]),
        width=WIDTH[kind],
        count=entry.integer("count", low=1),
        normalized=entry.flag("normalized"),
        view=None if number is None else views[number],
        offset=entry.integer("byteOffset", 0),
        sparse=_sparse(entry, views, np.dtype(COMPONENT[component]), WIDTH[kind]),
    )
    if accessor.view is not None:
        element = accessor.dtype.itemsize * accessor.width
        _inside(accessor.view, accessor.offset, accessor.count, element, accessor.where, accessor.view.stride)
    return accessor


def _sparse(entry: Json, views: Parsed[BufferView], dtype: np.dtype, width: int) -> Sparse | None:
    found = entry.object("sparse")
    if found is None:
        return None
    indices, values = found.object("indices"), found.object("values")
    if indices is None or values is None:
        found.wrong("indices", "an object, and values too")
    component = indices.integer("componentType")
    if component not in (5121, 5123, 5125):
        indices.wrong("componentType", "5121, 5123 or 5125")
    index_view = indices.index("bufferView", len(views), "bufferViews")
    value_view = values.index("bufferView", len(views), "bufferViews")
    if index_view is None or value_view is None:
        found.wrong("indices", "references to buffer views")
    sparse = Sparse(
        count=found.integer("count", low=1, high=entry.integer("count", low=1)),
        indices=views[index_view],
        indices_offset=indices.integer("byteOffset", 0),
        indices_dtype=np.dtype(COMPONENT[component]),
        values=views[value_view],
        values_offset=values.integer("byteOffset", 0),
    )
    _inside(sparse.indices, sparse.indices_offset, sparse.count, sparse.indices_dtype.itemsize, indices.where)
    _inside(sparse.values, sparse.values_offset, sparse.count, dtype.itemsize * width, values.where)
    return sparse


def _inside(view: BufferView, offset: int, count: int, element: int, where: str, stride: int | None = None) -> None:
    end = offset + (stride or element) * (count - 1) + element
    if view.data is not None and end > len(view.data):
        raise AssetFault(
            Reason.OUT_OF_BOUNDS, f"{where} needs {end:,} bytes of {view.where}, which has {len(view.data):,}"
        )
    if stride is not None and stride < element:
        raise AssetFault(Reason.INVALID_STRUCTURE, f"{where}: stride {stride} is less than an element ({element})")


def _image(entry: Json, views: Parsed[BufferView], directory: Path | None, max_bytes: int) -> Image:
    uri = entry.text("uri")
    if uri is not None:
        source = decode_data_uri(uri, entry.at("uri"), max_bytes) if is_data_uri(uri) else _reference(entry, directory)
        return Image(entry.at("uri"), source)
    number = entry.index("bufferView", len(views), "bufferViews")
    return Image(entry.where, None if number is None else views[number].data)


def image_bytes(image: Image, max_bytes: int) -> bytes | memoryview:
    """The encoded image."""
    if isinstance(image.source, Path):
        return read_limited(image.source, image.where, max_bytes)
    if image.source is None:
        raise AssetFault(Reason.BAD_IMAGE, f"{image.where} has no data")
    return image.source


def read_accessor(accessor: Accessor) -> Shaped[np.ndarray, "count width"]:
    """Stored values, sparse substitution done, not yet normalised."""
    shape, view = (accessor.count, accessor.width), accessor.view
    if view is None:
        values = np.zeros(shape, accessor.dtype)
    else:
        stride = view.stride or accessor.dtype.itemsize * accessor.width
        values = _strided(view, accessor.offset, shape, accessor.dtype, stride, accessor.where)
    if accessor.sparse is not None:
        values = _substituted(values, accessor, accessor.sparse)
    return values


def _substituted(values: np.ndarray, accessor: Accessor, sparse: Sparse) -> np.ndarray:
    size = sparse.indices_dtype.itemsize
    rows = _strided(
        sparse.indices, sparse.indices_offset, (sparse.count, 1), sparse.indices_dtype, size, accessor.where
    )[:, 0]
    if int(rows.max()) >= accessor.count:
        raise AssetFault(
            Reason.INDEX_OUT_OF_RANGE, f"{accessor.where}.sparse refers to {rows.max()} of {accessor.count}"
        )
    element = accessor.dtype.itemsize * accessor.width
    shape = (sparse.count, accessor.width)
    values = values.copy()
    values[rows] = _strided(sparse.values, sparse.values_offset, shape, accessor.dtype, element, accessor.where)
    return values


def _strided(
    view: BufferView, offset: int, shape: tuple[int, int], dtype: np.dtype, stride: int, where: str
) -> Shaped[np.ndarray, "count width"]:
    if view.data is None:
        raise AssetFault(Reason.UNSUPPORTED_EXTENSION, f"{where} needs {view.where}, whose bytes are only compressed")
    window = np.ndarray(shape, dtype, buffer=view.data, offset=offset, strides=(stride, dtype.itemsize))
    return np.ascontiguousarray(window)


def as_floats(values: Shaped[np.ndarray, "count width"], dtype: np.dtype, normalized: bool) -> np.ndarray:
    """float64 values; normalised integers become [0, 1] or [-1, 1] (glTF 2.0, 3.11)."""
    floats = values.astype(np.float64)
    if not normalized or dtype.kind == "f":
        return floats
    floats /= np.iinfo(dtype).max
    return np.maximum(floats, -1.0) if dtype.kind == "i" else floats
