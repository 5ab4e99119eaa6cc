"""Wavefront OBJ bytes to indexed triangles and materials, every bound checked.

Read: v (with optional colour), vt, vn, f, usemtl, mtllib. Vertex colours are sRGB-encoded, as three.js and MeshLab have
them. All lines of a kind are cut out of the file as one block and parsed at once: a file has hundreds of thousands.
"""

import re
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float64, Int64

from geometry.frames import z_up_to_y_up
from geometry.mesh import face_vectors, unit
from geometry.texture import srgb_to_linear
from pipeline.mesh_io.parts import LAYERS, Part
from pipeline.mesh_io.polygons import triangles
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders, plain_text
from pipeline.mesh_io.wavefront.mtl import LARGEST_UNIT, ObjMaterial, materials_of
from schemas.ledger import NoteKind, Reason

_ABSENT = -(2**62)
"""Stands in the text for an index that a corner leaves out (`1//3`)."""
_MARK = "\ufeff".encode()
"""Byte order mark of UTF-8: stands before a text, and in the midst of those that were joined."""
_NAN = re.compile(rb"\d\.#[A-Z]+\d*|nan\(\w*\)", re.IGNORECASE)
"""Text that C's printf writes for NaN and infinity on Windows."""


@dataclass(frozen=True, slots=True, eq=False)
class ObjFile:
    positions: Float64[np.ndarray, "v 3"]
    colors: Float64[np.ndarray, "v 3"] | None
    """sRGB-encoded."""
    uvs: Float64[np.ndarray, "t 2"]
    normals: Float64[np.ndarray, "n 3"]
    corners: Int64[np.ndarray, "f 3 3"]
    """Corners of the triangles: indices of position, uv, normal; -1 for none."""
    face_material: Int64[np.ndarray, " f"]
    materials: list[ObjMaterial]
    folders: Folders | None = None
    """Folders of the maps that `ObjMaterial.physical` names; None where there are none."""
    plain_uvs: Float64[np.ndarray, "t 2"] | None = None
    """`uvs` before -s and -o of the base colours; None until `with_coordinates` has applied these."""


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """All lines of one kind: their text without the keyword."""

    kind: str
    text: bytes
    """Line by line, comments taken out."""
    line: Int64[np.ndarray, " lines"]
    """Line numbers in the file, from 0."""
    words: Int64[np.ndarray, " lines"]
    """Number of words in each line."""
    starts: Int64[np.ndarray, " words"]
    """Offset of each word in the text."""


def read_obj(data: bytes, folders: Folders, max_bytes: int, max_faces: int, *, z_up: bool = False) -> ObjFile:
    """Parse a whole OBJ file and its material libraries, each of at most `max_bytes`. The result is Y up; `z_up`: the
    file is not."""
    if b"\0" in data:
        raise AssetError(Reason.NOT_A_MESH, "OBJ holds a zero byte: it is not a text file")
    blocks, names = _split(data)
    vertices, faces, notes = blocks["v"], blocks["f"], folders.notes
    if not len(vertices.line) or not len(faces.line):
        raise AssetError(Reason.NO_GEOMETRY, f"OBJ has {len(vertices.line)} vertices and {len(faces.line)} faces")
    if (triangles_at_most := np.maximum(faces.words - 2, 0).sum()) > max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{triangles_at_most:,} triangles, limit {max_faces:,}")
    corners, kept = _corners(faces, [blocks[kind].line for kind in ("v", "vt", "vn")], notes)
    used = corners[np.repeat(kept, faces.words)]
    table = _finite(_table(vertices, 3, 6 if (vertices.words >= 6).any() else 3), vertices, used[:, 0], notes)
    uvs = _finite(_table(blocks["vt"], 1, 2), blocks["vt"], used[:, 1], notes)
    normals = _finite(_table(blocks["vn"], 3, 3), blocks["vn"], used[:, 2], notes)
    if z_up:
        table[:, :3], normals = z_up_to_y_up(table[:, :3]) + 0.0, z_up_to_y_up(normals) + 0.0  # no zero is -0
    begin, count = (np.cumsum(faces.words) - faces.words)[kept], faces.words[kept]
    face, corner = triangles(table[np.maximum(corners[:, 0], 0), :3], begin, count, notes)
    changes = [line for line, keyword, _ in names if keyword == "usemtl"]
    change = np.searchsorted(np.array(changes, np.int64), faces.line[kept][face])
    colors = _colors(table[:, 3:], vertices, notes) if table.shape[1] == 6 else None
    materials, numbers = materials_of(
        names, np.unique(change), folders, max_bytes, plain=colors is None, mapped=len(uvs) > 0
    )
    return ObjFile(
        positions=table[:, :3],
        colors=colors,
        uvs=uvs,
        normals=normals,
        corners=corners[corner],
        face_material=numbers[change],
        materials=materials,
        folders=folders,
    )


