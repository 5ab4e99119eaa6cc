"""Geometry of triangle meshes: welded vertices, areas and normals of faces, tangents."""

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int32, Int64
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


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


def mean_angle_deg(one: Float32[np.ndarray, "n 3"], other: Float32[np.ndarray, "n 3"]) -> float:
    """Mean angle between unit vectors, degrees: by their chord, which small angles do not lose in rounding."""
    away = np.subtract(one, other, dtype=np.float64)
    chord = np.sqrt(np.einsum("nc,nc->n", away, away))
    return float(np.degrees(2.0 * np.arcsin(np.minimum(chord / 2.0, 1.0))).mean())


def mikktspace(
    vertices: Float32[np.ndarray, "v 3"],
    normals: Float32[np.ndarray, "v 3"],
    uv: Float32[np.ndarray, "v 2"],
    faces: Int32[np.ndarray, "f 3"],
) -> Float32[np.ndarray, "f 3 4"]:
    """Compute the tangents of all corners: unit vector along u, and the sign of cross(normal, tangent) that points
    along v (up).

    MikkTSpace (Mikkelsen 2008), which glTF 2.0 names for meshes without tangents: corners are one where position,
    normal and coordinates are equal and faces of one orientation in the layout join them; there the faces' directions
    count by their angles. Corners of faces without area in the layout take those of the others at their vertex."""
    rows = np.ascontiguousarray(np.concatenate([vertices, normals, uv], axis=1) + np.float32(0.0))
    keys = rows.view(np.dtype((np.void, rows.dtype.itemsize * rows.shape[1]))).reshape(-1)
    vertex = np.unique(keys, return_inverse=True)[1].reshape(-1)[faces].astype(np.int64)
    points, corner_normals = vertices[faces].astype(np.float64), normals[faces].astype(np.float64)
    places = uv[faces].astype(np.float64)
    (e1, e2), (d1, d2) = (points[:, 1:] - points[:, :1]).swapaxes(0, 1), (places[:, 1:] - places[:, :1]).swapaxes(0, 1)
    area = d1[:, 0] * d2[:, 1] - d1[:, 1] * d2[:, 0]
    along = (e1 * d2[:, 1:] - e2 * d1[:, 1:]) * np.sign(area)[:, None]
    tangent = _unit_or_zero(_flattened(_unit_or_zero(along)[:, None], corner_normals))
    forth = _unit_or_zero(_flattened(np.roll(points, -1, axis=1) - points, corner_normals))
    back = _unit_or_zero(_flattened(np.roll(points, 1, axis=1) - points, corner_normals))
    angle = np.arccos(np.clip((forth * back).sum(axis=2), -1.0, 1.0))
    weighted = (tangent * angle[..., None]).reshape(-1, 3)
    group = _tangent_groups(vertex, area)
    found = _unit_or_zero(_summed(weighted, group))
    lost = ~found.any(axis=1)
    found[lost] = _unit_or_zero(_summed(weighted, vertex.reshape(-1)))[lost]
    lost = ~found.any(axis=1)
    found[lost] = _across(corner_normals.reshape(-1, 3)[lost])
    sign = np.repeat(np.where(area < 0.0, -1.0, 1.0), 3)
    return np.concatenate([found, sign[:, None]], axis=1).reshape(-1, 3, 4).astype(np.float32)


def _tangent_groups(vertex: Int64[np.ndarray, "f 3"], area: Float64[np.ndarray, " f"]) -> Int64[np.ndarray, " corners"]:
    """Return the group of every corner: those of one vertex whose faces follow one another over shared edges, all of
    one orientation."""
    corner = np.arange(vertex.size).reshape(-1, 3)
    after = np.roll(corner, -1, axis=1).reshape(-1)
    start, end = vertex.reshape(-1), np.roll(vertex, -1, axis=1).reshape(-1)
    span = int(vertex.max(initial=0)) + 1
    edges = start * span + end
    order = np.argsort(edges, kind="stable")
    place = np.minimum(np.searchsorted(edges[order], end * span + start), len(edges) - 1)
    partner = order[place]
    side = np.sign(area)[np.arange(len(edges)) // 3]
    joined = (edges[partner] == end * span + start) & (side == side[partner]) & (side != 0)
    first, second = np.flatnonzero(joined), partner[joined]
    one, other = np.concatenate([first, after[first]]), np.concatenate([after[second], second])
    links = coo_array((np.ones(len(one), bool), (one, other)), shape=(vertex.size, vertex.size))
    return connected_components(links, directed=False)[1].astype(np.int64)


def _flattened(
    vectors: Float64[np.ndarray, "f corners 3"], normals: Float64[np.ndarray, "f 3 3"]
) -> Float64[np.ndarray, "f 3 3"]:
    """Project vectors onto the planes of unit normals."""
    return vectors - normals * (vectors * normals).sum(axis=2, keepdims=True)


def _unit_or_zero(vectors: Float64[np.ndarray, "*n 3"]) -> Float64[np.ndarray, "*n 3"]:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(lengths > 1e-20, vectors / np.where(lengths > 1e-20, lengths, 1.0), 0.0)


def _summed(vectors: Float64[np.ndarray, "n 3"], group: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, "n 3"]:
    """Sum vectors over their groups, given back to each member."""
    sums = [np.bincount(group, vectors[:, axis], minlength=1)[group] for axis in range(3)]
    return np.stack(sums, axis=1)


def _across(normals: Float64[np.ndarray, "n 3"]) -> Float64[np.ndarray, "n 3"]:
    """Return some unit vector at right angles to each normal."""
    steep: Bool[np.ndarray, " n"] = np.abs(normals[:, 0]) > 0.9
    return _unit_or_zero(np.cross(normals, np.where(steep[:, None], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0])))
