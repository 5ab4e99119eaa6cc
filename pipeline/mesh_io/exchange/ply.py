"""PLY files (Turk 1994): text and binary, polygons of any size, colours, texture coordinates."""

import re
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.mesh_io.exchange.pieces import Piece, corners_of, texture, unit_colors
from pipeline.mesh_io.problems import AssetError
from pipeline.mesh_io.references import Folders, plain_text
from pipeline.mesh_io.wavefront.mtl import ObjMaterial
from schemas.ledger import NoteKind, Reason

_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"), **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"), **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"), **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"), **dict.fromkeys(("double", "float64"), "f8"),
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
TEXTURE = re.compile(rb"^(?:comment|obj_info)[ \t]+TextureFile[ \t]+([^\r\n]+)", re.MULTILINE | re.IGNORECASE)
MAX_HEADER = 1 << 16
"""Bytes of a header (ours)."""
_COLORS = (("red", "green", "blue"), ("r", "g", "b"), ("diffuse_red", "diffuse_green", "diffuse_blue"))
_COORDINATES = (("texture_u", "texture_v"), ("u", "v"), ("s", "t"))
_INDICES = ("vertex_indices", "vertex_index")
Column = np.ndarray | tuple[np.ndarray, Int64[np.ndarray, " rows"]]
"""A number of each row, or a list of each: all their values, and how many each row has."""


