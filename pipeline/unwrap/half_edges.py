"""A soup of welded faces as an oriented manifold: which face lies across each edge, and which corners are one point."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from pipeline.unwrap.kernels.chart import join_corners, pair_edges


@dataclass(frozen=True, slots=True, kw_only=True)
class Surface:
    """Faces with area, in a box of side 1."""

    points: Float64[np.ndarray, "w 3"]
    faces: Int64[np.ndarray, "f 3"]
    normals: Float64[np.ndarray, "f 3"]
    """Unit."""
    areas: Float64[np.ndarray, " f"]
    lengths: Float64[np.ndarray, "f 3"]
    """Length of the edge from corner k to corner k + 1."""
    mates: Int64[np.ndarray, "f 3"]
    """Half-edge (3 * face + corner) on the other side of edge k; -1 at a border."""
    fans: Int64[np.ndarray, "f 3"]
    """Point of each corner, where faces that only touch in a point have points of their own."""


def make_surface(points: Float64[np.ndarray, "w 3"], faces: Int64[np.ndarray, "f 3"]) -> Surface:
    """Faces are joined where they run along an edge in opposite directions. Where more than two meet, the flattest pair
    is joined first: a sheet with a back of its own stays two sheets."""
    corners = points[faces]
    edges = np.roll(corners, -1, axis=1) - corners
    vectors = np.cross(edges[:, 0], edges[:, 1])
    doubled = np.linalg.norm(vectors, axis=1)
    normals = vectors / doubled[:, None]
    start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    keys = np.minimum(start, end) * len(points) + np.maximum(start, end)
    order = np.argsort(keys, kind="stable")
    mates = pair_edges(order, keys, start < end, normals)
    return Surface(
        points=points,
        faces=faces,
        normals=normals,
        areas=doubled / 2,
        lengths=np.linalg.norm(edges, axis=2),
        mates=mates.reshape(-1, 3),
        fans=join_corners(mates).reshape(-1, 3),
    )