def _split(data: bytes) -> tuple[dict[str, _Block], list[tuple[int, str, str]]]:
    """Lines by kind; those that name materials as (line, keyword, argument)."""
    data = data.replace(_MARK, b"") if _MARK in data else data
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
        keyword, *rest = plain_text(data[starts[line] : ends[line]]).split(None, 1) or [""]
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
    if b".#" in text or b"(" in text:
        text = _NAN.sub(lambda number: b"nan".ljust(len(number[0])), text)
    if b"#" in text:
        text = re.sub(rb"#[^\n]*", lambda comment: b" " * len(comment[0]), text)
    found = np.frombuffer(text, np.uint8)
    solid = ~_is_blank(found)
    words = np.flatnonzero(solid & ~np.concatenate([[False], solid[:-1]])) if len(solid) else np.zeros(0, np.int64)
    return _Block(kind, text, lines, np.diff(np.searchsorted(words, offsets)), words)


def _table(block: _Block, least: int, width: int) -> Float64[np.ndarray, "rows width"]:
    """The first `width` numbers of every line, which has at least `least`; 0 where it has fewer."""
    if not len(block.line):
        return np.zeros((0, width))
    if block.words.min() < least:
        line = block.line[block.words.argmin()] + 1
        raise AssetError(Reason.INVALID_STRUCTURE, f"line {line}: '{block.kind}' with fewer than {least} numbers")
    numbers = _numbers(block.text, np.float64, len(block.starts), f"'{block.kind}' lines")
    if (block.words == width).all():
        return numbers.reshape(-1, width)
    table, begin = np.zeros((len(block.line), width)), np.cumsum(block.words) - block.words
    for column in range(width):
        rows = np.flatnonzero(block.words > column)
        table[rows, column] = numbers[begin[rows] + column]
    return table


def _finite(
    table: Float64[np.ndarray, "rows width"], block: _Block, index: Int64[np.ndarray, " c"], notes: Notes
) -> Float64[np.ndarray, "rows width"]:
    """A table without rows that are not finite: noted and made 0 where no corner refers to them. Of normals also where
    one does: such a normal is computed."""
    broken = ~np.isfinite(table).all(axis=1)
    if not broken.any():
        return table
    used = np.zeros(len(table), bool)
    used[index[index >= 0]] = True
    wrong = broken & used if (broken & used).any() else broken
    row = int(wrong.argmax())
    detail = f"line {block.line[row] + 1}: '{block.kind}' is {table[row].tolist()}"
    if wrong[used].any() and block.kind != "vn":
        raise AssetError(Reason.NON_FINITE, detail)
    notes.add(NoteKind.DATA_IGNORED, detail, int(broken.sum()))
    return np.where(broken[:, None], 0.0, table)


def _colors(stored: Float64[np.ndarray, "v 3"], block: _Block, notes: Notes) -> Float64[np.ndarray, "v 3"]:
    """Vertex colours in [0, 1], white where a `v` has none."""
    colored = block.words >= 6
    if LARGEST_UNIT < stored.max() <= 255 and np.median(stored[stored > 0]) > 1:
        notes.add(NoteKind.VALUE_CORRECTED, "vertex colours are counted to 255", int(colored.sum()))
        stored = stored / 255.0
    return np.where(colored[:, None], np.clip(stored, 0.0, 1.0), 1.0)


def _numbers(text: bytes, dtype: type, count: int, where: str) -> np.ndarray:
    """The numbers of a text, which must be nothing but `count` of them."""
    try:
        numbers: np.ndarray = np.fromstring(text, dtype, sep=" ")
    except ValueError as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: not all are numbers") from error
    if len(numbers) != count:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where}: not all are numbers")
    return numbers


def _corners(
    faces: _Block, lines: list[np.ndarray], notes: Notes
) -> tuple[Int64[np.ndarray, "words 3"], Bool[np.ndarray, " faces"]]:
    """Position, uv, normal of every corner in the file (indices from 0, -1 for none), and the faces that can be drawn.
    Negative ones in the file count back from the face's own line; `lines` are those of v, vt, vn."""
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
    zero = found == 0
    for slot, (kind, placed) in enumerate(zip(("v", "vt", "vn"), lines, strict=True)):
        index = found[:, slot].copy()
        absent = ((index == _ABSENT) & (slot > 0)) | zero[:, slot]
        before = np.searchsorted(placed, faces.line)[owner]
        found[:, slot] = np.where(absent, -1, np.where(index > 0, index - 1, before + index))
        wrong = ~absent & ((found[:, slot] < 0) | (found[:, slot] >= len(placed)))
        if wrong.any() or (zero[:, slot].any() and slot == 0 and found[:, 0].max() < len(placed) - 1):
            at = int(wrong.argmax()) if wrong.any() else int(zero[:, 0].argmax())
            raise AssetError(
                Reason.INDEX_OUT_OF_RANGE,
                f"line {faces.line[owner[at]] + 1}: a face refers to {kind} {index[at]}, file has {len(placed):,}",
            )
    return found, _drawn(faces, owner, zero, notes)