@dataclass(slots=True)
class _Element:
    """A table of the file."""

    name: str
    rows: int
    properties: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Name, type, and for a list the type of its length."""

    def types(self) -> dict[str, str]:
        return {name: kind for name, kind, _ in self.properties}


def read_ply(data: bytes, folders: Folders, max_faces: int) -> list[Piece]:
    """The polygons of a PLY. A texture counts alone, and only one can be told from the others."""
    elements, order, start = _header(data, max_faces)
    tables = _text_tables(data, start, elements) if not order else _binary_tables(data, start, elements, order)
    vertex, face = tables.get("vertex", {}), tables.get("face", {})
    indices = next((face[name] for name in _INDICES if name in face), None)
    if indices is None or not isinstance(indices, tuple) or not {"x", "y", "z"} <= vertex.keys():
        raise AssetError(Reason.NO_GEOMETRY, "the PLY has no vertices or no faces (points and strips are not read)")
    with np.errstate(invalid="ignore"):  # what is no number becomes an index that is out of range
        position, count = indices[0].astype(np.int64), indices[1]
    kinds = {element.name: element.types() for element in elements}
    names = TEXTURE.findall(data[:start])
    normals = _columns(vertex, (("nx", "ny", "nz"),))
    uvs, uv = _coordinates(vertex, face, position, count)
    colors, by_face = (_colors(table, kinds[name]) for table, name in ((vertex, "vertex"), (face, "face")))
    plain = uvs is None and (colors is not None or by_face is not None)
    if names and plain:
        folders.notes.add(NoteKind.DATA_IGNORED, "the PLY names a texture, but has no texture coordinates")
    image = texture(plain_text(names[0]).strip(), folders) if names and not plain else None
    return [
        Piece(
            positions=np.stack([_numbers(vertex[axis]) for axis in "xyz"], axis=1),
            count=count,
            corners=corners_of(position, uv=uv, normal=normals is not None),
            uvs=np.zeros((0, 2)) if uvs is None else uvs,
            normals=np.zeros((0, 3)) if normals is None else normals,
            colors=colors,
            corner_colors=None if by_face is None else np.repeat(by_face, count, axis=0),
            material=ObjMaterial(image=image),
        )
    ]


def _header(data: bytes, max_faces: int) -> tuple[list[_Element], str, int]:
    """Elements, byte order (none: text), and where they begin."""
    end = data.find(b"end_header", 0, MAX_HEADER)
    stop = min((at for at in (data.find(b"\n", end), data.find(b"\r", end)) if at >= 0), default=len(data)) + 1
    if data[:3] != b"ply" or end < 0:
        raise AssetError(Reason.NOT_A_MESH, f"not a PLY: starts with {data[:4]!r}, or its header has no end")
    stop += data[stop - 1 : stop + 1] == b"\r\n"
    if len(TEXTURE.findall(data[:end])) > 1:
        raise AssetError(Reason.UNSUPPORTED_MATERIAL, "the PLY names several textures; save it as glTF")
    elements, order = list[_Element](), None
    for line in re.split(r"[\r\n]+", plain_text(data[:end])):
        match line.split():
            case ["format", name, *_]:
                order = _ORDERS.get(name)
            case ["element", name, count] if count.isdecimal() and len(count) < 19:
                elements.append(_Element(name, int(count)))
            case ["property", "list", length, kind, name] if elements and {length, kind} <= _TYPES.keys():
                elements[-1].properties.append((name, _TYPES[kind], _TYPES[length]))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1].properties.append((name, _TYPES[kind], None))
            case ["element" | "property" | "format", *_]:
                raise AssetError(Reason.INVALID_STRUCTURE, f"the PLY's header has {line[:60]!r}")
    if order is None:
        raise AssetError(Reason.INVALID_STRUCTURE, "the PLY's header says no format that there is")
    for element in elements:
        if element.name == "face" and element.rows > max_faces:
            raise AssetError(Reason.TOO_LARGE, f"{element.rows:,} faces, limit {max_faces:,}")
        if element.rows > len(data):
            raise AssetError(Reason.TRUNCATED, f"{element.rows:,} elements {element.name!r:.40} in {len(data):,} bytes")
    return elements, order, stop


def _text_tables(data: bytes, start: int, elements: list[_Element]) -> dict[str, dict[str, Column]]:
    try:
        numbers = np.fromstring(data[start:], np.float64, sep=" ")
    except ValueError as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"the PLY's rows are not all numbers ({error})") from error
    tables, at = {}, 0
    for element in elements:
        starts, lengths, at = _rows(element, numbers, at, [1] * len(element.properties), 1)
        tables[element.name] = {
            name: (numbers[_spread(starts[i] + 1, lengths[i])], lengths[i]) if length else numbers[starts[i]]
            for i, (name, _, length) in enumerate(element.properties)
        }
    return tables


def _binary_tables(data: bytes, start: int, elements: list[_Element], order: str) -> dict[str, dict[str, Column]]:
    tables, codes, at = {}, np.frombuffer(data, np.uint8), start
    for element in elements:
        sizes = [np.dtype(kind).itemsize for _, kind, _ in element.properties]
        starts, lengths, at = _rows(element, codes, at, sizes, order)
        table: dict[str, Column] = {}
        for i, (name, kind, length) in enumerate(element.properties):
            skip = np.dtype(length).itemsize if length else 0
            first = _spread(starts[i] + skip, lengths[i], sizes[i]) if length else starts[i]
            raw = codes[first[:, None] + np.arange(sizes[i])]
            values = np.ascontiguousarray(raw).view(order + kind)[:, 0]
            table[name] = (values, lengths[i]) if length else values
        tables[element.name] = table
    return tables


def _rows(
    element: _Element, cells: np.ndarray, at: int, sizes: list[int], order: str | int
) -> tuple[list[Int64[np.ndarray, " rows"]], list[Int64[np.ndarray, " rows"]], int]:
    """Places of each property of each row, the length of each list, and the end of the element. `cells`: numbers of a
    text (`order` 1), or bytes; `sizes`: cells of a value."""
    kinds = [length for _, _, length in element.properties]
    skips = [0 if kind is None else 1 if order == 1 else np.dtype(kind).itemsize for kind in kinds]

    def lengths_at(places: np.ndarray, kind: str) -> Int64[np.ndarray, " n"]:
        if places.max() + (1 if order == 1 else np.dtype(kind).itemsize) > len(cells):
            raise AssetError(Reason.TRUNCATED, f"the PLY ends within its elements {element.name!r:.40}")
        if order == 1:
            found = cells[places]
        else:
            found = cells[places[:, None] + np.arange(np.dtype(kind).itemsize)].view(f"{order}{kind}")[:, 0]
        if not ((found >= 0) & (found <= len(cells))).all():
            raise AssetError(
                Reason.INVALID_STRUCTURE, f"a list of the PLY's {element.name!r:.40} has {found.min()} values"
            )
        return found.astype(np.int64)

    if not element.rows:
        nothing = [np.zeros(0, np.int64)] * len(kinds)
        return nothing, nothing, at
    offsets, first, here = [], [], at
    for kind, skip, size in zip(kinds, skips, sizes, strict=True):
        offsets.append(here - at)
        first.append(int(lengths_at(np.array([here]), kind)[0]) if kind else 1)
        here += skip + first[-1] * size
    row = np.arange(element.rows)
    starts = [at + row * (here - at) + offset for offset in offsets]
    end = at + element.rows * (here - at)
    lists = [i for i, kind in enumerate(kinds) if kind]
    if end <= len(cells) and all((lengths_at(starts[i], kinds[i] or "") == first[i]).all() for i in lists):
        return starts, [np.full(element.rows, count) for count in first], end
    return _ragged_rows(element, cells, at, sizes, skips, order)


def _ragged_rows(
    element: _Element, cells: np.ndarray, at: int, sizes: list[int], skips: list[int], order: str | int
) -> tuple[list[Int64[np.ndarray, " rows"]], list[Int64[np.ndarray, " rows"]], int]:
    """The same where lists differ in length: row by row."""
    places, counts = np.zeros((2, len(sizes), element.rows), np.int64)
    mark: Literal["big", "little"] = "big" if order == ">" else "little"
    values = cells.tolist() if order == 1 else cells.tobytes()
    for row in range(element.rows):
        for i, (skip, size) in enumerate(zip(skips, sizes, strict=True)):
            places[i, row] = at
            count = 1
            if skip and at + skip <= len(values):
                stored = values[at] if order == 1 else int.from_bytes(values[at : at + skip], mark)
                if not 0 <= stored <= len(values):
                    raise AssetError(Reason.INVALID_STRUCTURE, f"a list of the PLY has {stored} values")
                count = int(stored)
            at += skip + count * size
            counts[i, row] = count
        if at > len(values):
            raise AssetError(Reason.TRUNCATED, f"{row:,} of {element.rows:,} elements {element.name!r:.40} are there")
    return list(places), list(counts), at


def _spread(starts: np.ndarray, lengths: np.ndarray, size: int = 1) -> Int64[np.ndarray, " values"]:
    """Places of all values of lists."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before * size, lengths) + np.arange(int(lengths.sum())) * size


