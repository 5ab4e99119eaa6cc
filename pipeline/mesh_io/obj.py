"""Wavefront OBJ bytes to indexed triangles and materials, every bound checked.

Read: v (with optional colour), vt, vn, f, usemtl, mtllib. Vertex colours are sRGB-encoded, as three.js and MeshLab have
them. All lines of a kind are cut out of the file as one block and parsed at once: a file has hundreds of thousands.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64, Int64

from geometry.mesh import face_vectors, unit
from geometry.texture import srgb_to_linear
from pipeline.mesh_io.mtl import ObjMaterial, read_mtl
from pipeline.mesh_io.parts import Part
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import confined
from schemas.ledger import Reason

_ABSENT = -(2**62)
"""Stands in the text for an index that a corner leaves out (`1//3`)."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjFile:
    positions: Float64[np.ndarray, "v 3"]
    colors: Float64[np.ndarray, "v 3"] | None
    """sRGB-encoded."""
    uvs: Float64[np.ndarray, "t 2"]
    normals: Float64[np.ndarray, "n 3"]
    corners: Int64[np.ndarray, "f 3 3"]
    """Per triangle corner: indices of position, uv, normal; -1 for none."""
    face_material: Int64[np.ndarray, " f"]
    materials: list[ObjMaterial]


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """All lines of one kind: their text without the keyword."""

    kind: str
    text: bytes
    """Line by line, comments taken out."""
    line: Int64[np.ndarray, " lines"]
    """Of the file, from 0."""
    words: Int64[np.ndarray, " lines"]
    """How many each line has."""
    starts: Int64[np.ndarray, " words"]
    """Where each word begins in the text."""


def read_obj(data: bytes, directory: Path, max_bytes: int, max_faces: int, notes: Notes) -> ObjFile:
    """Parse a whole OBJ file and the material libraries in its folder."""
    if b"\0" in data:
        raise AssetError(Reason.NOT_A_MESH, "OBJ holds a zero byte: it is not a text file")
    blocks, names = _split(data)
    vertices, faces = blocks["v"], blocks["f"]
    if not len(vertices.line) or not len(faces.line):
        raise AssetError(Reason.NO_GEOMETRY, f"OBJ has {len(vertices.line)} vertices and {len(faces.line)} faces")
    materials, changes, numbers = _materials(names, directory, max_bytes)
    face, corner = _fans(faces, max_faces)
    corners = _corners(faces, [blocks[kind].line for kind in ("v", "vt", "vn")])
    colored = vertices.words[0] >= 6
    table = _table(vertices, 6 if colored else 3)
    return ObjFile(
        positions=table[:, :3],
        colors=np.clip(table[:, 3:], 0.0, 1.0) if colored else None,
        uvs=_table(blocks["vt"], 2),
        normals=_table(blocks["vn"], 3),
        corners=corners[corner],
        face_material=numbers[np.searchsorted(changes, faces.line[face])],
        materials=materials,
    )


def _split(data: bytes) -> tuple[dict[str, _Block], list[tuple[int, str, str]]]:
    """Lines by kind; those that name materials as (line, keyword, argument)."""
    data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\\\n", b"  ")
    data = re.sub(rb"(?m)^[ \t\f\v]+", b"", data) + b"\n\n\n"
    codes = np.frombuffer(data, np.uint8).copy()
    ends = np.flatnonzero(codes == ord("\n"))
    starts = np.concatenate([[0], ends[:-1] + 1])
    first, second, third = (codes[np.minimum(starts + i, len(codes) - 1)] for i in range(3))
    blank2, blank3 = _is_blank(second), _is_blank(third)
    chosen = {
        "v": (first == ord("v")) & blank2,
        "vt": (first == ord("v")) & (second == ord("t")) & blank3,
        "vn": (first == ord("v")) & (second == ord("n")) & blank3,
        "f": (first == ord("f")) & blank2,
    }
    blocks = {kind: _block(kind, codes, starts, ends, np.flatnonzero(mask)) for kind, mask in chosen.items()}
    names = []
    for line in np.flatnonzero((first == ord("u")) | (first == ord("m"))):
        keyword, *rest = data[starts[line] : ends[line]].decode("utf-8", "replace").split(None, 1) or [""]
        names.append((int(line), keyword, rest[0].rstrip() if rest else ""))
    return blocks, names


def _is_blank(codes: np.ndarray) -> Bool[np.ndarray, " n"]:
    """Space and the control characters from tab to carriage return."""
    return (codes == 32) | ((codes >= 9) & (codes <= 13))


