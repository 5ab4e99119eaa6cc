"""Meshes for the gallery's 3D view: quantised to 16 bits, coded by differences, compressed. `web/mesh.js` unpacks them.

After gzip, the bytes are streams of n numbers, each number as difference from its predecessor, zigzag coded (0, -1, 1,
-2, ... as 0, 1, 2, 3, ...), each stream as planes of n bytes, the lowest first: x, y, z, u, v (2 bytes each), the
normal's x, y, z (1 byte each), then the corners of the faces (4 bytes each)."""

import base64
import gzip
from dataclasses import replace
from typing import Any

import numpy as np

from schemas.mesh import UvMesh

STEPS = 65_535
"""Positions in [-1, 1] and texture coordinates in [0, 1] are whole numbers of so many steps: errors up to 1.6e-5 and
8e-6."""


def pack_mesh(mesh: UvMesh) -> dict[str, Any]:
    """Return a mesh in the dataset frame as JSON: `vertices`, `faces`, `double_sided` (number of the faces that are
    seen from both sides; they come first), and `data`, the streams in base64."""
    mesh = _in_order(mesh)
    streams = [
        *_whole((mesh.vertices + 1) / 2, STEPS, np.uint16).T,
        *_whole(mesh.uv, STEPS, np.uint16).T,
        *_whole((mesh.normals + 1) / 2, 255, np.uint8).T,
        mesh.faces.astype(np.uint32).reshape(-1),
    ]
    data = gzip.compress(b"".join(map(_planes, streams)), 9, mtime=0)
    single = 0 if mesh.single_sided is None else int(mesh.single_sided.sum())
    return {
        "vertices": len(mesh.vertices),
        "faces": len(mesh.faces),
        "double_sided": len(mesh.faces) - single,
        "data": base64.b64encode(data).decode(),
    }


def _in_order(mesh: UvMesh) -> UvMesh:
    """Sort faces by sides and vertices by first use, which makes neighbouring numbers similar; unused vertices go."""
    single = np.zeros(len(mesh.faces), bool) if mesh.single_sided is None else mesh.single_sided
    order = np.argsort(single, kind="stable")
    corners = mesh.faces[order].reshape(-1)
    used, first, place = np.unique(corners, return_index=True, return_inverse=True)
    rank = np.empty(len(used), np.int64)
    by_use = np.argsort(first)
    rank[by_use] = np.arange(len(used))
    kept = used[by_use]
    return replace(
        mesh,
        vertices=mesh.vertices[kept],
        normals=mesh.normals[kept],
        uv=mesh.uv[kept],
        faces=rank[place].reshape(-1, 3).astype(np.int32),
        single_sided=single[order],
    )


def _whole(shares: np.ndarray, steps: int, kind: type[np.unsignedinteger[Any]]) -> np.ndarray:
    """Turn shares in [0, 1] into whole numbers of steps; numbers that are none become 0."""
    return np.rint(np.clip(np.nan_to_num(shares), 0, 1) * steps).astype(kind)


def _planes(values: np.ndarray) -> bytes:
    """Code a stream of unsigned numbers."""
    bits = 8 * values.itemsize
    step = np.diff(values, prepend=values.dtype.type(0)).view(f"i{values.itemsize}")
    coded = np.ascontiguousarray((step << 1) ^ (step >> (bits - 1)))
    return coded.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()
