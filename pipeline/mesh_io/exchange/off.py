"""OFF files (Geomview): polygons, colours of vertices and faces, normals and texture coordinates of vertices."""

import re

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.mesh_io.exchange.pieces import Piece, corners_of, unit_colors
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import plain_text
from schemas.ledger import NoteKind, Reason

_HEADER = re.compile(r"\s*(ST)?(C)?(N)?(4)?(n)?OFF\b(\s*BINARY)?|\s*OFF(?=\d)")
"""The second form: some programs put the first count right behind the word."""


def read_off(data: bytes, max_faces: int, notes: Notes) -> list[Piece]:
    """The polygons of an OFF. Its colours are counted to 255 where they are whole numbers, else to 1."""
    text = re.sub(r"#[^\r\n]*", "", plain_text(data))
    header = _HEADER.match(text)
    if header is None:
        raise AssetError(Reason.NOT_A_MESH, f"not an OFF: starts with {data[:8]!r}")
    if header[4] or header[5] or header[6]:
        raise AssetError(Reason.LOAD_ERROR, f"{header[0].strip()} is not read: binary, or not in three dimensions")
    counts, *lines = [line for line in text[header.end() :].splitlines() if line.strip()] or [""]
    words = counts.split()
    if len(words) < 2 or not all(word.isdecimal() and len(word) < 19 for word in words[:2]):
        raise AssetError(Reason.INVALID_STRUCTURE, f"the OFF has {counts[:40]!r} in place of its counts")
    vertices, faces = int(words[0]), int(words[1])
    if faces > max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{faces:,} faces, limit {max_faces:,}")
    if vertices + faces > len(lines):
        raise AssetError(Reason.TRUNCATED, f"{vertices + faces:,} rows are announced, {len(lines):,} are there")
    table = _table(lines[:vertices])
    normals = table[:, 3:6] if header[3] and table.shape[1] >= 6 else None
    rest = table[:, 6:] if normals is not None else table[:, 3:]
    uvs = rest[:, -2:] if header[1] and rest.shape[1] >= 2 else None
    rest = rest[:, :-2] if uvs is not None else rest
    position, count, by_face = _faces(lines[vertices : vertices + faces], notes)
    return [
        Piece(
            positions=table[:, :3],
            count=count,
            corners=corners_of(position, uv=None if uvs is None else position, normal=normals is not None),
            uvs=np.zeros((0, 2)) if uvs is None else uvs,
            normals=np.zeros((0, 3)) if normals is None else normals,
            colors=unit_colors(rest, None) if rest.shape[1] in (3, 4) else None,
            corner_colors=None if by_face is None else np.repeat(by_face, count, axis=0),
        )
    ]


def _table(lines: list[str]) -> Float64[np.ndarray, "v width"]:
    """The rows of the vertices: as many numbers each as the shortest has."""
    rows = [line.split() for line in lines]
    width = min(map(len, rows), default=0)
    if width < 3:
        raise AssetError(Reason.NO_GEOMETRY, f"the OFF has {len(rows)} vertices, the shortest of {width} numbers")
    return _numbers([word for row in rows for word in row[:width]]).reshape(-1, width)


def _faces(
    lines: list[str], notes: Notes
) -> tuple[Int64[np.ndarray, " c"], Int64[np.ndarray, " p"], Float64[np.ndarray, "p 3"] | None]:
    """Positions of all corners, how many each face has, and the colours of the faces, white where one has none."""
    rows = [line.split() for line in lines]
    try:
        counts = [int(row[0]) for row in rows]
        position = np.array(
            [int(word) for row, n in zip(rows, counts, strict=True) for word in row[1 : n + 1]], np.int64
        )
    except (ValueError, OverflowError) as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"the OFF's faces are not all whole numbers ({error})") from error
    if any(n < 0 or len(row) <= n for row, n in zip(rows, counts, strict=True)):
        raise AssetError(Reason.TRUNCATED, "a face of the OFF has fewer corners than it says")
    own = [row[n + 1 :] for row, n in zip(rows, counts, strict=True)]
    if mapped := sum(len(color) == 1 for color in own):
        notes.add(NoteKind.MATERIAL_MISSING, "OFF: colours by number in a palette are not read: drawn white", mapped)
    colored = np.array([len(color) >= 3 for color in own], bool)
    if not colored.any():
        return position, np.array(counts, np.int64), None
    stored = [color[:3] for color in own if len(color) >= 3]
    whole = not any("." in word or "e" in word.lower() for color in stored for word in color)
    colors = np.ones((len(own), 3))
    table = _numbers([word for color in stored for word in color]).reshape(-1, 3)
    colors[colored] = unit_colors(table, 255.0 if whole else None)
    return position, np.array(counts, np.int64), colors


def _numbers(words: list[str]) -> Float64[np.ndarray, " n"]:
    try:
        return np.array(words, np.float64)
    except ValueError as error:
        raise AssetError(Reason.INVALID_STRUCTURE, f"the OFF's rows are not all numbers ({error})") from error
