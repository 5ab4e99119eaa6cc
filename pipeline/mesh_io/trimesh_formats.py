"""PLY, STL, OFF, 3MF and COLLADA, parsed by trimesh and handed on as an OBJ is.

trimesh's parsers get bytes whose sizes have been checked, and no way to another file: what they ask for is written
down, and the asset's own folder is searched for it as for any format. What they return is checked like everything
else.
"""

import io
import logging
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

import numpy as np
from jaxtyping import Bool, Float64, Int64
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from geometry.frames import z_up_to_y_up
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders
from pipeline.mesh_io.wavefront.mtl import MapUse, ObjMaterial
from pipeline.mesh_io.wavefront.obj import ObjFile
from schemas.ledger import NoteKind, Reason

SUFFIXES = (".3mf", ".dae", ".off", ".ply", ".stl")
_PARSE_ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, NameError, OSError, RuntimeError),
    *(StopIteration, SyntaxError, TypeError, ValueError, struct.error, zipfile.BadZipFile, zlib.error),
)
"""What trimesh, pycollada, lxml and zipfile raise over files that they cannot read (`RecursionError` is a
`RuntimeError`, lxml's a `SyntaxError`)."""
_PLY_ELEMENT = re.compile(rb"^element[ \t]+(\w+)[ \t]+(\d{1,18})", re.MULTILINE)
_PLY_TEXTURE = re.compile(rb"^(?:comment|obj_info)[ \t]+TextureFile[ \t]+([^\r\n]+)", re.MULTILINE | re.IGNORECASE)
_UP_AXIS = re.compile(rb"<(?:\w+:)?up_axis>\s*([XYZ])_UP")
_IMAGE_FILE = re.compile(rb"<(?:\w+:)?init_from>\s*([^<]*[^<\s])\s*<")
_MAX_HEADER = 1 << 16
"""Bytes of a PLY's header (ours)."""


@dataclass(frozen=True, slots=True)
class _References:
    """Stands in for trimesh's resolver: instead of a file it gives a picture that says which file was asked for."""

    names: list[str] = field(default_factory=list)

    def get(self, name: str) -> bytes:
        if name not in self.names:
            self.names.append(name)
        text, out = PngInfo(), io.BytesIO()
        text.add_text("number", str(self.names.index(name)))
        Image.new("L", (1, 1)).save(out, "PNG", pnginfo=text)
        return out.getvalue()

    def name_of(self, image: Any) -> str | None:
        """The name by which an image was asked for."""
        number = getattr(image, "info", {}).get("number")
        return None if number is None else self.names[int(number)]


@dataclass(slots=True)
class _Gathered:
    """Geometry of all pieces so far."""

    positions: list[Float64[np.ndarray, "v 3"]] = field(default_factory=list)
    colors: list[Float64[np.ndarray, "v 3"]] = field(default_factory=list)
    uvs: list[Float64[np.ndarray, "v 2"]] = field(default_factory=list)
    normals: list[Float64[np.ndarray, "v 3"]] = field(default_factory=list)
    corners: list[Int64[np.ndarray, "f 3 3"]] = field(default_factory=list)
    face_material: list[Int64[np.ndarray, " f"]] = field(default_factory=list)
    materials: list[ObjMaterial] = field(default_factory=list)
    num_vertices: int = 0


def read_trimesh(data: bytes, suffix: str, folders: Folders, max_bytes: int, max_faces: int) -> ObjFile:
    """Parse a file of one of `SUFFIXES`. `folders`: where its textures may lie; `max_bytes`: of what an archive
    unpacks to. 3MF is Z up, COLLADA says which axis is, the others are taken as they are, Y up."""
    _check_header(data, suffix, max_bytes, max_faces)
    references, notes = _References(), folders.notes
    loaded = _parsed(data, suffix, references, notes)
    turn = _upright(data, suffix)
    pieces = list(_pieces(loaded))
    if (faces := sum(len(piece["faces"]) for piece, _ in pieces)) > max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{faces:,} faces with instances, limit {max_faces:,}")
    if not faces:
        raise AssetError(Reason.NO_GEOMETRY, f"the {suffix} file has no faces")
    gathered = _Gathered()
    for piece, matrix in pieces:
        _add(gathered, piece, turn @ matrix, references, folders)
    if suffix in (".3mf", ".dae"):
        _note_unread(data, suffix, max_bytes, notes)
    return ObjFile(
        positions=np.concatenate(gathered.positions),
        colors=np.concatenate(gathered.colors),
        uvs=np.concatenate(gathered.uvs),
        normals=np.concatenate(gathered.normals),
        corners=np.concatenate(gathered.corners),
        face_material=np.concatenate(gathered.face_material),
        materials=gathered.materials,
    )


