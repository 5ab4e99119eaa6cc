"""Polygons with one material: what every reader of this folder makes of its file, and how they become one mesh."""

import math
from dataclasses import dataclass, field, replace
from urllib.parse import unquote

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.mesh_io.polygons import triangles
from pipeline.mesh_io.problems import AssetError, Notes
from pipeline.mesh_io.references import Folders
from pipeline.mesh_io.wavefront.mtl import MapUse, ObjMaterial
from pipeline.mesh_io.wavefront.obj import ObjFile
from schemas.ledger import NoteKind, Reason


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Piece:
    """Polygons with one material, as they stand in a file."""

    positions: Float64[np.ndarray, "v 3"]
    count: Int64[np.ndarray, " p"]
    """Corners of each polygon."""
    corners: Int64[np.ndarray, "c 3"]
    """Corners, one polygon after the other: indices of position, texture coordinates and normal; -1 for none."""
    uvs: Float64[np.ndarray, "t 2"] = field(default_factory=lambda: np.zeros((0, 2)))
    normals: Float64[np.ndarray, "n 3"] = field(default_factory=lambda: np.zeros((0, 3)))
    colors: Float64[np.ndarray, "v 3"] | None = None
    """Colours of the positions, sRGB in [0, 1]."""
    corner_colors: Float64[np.ndarray, "c 3"] | None = None
    """Colours of the corners, where they have their own."""
    material: ObjMaterial = field(default_factory=ObjMaterial)
    matrix: Float64[np.ndarray, "4 4"] | None = None
    """Transform to the piece's place; None: it stays where it is."""


def corners_of(
    position: Int64[np.ndarray, " c"], *, uv: Int64[np.ndarray, " c"] | None = None, normal: bool = False
) -> Int64[np.ndarray, "c 3"]:
    """Corners by their positions, and by their texture coordinates where there are any. `normal`: one a position."""
    absent = np.full_like(position, -1)
    return np.stack([position, absent if uv is None else uv, position if normal else absent], axis=1)


def assembled(pieces: list[Piece], up: Float64[np.ndarray, "4 4"], max_faces: int, notes: Notes) -> ObjFile:
    """Cut the polygons of all pieces into triangles, placed and turned by `up`."""
    if (faces := sum(int(np.maximum(piece.count - 2, 0).sum()) for piece in pieces)) > max_faces:
        raise AssetError(Reason.TOO_LARGE, f"{faces:,} faces with instances, limit {max_faces:,}")
    if not faces:
        raise AssetError(Reason.NO_GEOMETRY, "the file has no faces")
    parts = [_placed(_checked(piece, notes), up) for piece in pieces if len(piece.count)]
    materials = list(dict.fromkeys(part.material for part in parts))
    shifts = np.cumsum([[0, 0, 0]] + [[len(p.positions), len(p.uvs), len(p.normals)] for p in parts], axis=0)
    corners, owners = [], []
    for part, shift in zip(parts, shifts[:-1], strict=True):
        begin = np.cumsum(part.count) - part.count
        _, corner = triangles(part.positions[part.corners[:, 0]], begin, part.count, notes)
        chosen = part.corners[corner]
        corners.append(np.where(chosen < 0, -1, chosen + shift))
        owners.append(np.full(len(corner), materials.index(part.material)))
    colored = any(part.colors is not None for part in parts)
    white = [np.ones((len(p.positions), 3)) if p.colors is None else p.colors for p in parts]
    return ObjFile(
        positions=np.concatenate([part.positions for part in parts]),
        colors=np.concatenate(white) if colored else None,
        uvs=np.concatenate([part.uvs for part in parts]),
        normals=np.concatenate([part.normals for part in parts]),
        corners=np.concatenate(corners),
        face_material=np.concatenate(owners),
        materials=materials,
    )


def _checked(piece: Piece, notes: Notes) -> Piece:
    """A piece whose indices and numbers are sound, without polygons of fewer than three corners. Its texture counts
    alone: colours beside it are noted."""
    for slot, (table, what) in enumerate(((piece.positions, "vertex"), (piece.uvs, "vt"), (piece.normals, "normal"))):
        index = piece.corners[:, slot]
        if len(index) and (index.max() >= len(table) or index.min() < (0 if slot == 0 else -1)):
            wrong = index.max() if index.max() >= len(table) else index.min()
            raise AssetError(
                Reason.INDEX_OUT_OF_RANGE, f"a face refers to {what} {wrong}, but there are {len(table):,}"
            )
    few = piece.count < 3
    if few.any():
        notes.add(NoteKind.FACES_LEFT_OUT, f"a face with {piece.count[few][0]} corners", int(few.sum()))
        kept = np.repeat(~few, piece.count)
        own = None if piece.corner_colors is None else piece.corner_colors[kept]
        piece = replace(piece, count=piece.count[~few], corners=piece.corners[kept], corner_colors=own)
    if piece.material.image and (piece.colors is not None or piece.corner_colors is not None):
        notes.add(NoteKind.DATA_IGNORED, "colours of vertices or faces beside a texture are ignored")
        piece = replace(piece, colors=None, corner_colors=None)
    elif piece.colors is not None and piece.corner_colors is not None:
        notes.add(NoteKind.DATA_IGNORED, "colours of faces beside those of vertices are ignored")
        piece = replace(piece, corner_colors=None)
    used = np.zeros(len(piece.positions), bool)
    used[piece.corners[:, 0]] = True
    return replace(
        piece,
        positions=_finite(piece.positions, used, "vertex", notes),
        uvs=_finite(piece.uvs, None, "texture coordinate", notes),
        normals=_finite(piece.normals, None, "normal", notes),
    )


