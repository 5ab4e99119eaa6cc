"""Vertices at the same place made one."""

import numpy as np
from jaxtyping import Float32, Int32, Int64


def weld(
    vertices: Float32[np.ndarray, "v 3"], faces: Int32[np.ndarray, "f 3"]
) -> tuple[Float32[np.ndarray, "w 3"], Int64[np.ndarray, "f 3"]]:
    """Distinct positions that faces use, and the faces over them, in the same order. Exact comparison: seams in files
    repeat coordinates to the bit; 0 and -0 are the same place."""
    used, corners = np.unique(faces, return_inverse=True)
    points = np.ascontiguousarray(vertices[used] + np.float32(0.0))
    rows = points.view(np.dtype((np.void, points.dtype.itemsize * 3))).reshape(-1)
    _, first, place = np.unique(rows, return_index=True, return_inverse=True)
    return points[first], place.reshape(-1)[corners.reshape(-1)].reshape(-1, 3).astype(np.int64)