def _drawn(
    faces: _Block, owner: Int64[np.ndarray, " words"], zero: Bool[np.ndarray, "words 3"], notes: Notes
) -> Bool[np.ndarray, " faces"]:
    """Faces of three corners or more whose positions exist; an index 0, which counts nothing, is noted."""
    broken = np.zeros(len(faces.line), bool)
    broken[owner[zero[:, 0]]] = True
    left_out = broken | (faces.words < 3)
    if left_out.all():
        raise AssetError(Reason.NO_GEOMETRY, f"none of {len(left_out):,} faces has 3 corners with positions")
    if left_out.any():
        line = int(left_out.argmax())
        what = "a corner of index 0" if broken[line] else f"{faces.words[line]} corners"
        notes.add(NoteKind.FACES_LEFT_OUT, f"line {faces.line[line] + 1}: a face with {what}", int(left_out.sum()))
    if count := int(zero[~left_out[owner], 1:].sum()):
        notes.add(NoteKind.DATA_IGNORED, "'f' lines: index 0 of a vt or vn is read as none", count)
    return ~left_out


def _shown(faces: _Block, bad: np.ndarray) -> str:
    start = int(faces.starts[bad.argmax()])
    return repr(faces.text[start : start + 40].split()[0].decode("utf-8", "replace"))


MOST = 0.5
"""Share of the surface up to which textured faces may lack texture coordinates (ours)."""


def with_coordinates(obj: ObjFile, notes: Notes, *, layered: bool = False) -> ObjFile:
    """The same with the coordinates that its textures are looked up with: -s and -o of the maps applied, and the
    texture's corner where a corner of a face has none. Raises AssetError where that is most of the surface. `layered`:
    materials with further maps, which have an -s and -o of their own, share no coordinates with others."""
    uvs, corners, bare = np.concatenate([obj.uvs, np.zeros((1, 2))]), obj.corners.copy(), 0
    textured = np.array([bool(material.image or material.mask) for material in obj.materials])[obj.face_material]
    lacking = textured & (corners[..., 1] < 0).any(axis=1)
    if bare := int(lacking.sum()):
        areas = np.linalg.norm(face_vectors(obj.positions, corners[..., 0]), axis=1)
        use = obj.materials[obj.face_material[lacking][0]]
        name = (use.image or use.mask).names[0]
        if areas[lacking].sum() > MOST * areas.sum():
            raise AssetError(Reason.INVALID_STRUCTURE, f"{bare:,} faces with map_Kd {name!r} but without vt")
        notes.add(NoteKind.COORDINATES_MISSING, f"map_Kd {name!r} on faces without vt: the texture's corner", bare)
        corners[..., 1] = np.where(textured[:, None] & (corners[..., 1] < 0), len(obj.uvs), corners[..., 1])
    plain = uvs
    for number, material in enumerate(obj.materials):
        use = material.image or material.mask
        scale, offset = (use.scale, use.offset) if use else ((1.0, 1.0), (0.0, 0.0))
        if (scale, offset) != ((1.0, 1.0), (0.0, 0.0)) or (layered and material.physical):
            faces = obj.face_material == number
            index, place = np.unique(corners[faces, :, 1], return_inverse=True)
            own = np.where(index < 0, -1, len(uvs) + np.arange(len(index)))
            corners[faces, :, 1] = own[place.reshape(-1, 3)]
            uvs = np.concatenate([uvs, uvs[index] * scale + offset])
            plain = np.concatenate([plain, plain[index]])
    return replace(obj, uvs=uvs, corners=corners, plain_uvs=plain)


_COS_CREASE = np.cos(np.radians(40.0))
"""OBJ without normals: a corner is smooth where the mean normal is within 40 degrees of the face's own."""


def obj_part(obj: ObjFile, *, layered: bool = False) -> Part:
    """The faces as one part, each distinct corner a vertex. `layered`: with the file's own coordinates as `map_uv`."""
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
    map_uv = None
    if layered and obj.plain_uvs is not None:
        plain = np.where((uv_at >= 0)[:, None], _rows(obj.plain_uvs, uv_at), np.nan)
        map_uv = np.stack([plain] * len(LAYERS))
    return Part(
        map_uv=map_uv,
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