def _finite(
    table: Float64[np.ndarray, "n width"], used: np.ndarray | None, what: str, notes: Notes
) -> Float64[np.ndarray, "n width"]:
    """A table with 0 in rows that are not finite, which are noted. `used`: rows where that rejects the asset."""
    broken = ~(np.abs(table) < 1e30).all(axis=1)
    if not broken.any():
        return table
    row = int((broken if used is None or not (broken & used).any() else broken & used).argmax())
    detail = f"{what} {row} of {len(table)} is {table[row].tolist()}"
    if used is not None and (broken & used).any():
        raise AssetError(Reason.NON_FINITE, detail)
    notes.add(NoteKind.DATA_IGNORED, f"{detail}: read as 0", int(broken.sum()))
    return np.where(broken[:, None], 0.0, table)


def _placed(piece: Piece, up: Float64[np.ndarray, "4 4"]) -> Piece:
    """A piece in the frame of the whole, its corners counter-clockwise as before where its place mirrors it."""
    if piece.corner_colors is not None:  # a position of its own for every corner
        own = piece.corners.copy()
        own[:, 0] = np.arange(len(own))
        piece = replace(piece, positions=piece.positions[piece.corners[:, 0]], colors=piece.corner_colors, corners=own)
    matrix = up if piece.matrix is None else up @ piece.matrix
    if not np.isfinite(matrix).all():
        raise AssetError(Reason.NON_FINITE, f"a transform is not finite: {matrix.tolist()}")
    turn, corners = matrix[:3, :3], piece.corners
    if np.linalg.det(turn) < 0:
        ends = np.repeat(np.cumsum(piece.count) - 1, piece.count)
        begins = np.repeat(np.cumsum(piece.count) - piece.count, piece.count)
        corners = corners[begins + ends - np.arange(len(corners))]
    normals = piece.normals @ np.linalg.pinv(turn)
    lost = ~(np.isfinite(normals).all(axis=1) & (np.abs(normals).max(axis=1, initial=0.0) > 1e-12))
    if lost.any():  # a normal that is none is computed
        corners = corners.copy()
        corners[(corners[:, 2] >= 0) & lost[corners[:, 2]], 2] = -1
    return replace(
        piece, positions=piece.positions @ turn.T + matrix[:3, 3], normals=normals, corners=corners, matrix=None
    )


def texture(name: str, folders: Folders) -> MapUse:
    """The file that a name in a PLY or COLLADA file means, which may be a URI with percent escapes. Raises AssetError
    where it leads out of the root."""
    return MapUse(names=names_of(name), where="texture", folder=folders.own).found(folders)


def names_of(name: str) -> tuple[str, ...]:
    """The paths that a name in a PLY or COLLADA file may mean, the likelier first."""
    plain = name.removeprefix("file://")
    return tuple(dict.fromkeys([plain, unquote(plain)]))


def unit_colors(stored: np.ndarray, top: float | None = None) -> Float64[np.ndarray, "n 3"]:
    """Colours (RGB or RGBA) in [0, 1] as RGB. `top`: what they are counted to; None: to 255 where one is above 1."""
    colors = stored[:, :3].astype(np.float64)
    if not np.isfinite(colors).all():
        raise AssetError(Reason.NON_FINITE, "a colour is not finite")
    top = top or (255.0 if colors.max(initial=0.0) > 1 else 1.0)
    return np.clip(colors / top, 0.0, 1.0)


def opacity_of(alpha: float, where: str, notes: Notes) -> float:
    """An opacity in [0, 1]; 0 is read as opaque and noted, since nobody exports the invisible."""
    if alpha > 0 and math.isfinite(alpha):
        return min(alpha, 1.0)
    notes.add(NoteKind.VALUE_CORRECTED, f"{where}: opacity {alpha:g} is read as opaque")
    return 1.0


def check_xml(data: bytes, where: str) -> None:
    """Raise AssetError for a document type: entities could make a file of a hundred bytes a billion, or name other
    files."""
    if b"\0" in data[:1024] or not data.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise AssetError(Reason.NOT_A_MESH, f"{where} is no XML in UTF-8: starts with {data[:4]!r}")
    if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
        raise AssetError(Reason.INVALID_STRUCTURE, f"{where} has a document type, which is not read")
