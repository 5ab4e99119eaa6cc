"""Seams, where a layout cuts the surface."""

import numpy as np
from jaxtyping import Int64

from geometry.mesh import face_vectors, weld
from pipeline.unwrap.half_edges import make_surface
from schemas.mesh import UvMesh


def seam_length(uv_mesh: UvMesh) -> float:
    """Length of the edges at which a layout is cut, over the root of the surface's area."""
    points, faces = weld(uv_mesh.vertices, uv_mesh.faces)
    solid = np.linalg.norm(face_vectors(points.astype(np.float64), faces), axis=1) > 0
    surface = make_surface(points.astype(np.float64), faces[solid])
    rows = np.concatenate([uv_mesh.vertices, uv_mesh.uv], axis=1)
    place = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)[uv_mesh.faces[solid]].reshape(-1)
    edge = np.flatnonzero(surface.mates.reshape(-1) > np.arange(surface.mates.size))
    mate = surface.mates.reshape(-1)[edge]
    whole = (place[edge] == place[_next(mate)]) & (place[_next(edge)] == place[mate])
    return float(surface.lengths.reshape(-1)[edge[~whole]].sum() / np.sqrt(surface.areas.sum()))


def _next(corner: Int64[np.ndarray, " e"]) -> Int64[np.ndarray, " e"]:
    """The following corner of the same face."""
    return corner // 3 * 3 + (corner + 1) % 3