def _block(kind: str, codes: np.ndarray, starts: np.ndarray, ends: np.ndarray, lines: np.ndarray) -> _Block:
    lengths = ends[lines] - starts[lines] + 1  # with the line feed
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    rows = np.repeat(starts[lines] - offsets[:-1], lengths) + np.arange(offsets[-1])
    found = codes[rows]
    for i in range(len(kind)):
        found[offsets[:-1] + i] = ord(" ")
    text = found.tobytes()
    if b"#" in text:
        text = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), text)
        found = np.frombuffer(text, np.uint8)
    solid = ~_is_blank(found)
    words = np.flatnonzero(solid & ~np.concatenate([[False], solid[:-1]])) if len(solid) else np.zeros(0, np.int64)
    return _Block(kind, text, lines, np.diff(np.searchsorted(words, offsets)), words)


def _table(block: _Block, width: int) -> Float64[np.ndarray, "rows width"]:
    """The first `width` numbers of every line."""
    if not len(block.line):
        return np.zeros((0, width))
    if block.words.min() < width:
        line = block.line[block.words.argmin()] + 1
        raise AssetError(Reason.INVALID_STRUCTURE, f"line {line}: '{block.kind}' with fewer than {width} numbers")
    numbers = _numbers(block.text, np.float64, len(block.starts), f"'{block.kind}' lines")
    if len(numbers) == width * len(block.line):
        table = numbers.reshape(-1, width)
    else:
        table = numbers[(np.cumsum(block.words) - block.words)[:, None] + np.arange(width)]
    if not np.isfinite(table).all():
        row = int(np.argwhere(~np.isfinite(table))[0, 0])
        raise AssetError(Reason.NON_FINITE, f"line {block.line[row] + 1}: '{block.kind}' is {table[row].tolist()}")
    return table


def _numbers(text: bytes, dtype: type, count: int, where: str) -> np.ndarray:
    """The numbers of a text, which must be nothing but `count` of them."""
    try:
        numbers: np.ndarray = np.fromstring(text, dtype, sep=" ")
    except ValueError as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: not all are numbers") from error
    if len(numbers) != count:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: not all are numbers")
    return numbers


def _fans(faces: _Block, max_faces: int) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, "f 3"]]:
    """Polygons cut into triangles around their first corner: the polygon of each, and the numbers of its corners."""
    if faces.words.min() < 3:
        line = int(faces.words.argmin())
        raise AssetError(
            Reason.INVALID_STRUCTURE, f"line {faces.line[line] + 1}: a face with {faces.words[line]} corners"
        )
    count = faces.words - 2
    if count.sum() > max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{count.sum():,} triangles, limit {max_faces:,}")
    face = np.repeat(np.arange(len(count)), count)
    begin = (np.cumsum(faces.words) - faces.words)[face]
    step = np.arange(len(face)) - (np.cumsum(count) - count)[face]
    return face, np.stack([begin, begin + step + 1, begin + step + 2], axis=1)


def _corners(faces: _Block, lines: list[np.ndarray]) -> Int64[np.ndarray, "words 3"]:
    """Position, uv, normal of every corner in the file: indices from 0, -1 for none. Negative ones in the file count
    back from the face's own line; `lines` are those of v, vt, vn."""
    codes = np.frombuffer(faces.text, np.uint8)
    slashes = np.searchsorted(faces.starts, np.flatnonzero(codes == ord("/")), side="right") - 1
    parts = 1 + np.bincount(slashes, minlength=len(faces.starts))
    bad = (parts > 3) | (codes[faces.starts] == ord("/"))
    owner = np.repeat(np.arange(len(faces.line)), faces.words)
    if bad.any():
        raise AssetError(
            Reason.INVALID_STRUCTURE, f"line {faces.line[owner[bad.argmax()]] + 1}: a corner {_shown(faces, bad)}"
        )
    text = re.sub(rb"/(?=[/\s])", b"/%d " % _ABSENT, faces.text).replace(b"/", b" ") if len(slashes) else faces.text
    numbers = _numbers(text, np.int64, int(parts.sum()), "'f' lines")
    found = np.full((len(parts), 3), _ABSENT)
    found[
        np.repeat(np.arange(len(parts)), parts), np.arange(len(numbers)) - np.repeat(np.cumsum(parts) - parts, parts)
    ] = numbers
    for slot, (kind, placed) in enumerate(zip(("v", "vt", "vn"), lines, strict=True)):
        index = found[:, slot].copy()
        absent = (index == _ABSENT) & (slot > 0)
        before = np.searchsorted(placed, faces.line)[owner]
        found[:, slot] = np.where(absent, -1, np.where(index > 0, index - 1, before + index))
        wrong = ~absent & ((index == 0) | (found[:, slot] < 0) | (found[:, slot] >= len(placed)))
        if wrong.any():
            at = int(wrong.argmax())
            raise AssetError(
                Reason.INDEX_OUT_OF_RANGE,
                f"line {faces.line[owner[at]] + 1}: a face refers to {kind} {index[at]}, file has {len(placed):,}",
            )
    return found