def _numbers(column: Column) -> Float64[np.ndarray, " rows"]:
    if isinstance(column, tuple):
        raise AssetError(Reason.INVALID_STRUCTURE, "a list stands in the PLY in place of a number")
    return column.astype(np.float64)


def _columns(table: dict[str, Column], names: tuple[tuple[str, ...], ...]) -> Float64[np.ndarray, "rows width"] | None:
    """The first set of columns that is there."""
    chosen = next((some for some in names if table.keys() >= set(some)), None)
    return None if chosen is None else np.stack([_numbers(table[name]) for name in chosen], axis=1)


def _colors(table: dict[str, Column], kinds: dict[str, str]) -> Float64[np.ndarray, "rows 3"] | None:
    """Colours in [0, 1]: short whole numbers count to the largest of their type."""
    colors = _columns(table, _COLORS)
    kind = next((kinds[some[0]] for some in _COLORS if table.keys() >= set(some)), "")
    return None if colors is None else unit_colors(colors, float(np.iinfo(kind).max) if kind in ("u1", "u2") else None)


def _coordinates(
    vertex: dict[str, Column], face: dict[str, Column], position: np.ndarray, count: np.ndarray
) -> tuple[Float64[np.ndarray, "t 2"] | None, Int64[np.ndarray, " c"] | None]:
    """Texture coordinates, and those of every corner: faces have lists of them, or vertices have them."""
    stored = face.get("texcoord")
    if isinstance(stored, tuple):
        fits = stored[1] == 2 * count
        uv = np.full(len(position), -1)
        uv[np.repeat(fits, count)] = np.arange(int(count[fits].sum()))
        return stored[0][np.repeat(fits, stored[1])].astype(np.float64).reshape(-1, 2), uv
    uvs = _columns(vertex, _COORDINATES)
    return uvs, None if uvs is None else position
