"""3MF archives (core specification 1.3, production and materials extensions): objects, placed and coloured."""

import io
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from xml.parsers import expat

import numpy as np
from jaxtyping import Float64

from pipeline.mesh_io.exchange.pieces import Piece, check_xml, corners_of
from pipeline.mesh_io.problems import AssetError, Notes
from schemas.ledger import NoteKind, Reason

_MAX_PLACED = 100_000
"""Objects placed in all (ours)."""
_MAX_DEPTH = 64
"""Deepest nesting of objects within objects (ours)."""
_UNREAD = {"texture2dgroup", "compositematerials", "multiproperties"}
_WHITE = (255, 255, 255)
Place = tuple[tuple[str, str], Float64[np.ndarray, "4 4"]]
"""File and number of an object, and where it goes."""


@dataclass(slots=True)
class _Object:
    """A mesh, or other objects."""

    look: tuple[str | None, str | None] = (None, None)
    """Palette and colour of triangles that have none of their own."""
    vertices: list[tuple[str, str, str]] = field(default_factory=list)
    faces: list[tuple[str, str, str]] = field(default_factory=list)
    looks: list[tuple[str | None, str | None, str | None, str | None]] = field(default_factory=list)
    """Palette of each triangle, and the colour of each of its corners."""
    components: list[Place] = field(default_factory=list)


@dataclass(slots=True)
class _Reader:
    """The objects of all files of the archive, as their tags are read."""

    notes: Notes
    main: str
    file: str = ""
    objects: dict[tuple[str, str], _Object] = field(default_factory=dict)
    palettes: dict[tuple[str, str], list[tuple[int, ...]]] = field(default_factory=dict)
    items: list[Place] = field(default_factory=list)
    current: _Object = field(default_factory=_Object)
    palette: list[tuple[int, ...]] = field(default_factory=list)

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        kind, get = tag.rpartition(" ")[2], attributes.get
        if kind == "vertex":
            self.current.vertices.append((attributes["x"], attributes["y"], attributes["z"]))
        elif kind == "triangle":
            self.current.faces.append((attributes["v1"], attributes["v2"], attributes["v3"]))
            first = get("p1")
            self.current.looks.append((get("pid"), first, get("p2", first), get("p3", first)))
        elif kind == "object":
            self.current = _Object((get("pid"), get("pindex")))
            self.objects[self.file, attributes["id"]] = self.current
        elif kind == "component":
            self.current.components.append(self._place(attributes))
        elif kind == "item" and self.file == self.main:
            self.items.append(self._place(attributes))
        elif kind in ("basematerials", "colorgroup"):
            self.palette = self.palettes[self.file, attributes["id"]] = []
        elif kind in ("base", "color"):
            stored = (get("displaycolor") or get("color") or "#FFFFFF").lstrip("#")
            self.palette.append(tuple(bytes.fromhex(stored[:6])))
        elif kind in _UNREAD:
            self.notes.add(NoteKind.MATERIAL_MISSING, f"3MF: {kind} is not read: drawn white")

    def _place(self, attributes: dict[str, str]) -> Place:
        path = next((value for name, value in attributes.items() if name.rpartition(" ")[2] == "path"), "")
        matrix = np.eye(4)
        if "transform" in attributes:  # rows, a point standing before it
            matrix[:3] = np.array(attributes["transform"].split(), np.float64).reshape(4, 3).T
        return (path.strip("/").lower() or self.file, attributes["objectid"]), matrix