def _shown(faces: _Block, bad: np.ndarray) -> str:
    start = int(faces.starts[bad.argmax()])
    return repr(faces.text[start : start + 40].split()[0].decode("utf-8", "replace"))


def _materials(
    names: list[tuple[int, str, str]], directory: Path, max_bytes: int
) -> tuple[list[ObjMaterial], Int64[np.ndarray, " changes"], Int64[np.ndarray, " one_more"]]:
    """Materials, the lines at which the current one changes, and which it is before the first and after each."""
    library: dict[str, int] = {}
    seen: set[Path] = set()
    materials, lines, numbers = [ObjMaterial()], [], [0]
    for line, keyword, argument in names:
        if keyword == "usemtl":
            lines.append(line)
            numbers.append(library.get(argument, 0))
        elif keyword == "mtllib" and argument:
            path = confined(argument, directory, f"line {line + 1} (mtllib)", encoded=False)
            if path not in seen:
                seen.add(path)
                for name, material in read_mtl(path, directory, f"line {line + 1}", max_bytes).items():
                    library[name] = len(materials)
                    materials.append(material)
    return materials, np.array(lines, np.int64), np.array(numbers, np.int64)


_COS_CREASE = np.cos(np.radians(40.0))
"""OBJ without normals: a corner is smooth where the mean normal is within 40 degrees of the face's own."""


def obj_part(obj: ObjFile) -> Part:
    position, uv, normal = np.moveaxis(obj.corners, 2, 0)
    face_normals = unit(face_vectors(obj.positions, position))
    weighted = face_normals[:, None] * _angles(obj.positions[position])[..., None]
    summed = np.stack(
        [np.bincount(position.reshape(-1), weighted[..., axis].reshape(-1), len(obj.positions)) for axis in range(3)],
        axis=1,
    )
    flat, smooth = face_normals[:, None], unit(summed)[position]
    is_flat = (normal < 0) & ((flat * smooth).sum(axis=2) < _COS_CREASE)
    # A corner is a vertex of its own where position, uv or normal differ; a flat corner's normal belongs to its face.
    face = np.broadcast_to(np.arange(len(normal))[:, None], normal.shape)
    first, faces = _distinct(position, uv, np.where(is_flat, -2 - face, normal))
    computed = np.where(is_flat[..., None], flat, smooth).reshape(-1, 3)[first]
    at, uv_at, normal_at = position.reshape(-1)[first], uv.reshape(-1)[first], normal.reshape(-1)[first]
    colors = np.ones((len(first), 4))
    if obj.colors is not None:
        colors[:, :3] = srgb_to_linear(obj.colors.astype(np.float32))[at]
    return Part(
        vertices=obj.positions[at],
        normals=np.where((normal_at >= 0)[:, None], _rows(obj.normals, normal_at), computed),
        uv=np.where((uv_at >= 0)[:, None], _rows(obj.uvs, uv_at), 0.0),
        colors=colors,
        faces=faces,
        face_material=obj.face_material,
        face_has_uv=(uv >= 0).all(axis=1),
    )


def _distinct(
    position: Int64[np.ndarray, "f 3"], uv: Int64[np.ndarray, "f 3"], normal: Int64[np.ndarray, "f 3"]
) -> tuple[Int64[np.ndarray, " v"], Int64[np.ndarray, "f 3"]]:
    """First corner of each distinct triple, and for every corner the number of its triple."""
    number = position.reshape(-1)
    first = np.zeros(0, np.int64)
    for column in (uv, normal):
        values = column.reshape(-1) - column.min()
        span = int(values.max()) + 1  # number * span stays below corners * (corners + vertices): far from 2^63
        _, first, number = np.unique(number * span + values, return_index=True, return_inverse=True)
    return first, number.reshape(position.shape)


def _angles(corners: Float64[np.ndarray, "f 3 3"]) -> Float64[np.ndarray, "f 3"]:
    """Angle of each triangle at its corners, radians: weights that do not depend on how a polygon was cut."""
    forth = unit((np.roll(corners, -1, axis=1) - corners).reshape(-1, 3)).reshape(corners.shape)
    back = unit((np.roll(corners, 1, axis=1) - corners).reshape(-1, 3)).reshape(corners.shape)
    return np.arccos(np.clip((forth * back).sum(axis=2), -1.0, 1.0))


def _rows(table: Float64[np.ndarray, "n width"], index: np.ndarray) -> Float64[np.ndarray, "m width"]:
    """Rows of a table that may be empty; row 0 (or zeros) where the index is negative."""
    return table[np.maximum(index, 0)] if len(table) else np.zeros((len(index), table.shape[1]))