def referenced(data: bytes, suffix: str) -> list[str]:
    """Names of the files that a PLY or COLLADA file refers to, by its text alone."""
    pattern = {".ply": _PLY_TEXTURE, ".dae": _IMAGE_FILE}.get(suffix)
    found = pattern.findall(data[:_MAX_HEADER] if suffix == ".ply" else data) if pattern else []
    return [name.strip().decode("utf-8", "replace") for name in found]


def texture(name: str, folders: Folders) -> MapUse:
    """The file that a name in a PLY or COLLADA file means, which may be a URI with percent escapes. Raises AssetError
    where it leads out of the root."""
    plain = name.removeprefix("file://")
    return MapUse(names=tuple(dict.fromkeys([plain, unquote(plain)])), where="texture", folder=folders.own).found(
        folders
    )


def _check_header(data: bytes, suffix: str, max_bytes: int, max_faces: int) -> None:
    """Refuse what would take more memory or time than a file of its size should, before it is parsed."""
    if suffix == ".ply":
        _check_ply(data, max_faces)
    elif suffix == ".stl" and len(data) >= 84:
        (faces,) = struct.unpack_from("<I", data, 80)
        if len(data) == 84 + 50 * faces and faces > max_faces:
            raise AssetError(Reason.TOO_LARGE, f"{faces:,} faces, limit {max_faces:,}")
    elif suffix == ".dae":
        _check_xml(data, "COLLADA")
    elif suffix == ".3mf":
        for name, part in _members(data, max_bytes):
            if name.lower().endswith((".model", ".rels", ".xml")):
                _check_xml(part, name[:80])


def _check_ply(data: bytes, max_faces: int) -> None:
    end = data.find(b"end_header", 0, _MAX_HEADER)
    if data[:3] != b"ply" or end < 0:
        raise AssetError(Reason.NOT_A_MESH, f"not a PLY: starts with {data[:4]!r}, or its header has no end")
    counts = {name.decode(): int(count) for name, count in _PLY_ELEMENT.findall(data[:end])}
    if counts.get("face", 0) > max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{counts['face']:,} faces, limit {max_faces:,}")
    for name, count in counts.items():
        if count > len(data):
            raise AssetError(Reason.TRUNCATED, f"{count:,} elements {name!r:.40} in {len(data):,} bytes")
    if len(_PLY_TEXTURE.findall(data[:end])) > 1:
        raise AssetError(Reason.UNSUPPORTED_MATERIAL, "the PLY names several textures; save it as glTF")


def _check_xml(data: bytes, where: str) -> None:
    """No document type: entities could make a file of a hundred bytes a billion, or name other files."""
    if b"\0" in data[:1024] or not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise AssetError(Reason.NOT_A_MESH, f"{where} is no XML in UTF-8: starts with {data[:4]!r}")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where} has a document type, which is not read")