def read_3mf(data: bytes, max_bytes: int, max_faces: int, notes: Notes) -> list[Piece]:
    """The placed objects of a 3MF, Z up. `max_bytes`: of what the archive unpacks to."""
    files = {
        name.strip("/").lower(): part for name, part in _members(data, max_bytes) if name.lower().endswith(".model")
    }
    main = next((name for name in files if name.endswith("3d/3dmodel.model")), next(iter(files), None))
    if main is None:
        raise AssetError(Reason.NOT_A_MESH, "the archive holds no .model file")
    reader = _Reader(notes, main)
    for name, part in files.items():
        check_xml(part, name[:80])
        parser = expat.ParserCreate("utf-8", " ")
        parser.StartElementHandler = reader.start
        reader.file = name
        try:
            parser.Parse(part, True)
        except (expat.ExpatError, LookupError, ValueError) as error:
            detail = f"{name[:80]} is no 3MF model ({type(error).__name__}: {error})"
            raise AssetError(Reason.LOAD_ERROR, detail) from error
    items = reader.items or [(key, np.eye(4)) for key, found in reader.objects.items() if found.faces]
    pieces: dict[tuple[str, str], Piece] = {}
    placed, faces = list[Piece](), 0
    for key, matrix in _flattened(items, reader):
        if key not in pieces:
            pieces[key] = _piece(key, reader)
        faces += len(pieces[key].count)
        if faces > max_faces:
            raise AssetError(Reason.TOO_LARGE, f"more than {max_faces:,} faces with instances")
        placed.append(replace(pieces[key], matrix=matrix))
    return placed


def _flattened(items: list[Place], reader: _Reader) -> Iterator[Place]:
    """Every placed mesh: objects within objects, in the order of the file."""
    stack = [(key, matrix, 0) for key, matrix in reversed(items)]
    for _ in range(_MAX_PLACED):
        if not stack:
            return
        key, matrix, depth = stack.pop()
        if key not in reader.objects:
            reader.notes.add(NoteKind.PART_LEFT_OUT, f"3MF: there is no object {key[1][:40]!r}")
            continue
        found = reader.objects[key]
        if found.faces:
            yield key, matrix
        if depth == _MAX_DEPTH:
            raise AssetError(Reason.INVALID_STRUCTURE, f"3MF: objects lie {_MAX_DEPTH} deep in objects, or in a circle")
        stack += [(inner, matrix @ move, depth + 1) for inner, move in reversed(found.components)]
    raise AssetError(Reason.TOO_LARGE, f"3MF: more than {_MAX_PLACED:,} placed objects")


def _piece(key: tuple[str, str], reader: _Reader) -> Piece:
    found = reader.objects[key]
    try:
        positions = np.array(found.vertices, np.float64).reshape(-1, 3)
        position = np.array(found.faces, np.int64).reshape(-1)
        colors = _colors(found, {name: palette for (file, name), palette in reader.palettes.items() if file == key[0]})
    except (ValueError, OverflowError) as error:
        detail = f"3MF: object {key[1][:40]!r} has something else than numbers ({error})"
        raise AssetError(Reason.INVALID_STRUCTURE, detail) from error
    count = np.full(len(found.faces), 3)
    return Piece(positions=positions, count=count, corners=corners_of(position), corner_colors=colors)


def _colors(found: _Object, palettes: dict[str, list[tuple[int, ...]]]) -> Float64[np.ndarray, "c 3"] | None:
    """Colours of all corners, white where a triangle has none that is known."""
    corners = list[tuple[int, ...]]()
    palette, index = found.look
    for own, *numbers in found.looks:
        colors = palettes.get(own or palette or "", [])
        chosen = [int(number if number is not None and own else index or 0) for number in numbers]
        corners += [colors[i] if 0 <= i < len(colors) else _WHITE for i in chosen]
    table = np.array(corners, np.float64).reshape(-1, 3) / 255.0
    return None if (table == 1.0).all() else table


def _members(data: bytes, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """Files of a zip archive, which may hold `max_bytes` in all."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if (size := sum(info.file_size for info in archive.infolist())) > max_bytes:
                raise AssetError(Reason.TOO_LARGE, f"the archive unpacks to {size:,} bytes, limit {max_bytes:,}")
            for info in archive.infolist():
                yield info.filename, archive.read(info)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError, NotImplementedError) as error:
        raise AssetError(Reason.NOT_A_MESH, f"the zip archive cannot be read: {error}") from error
