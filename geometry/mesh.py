"""Geometry of triangle meshes: welded vertices, areas and normals of faces."""

import numpy as np
from jaxtyping import Float, Float32, Float64, Int32, Int64


def weld(
    vertices: Float32[np.ndarray, "v 3"], faces: Int32[np.ndarray, "f 3"]
) -> tuple[Float32[np.ndarray, "w 3"], Int64[np.ndarray, "f 3"]]:
    """Merge vertices at one place: the distinct positions that faces use, and the faces over them, in the same order.

    Exact comparison: seams in files repeat coordinates to the bit; 0 and -0 are the same place."""
    used, corners = np.unique(faces, return_inverse=True)
    points = np.ascontiguousarray(vertices[used] + np.float32(0.0))
    rows = points.view(np.dtype((np.void, points.dtype.itemsize * 3))).reshape(-1)
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    return points[first], place.reshape(-1)[corners.reshape(-1)].reshape(-1, 3).astype(np.int64)


def corner_vectors(corners: Float[np.ndarray, "f 3 3"]) -> Float[np.ndarray, "f 3"]:
    """Return the normals of triangles [face, corner, xyz], each as long as twice the area of its triangle."""
    return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def unit_normals(corners: Float32[np.ndarray, "f 3 3"]) -> Float32[np.ndarray, "f 3"]:
    """Return unit normals of triangles; +Z for those without area."""
    cross = corner_vectors(corners.astype(np.float64))
    length = np.linalg.norm(cross, axis=1, keepdims=True)
    return np.where(length > 0.0, cross / np.where(length > 0.0, length, 1.0), (0.0, 0.0, 1.0)).astype(np.float32)


def face_vectors(vertices: Float64[np.ndarray, "v 3"], faces: Int64[np.ndarray, "f 3"]) -> Float64[np.ndarray, "f 3"]:
    """Return the normals of faces, each as long as twice the area of its face."""
    return corner_vectors(vertices[faces])


def unit(vectors: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """Return unit vectors; +Y where there is no direction. Safe for lengths whose square would overflow or vanish."""
    clean = np.nan_to_num(vectors, nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(clean).max(axis=1, keepdims=True, initial=0.0)
    scaled = clean / np.where(largest > 0, largest, 1.0)
    lengths = np.linalg.norm(scaled, axis=1, keepdims=True)
    return np.where(lengths > 0, scaled / np.where(lengths > 0, lengths, 1.0), [0.0, 1.0, 0.0])