def _members(data: bytes, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Files of a zip archive, which may hold `max_bytes` in all."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (size := sum(info.file_size for info in archive.infolist())) > max_bytes:
                raise AssetError(Reason.TOO_LARGE, f"the archive unpacks to {size:,} bytes, limit {max_bytes:,}")
            for info in archive.infolist():
                yield info.filename, archive.read(info)
    except _PARSE_ERRORS as error:
        raise AssetError(Reason.NOT_A_MESH, f"the zip archive cannot be read: {error}") from error


def _parsed(data: bytes, suffix: str, references: _References, notes: Notes) -> dict[str, Any]:
    """trimesh's arrays of a file, before it makes a mesh of them, in which it would drop what it does not like."""
    from trimesh.exchange.load import mesh_loaders  # 1.6 s that only such files should cost

    logging.getLogger("trimesh").disabled = True  # what it has to say goes into the reason
    load, kind = mesh_loaders[suffix[1:]], suffix[1:]
    if kind == "dae":
        return _parsed_collada(data, load, references, notes)
    options = {"fix_texture": bool(_PLY_TEXTURE.search(data[:_MAX_HEADER]))} if kind == "ply" else {}
    try:
        loaded = dict(load(file_obj=io.BytesIO(data), file_type=kind, resolver=references, **options))
    except _PARSE_ERRORS as error:
        raise _unreadable(suffix, error) from error
    for name, element in loaded.get("metadata", {}).get("_ply_raw", {}).items():
        rows = element.get("data", ())
        found = len(next(iter(rows.values()), ())) if isinstance(rows, dict) else len(rows)
        if found != element["length"]:
            raise AssetError(Reason.TRUNCATED, f"{found:,} of {element['length']:,} elements {name!r:.40} are there")
    return loaded


def _parsed_collada(data: bytes, load: Callable[..., Any], references: _References, notes: Notes) -> dict[str, Any]:
    """Parse a COLLADA file; where some of it is broken, the rest."""
    from collada.common import DaeError

    try:
        try:
            return dict(load(file_obj=io.BytesIO(data), resolver=references, ignore_broken=False))
        except DaeError as error:
            loaded = dict(load(file_obj=io.BytesIO(data), resolver=references))
            notes.add(NoteKind.PART_LEFT_OUT, f"COLLADA: {error}")
            return loaded
    except (*_PARSE_ERRORS, DaeError) as error:
        raise _unreadable(".dae", error) from error


def _unreadable(suffix: str, error: BaseException) -> AssetError:
    return AssetError(Reason.LOAD_ERROR, f"the {suffix} file cannot be parsed ({type(error).__name__}: {error})")


def _pieces(loaded: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Float64[np.ndarray, "4 4"]]]:
    """Every placed geometry that has faces, with its transform."""
    geometries = loaded.get("geometry")
    geometries = {"": loaded} if geometries is None else geometries
    places = loaded.get("graph") or [{"geometry": name, "matrix": np.eye(4)} for name in geometries]
    for place in places:
        piece = geometries.get(place["geometry"])
        if piece is not None and piece.get("faces") is not None and len(piece["faces"]):
            faces, colors = _triangles(piece["faces"]), piece.get("face_colors")
            if colors is not None:  # one for every polygon
                colors = np.repeat(_array(colors), len(faces) // len(piece["faces"]), axis=0)
            yield piece | {"faces": faces, "face_colors": colors}, np.asarray(place["matrix"], np.float64)


def _array(values: Any) -> np.ndarray:
    """An array of numbers. Raises AssetError for what is none, such as rows of different lengths."""
    try:
        array = np.asarray([] if values is None else values)
    except ValueError as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"rows differ in length: {error}") from error
    if array.dtype.kind not in "fiu":
        raise AssetError(Reason.INVALID_STRUCTURE, f"an array of {array.dtype} {array.shape} in place of numbers")
    return array


def _triangles(faces: Any) -> Int64[np.ndarray, "f 3"]:
    """Polygons of one size as fans."""
    array = _array(faces)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind == "f":
        raise AssetError(Reason.INVALID_STRUCTURE, f"faces are an array of {array.dtype} {array.shape}")
    fans = [array[:, [0, corner, corner + 1]] for corner in range(1, array.shape[1] - 1)]
    return np.stack(fans, axis=1).reshape(-1, 3).astype(np.int64)


def _upright(data: bytes, suffix: str) -> Float64[np.ndarray, "4 4"]:
    """The turn to Y up."""
    axis = _UP_AXIS.search(data) if suffix == ".dae" else None
    up = b"Z" if suffix == ".3mf" else axis[1] if axis else b"Y"
    turn = np.eye(4)
    if up == b"Z":
        turn[:3, :3] = z_up_to_y_up(np.eye(3)).T
    elif up == b"X":
        turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    return turn


def _add(
    gathered: _Gathered,
    piece: dict[str, Any],
    matrix: Float64[np.ndarray, "4 4"],
    references: _References,
    folders: Folders,
) -> None:
    """Add a placed piece."""
    notes = folders.notes
    faces, vertices = piece["faces"], _array(piece["vertices"]).astype(np.float64)
    if vertices.ndim != 2 or vertices.shape[1] != 3 or not np.isfinite(matrix).all():
        raise AssetError(Reason.INVALID_STRUCTURE, f"vertices of shape {vertices.shape}, transform {matrix.tolist()}")
    if not 0 <= faces.min() <= faces.max() < len(vertices):
        detail = f"faces refer to vertices {faces.min()} to {faces.max()}, but there are {len(vertices)}"
        raise AssetError(Reason.INDEX_OUT_OF_RANGE, detail)
    vertices = _finite(vertices, faces, notes)
    visual = piece.get("visual")
    material = _material(visual, references, folders)
    uv = _rows(getattr(visual, "uv", None), len(vertices), 2) if material.image else None
    normal = _rows(piece.get("vertex_normals"), len(vertices), 3)
    color = None if material.image else _colors(piece.get("vertex_colors"), len(vertices))
    by_face = None if material.image or color is not None else _colors(piece.get("face_colors"), len(faces))
    if piece.get("face_colors") is not None and by_face is None and color is None and not material.image:
        notes.add(NoteKind.MATERIAL_MISSING, "colours of polygons that differ in size are not read: drawn white")
    source = faces
    if by_face is not None:  # a colour of its own for every corner
        rows = faces.reshape(-1)
        vertices, color = vertices[rows], np.repeat(by_face, 3, axis=0)
        normal = None if normal is None else normal[rows]
        source = faces = np.arange(len(rows)).reshape(-1, 3)
    if np.linalg.det(matrix[:3, :3]) < 0:
        faces = faces[:, ::-1]
    at = faces + gathered.num_vertices
    gathered.positions.append(vertices @ matrix[:3, :3].T + matrix[:3, 3])
    gathered.colors.append(np.ones((len(vertices), 3)) if color is None else color)
    gathered.uvs.append(np.zeros((len(vertices), 2)) if uv is None else uv)
    turned = np.zeros((len(vertices), 3)) if normal is None else normal @ np.linalg.pinv(matrix[:3, :3])
    gathered.normals.append(turned)
    sound = np.isfinite(turned).all(axis=1) & (np.abs(turned).max(axis=1) > 1e-12)
    gathered.corners.append(
        np.stack([at, np.full_like(at, -1) if uv is None else at, np.where(sound[faces], at, -1)], axis=2)
    )
    if material not in gathered.materials:
        gathered.materials.append(material)
    gathered.face_material.append(np.full(len(source), gathered.materials.index(material)))
    gathered.num_vertices += len(vertices)


