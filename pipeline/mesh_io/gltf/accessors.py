"""glTF accessors: typed arrays in buffer views (Khronos glTF 2.0 specification, 3.6.2), every bound checked."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from pipeline.mesh_io.gltf.buffers import BufferView
from pipeline.mesh_io.gltf.json_fields import Json, Parsed
from pipeline.mesh_io.problems import AssetError
from schemas.ledger import Reason

COMPONENT = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTH = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_MAX_ZERO_BYTES = 2**28
"""An accessor without a buffer view is all zeros and costs a file nothing (ours: 256 MiB)."""


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
    """None: zeros before sparse substitution, or the values come from a Draco stream."""
    offset: int
    sparse: Sparse | None


def parse_accessor(entry: Json, views: Parsed[BufferView]) -> Accessor:
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
    element = accessor.dtype.itemsize * accessor.width
    if accessor.view is None and accessor.count * element > _MAX_ZERO_BYTES:
        raise AssetError(Reason.TOO_LARGE, f"{accessor.where}: {accessor.count:,} elements that no buffer holds")
    if accessor.view is not None:
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
    if end > len(view.data):
        raise AssetError(
            Reason.OUT_OF_BOUNDS, f"{where} needs {end:,} bytes of {view.where}, which has {len(view.data):,}"
        )
    if stride is not None and stride < element:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: stride {stride} is less than an element ({element})")


def read_accessor(accessor: Accessor) -> Shaped[np.ndarray, "count width"]:
    """Stored values, sparse substitution done, not yet normalised."""
    shape, view = (accessor.count, accessor.width), accessor.view
    if view is None:
        values = np.zeros(shape, accessor.dtype)
    else:
        stride = view.stride or accessor.dtype.itemsize * accessor.width
        values = _strided(view, accessor.offset, shape, accessor.dtype, stride)
    if accessor.sparse is not None:
        values = _substituted(values, accessor, accessor.sparse)
    return values


def _substituted(values: np.ndarray, accessor: Accessor, sparse: Sparse) -> np.ndarray:
    size = sparse.indices_dtype.itemsize
    rows = _strided(sparse.indices, sparse.indices_offset, (sparse.count, 1), sparse.indices_dtype, size)[:, 0]
    if int(rows.max()) >= accessor.count:
        raise AssetError(
            Reason.INDEX_OUT_OF_RANGE, f"{accessor.where}.sparse refers to {rows.max()} of {accessor.count}"
        )
    element = accessor.dtype.itemsize * accessor.width
    shape = (sparse.count, accessor.width)
    values = values.copy()
    values[rows] = _strided(sparse.values, sparse.values_offset, shape, accessor.dtype, element)
    return values


def _strided(
    view: BufferView, offset: int, shape: tuple[int, int], dtype: np.dtype, stride: int
) -> Shaped[np.ndarray, "count width"]:
    window = np.ndarray(shape, dtype, buffer=view.data, offset=offset, strides=(stride, dtype.itemsize))
    return np.ascontiguousarray(window)


def as_floats(values: Shaped[np.ndarray, "count width"], dtype: np.dtype, normalized: bool) -> np.ndarray:
    """float64 values; normalised integers become [0, 1] or [-1, 1] (glTF 2.0, 3.11)."""
    floats = values.astype(np.float64)
    if not normalized or dtype.kind == "f":
        return floats
    floats /= np.iinfo(dtype).max
    return np.maximum(floats, -1.0) if dtype.kind == "i" else floats
