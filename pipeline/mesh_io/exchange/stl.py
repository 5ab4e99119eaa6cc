"""STL files, binary and text: triangles alone."""

import re
import struct

import numpy as np

from pipeline.mesh_io.exchange.pieces import Piece, corners_of
from pipeline.mesh_io.problems import AssetError, Notes
from schemas.ledger import NoteKind, Reason

_HEAD = 84
_RECORD = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX = re.compile(rb"\bvertex[ \t]+(\S+)[ \t]+(\S+)[ \t]+(\S+)", re.IGNORECASE)


def read_stl(data: bytes, max_faces: int, notes: Notes) -> list[Piece]:
    """The triangles of an STL; corners in one place are one vertex. Colours, which some programs put into the attribute
    bytes of a binary file in ways of their own, are not read but noted."""
    (announced,) = struct.unpack_from("<I", data, _HEAD - 4) if len(data) >= _HEAD else (0,)
    if len(data) >= _HEAD and (not data.lstrip().startswith(b"solid") or len(data) == _HEAD + 50 * announced):
        if announced > max_faces:
            raise AssetError(Reason.TOO_LARGE, f"{announced:,} faces, limit {max_faces:,}")
        if len(data) < _HEAD + 50 * announced:
            detail = f"{announced:,} faces are announced, {(len(data) - _HEAD) // 50:,} are there"
            raise AssetError(Reason.TRUNCATED, detail)
        records = np.frombuffer(data, _RECORD, announced, _HEAD)
        places = records["corners"].reshape(-1, 3).astype(np.float64)
        if colored := int((records["attribute"] != 0).sum()):
            notes.add(NoteKind.MATERIAL_MISSING, "STL: attribute bytes, which may be colours, are not read", colored)
    else:
        if (faces := data.lower().count(b"endfacet")) > max_faces:
            raise AssetError(Reason.TOO_LARGE, f"{faces:,} faces, limit {max_faces:,}")
        words = _VERTEX.findall(data)
        try:
            places = np.array(words, np.bytes_).reshape(-1, 3).astype(np.float64)
        except ValueError as error:
            raise AssetError(Reason.INVALID_STRUCTURE, f"a vertex of the STL is no three numbers ({error})") from error
    if len(places) % 3:
        raise AssetError(Reason.TRUNCATED, f"the STL has {len(places):,} corners, which are no whole triangles")
    positions, corner = np.unique(places, axis=0, return_inverse=True)
    count = np.full(len(places) // 3, 3)
    return [Piece(positions=positions, count=count, corners=corners_of(corner.reshape(-1)))]