def _finite(
    vertices: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"], notes: Notes
) -> Float64[np.ndarray, "v 3"]:
    """Vertices with those at the origin that are not finite and that no face uses."""
    broken: Bool[np.ndarray, " v"] = ~(np.abs(vertices) < 1e30).all(axis=1)
    if not broken.any():
        return vertices
    row = int(broken.argmax())
    detail = f"vertex {row} of {len(vertices)} is {vertices[row].tolist()}"
    if broken[faces].any():
        raise AssetError(Reason.NON_FINITE, detail)
    notes.add(NoteKind.DATA_IGNORED, f"{detail}; no face uses it", int(broken.sum()))
    return np.where(broken[:, None], 0.0, vertices)


def _rows(values: Any, count: int, width: int) -> Float64[np.ndarray, "count width"] | None:
    """A table of as many rows as wanted; None where it is another or not finite."""
    table = _array(values)
    if table.shape != (count, width):
        return None
    return table.astype(np.float64) if np.isfinite(table).all() else None


def _colors(values: Any, count: int) -> Float64[np.ndarray, "count 3"] | None:
    """sRGB colours in 0..1: whole numbers count to the largest of their type, others to 1, or to 255 where some are
    above 1. None where all are one white or there are none."""
    table = _array(values)
    if table.ndim != 2 or table.shape[0] != count or table.shape[1] not in (3, 4):
        return None
    colors = table[:, :3].astype(np.float64)
    if not np.isfinite(colors).all():
        raise AssetError(Reason.NON_FINITE, "a colour is not finite")
    integral = table.dtype.kind in "iu"
    top = np.iinfo(table.dtype).max if integral and table.dtype.itemsize < 4 else 255.0 if colors.max() > 1 else 1.0
    return np.clip(colors / float(top), 0.0, 1.0)


def _material(visual: Any, references: _References, folders: Folders) -> ObjMaterial:
    """The material of a piece. Where its image is to be had is checked by whoever reads it."""
    source = getattr(visual, "material", None)
    name = references.name_of(getattr(source, "baseColorTexture", None) or getattr(source, "image", None))
    if name is not None:
        return ObjMaterial(image=texture(name, folders))
    factor = getattr(source, "baseColorFactor", None)
    if factor is None:
        return ObjMaterial()
    red, green, blue, alpha = (float(x) / 255.0 for x in factor)
    # COLLADA files often say that what is opaque has alpha 0
    return ObjMaterial(color=(red, green, blue), opacity=alpha if alpha > 0 else 1.0)


def _note_unread(data: bytes, suffix: str, max_bytes: int, notes: Notes) -> None:
    """Note what trimesh does not read of a file."""
    if suffix == ".dae" and b"instance_controller" in data:
        notes.add(NoteKind.PART_LEFT_OUT, "COLLADA: skinned geometry is not read; save it as glTF")
    if suffix == ".3mf":
        text = b"".join(part for name, part in _members(data, max_bytes) if name.lower().endswith(".model"))
        if b"colorgroup" in text or b"basematerials" in text or b"texture2dgroup" in text:
            notes.add(NoteKind.MATERIAL_MISSING, "3MF: colours and textures are not read; save it as glTF")
