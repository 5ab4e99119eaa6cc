"""Polygons cut into triangles: around their first corner where that stays inside, by ear clipping where not."""

import mapbox_earcut
import numpy as np
from jaxtyping import Float64, Int64

from geometry.mesh import face_vectors
from pipeline.mesh_io.problems import Notes
from schemas.ledger import NoteKind

_FLAT = 1e-6
"""A triangle turned against its polygon by less than this share of the polygon's area is rounding (ours)."""
_MAX_CORNERS = 10_000
"""Most corners of a polygon that is clipped: one that crosses itself everywhere takes 0.3 s then, growing with the
square."""
_MAX_ERROR = 1e-3
"""Share by which the triangles of a simple polygon may differ from its area (ours: rounding)."""


def triangles(
    points: Float64[np.ndarray, "c 3"], begin: Int64[np.ndarray, " p"], count: Int64[np.ndarray, " p"], notes: Notes
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, "f 3"]]:
    """Triangles of polygons in space: the polygon of each, in order, and its corners.

    Args:
        points: the corners of all polygons
        begin: the first corner of each polygon, whose others follow
        count: how many it has, at least 3
        notes: what a polygon that crosses itself is noted in; it is drawn around its first corner
    """
    face, corner = _fans(begin, count)
    if (count == 3).all():
        return face, corner
    with np.errstate(over="ignore", invalid="ignore"):  # numbers beyond all sense are rejected later
        areas = face_vectors(points, corner)
        normal = np.stack([np.bincount(face, areas[:, axis], len(count)) for axis in range(3)], axis=1)
        turned = (areas * normal[face]).sum(axis=1) < -_FLAT * (normal**2).sum(axis=1)[face]
    concave = np.unique(face[turned & (count[face] > 3)])
    if not len(concave):
        return face, corner
    owner, clipped = _clipped(points, begin[concave], count[concave], normal[concave])
    cut = np.unique(owner)
    if len(cut) < len(concave):
        detail = f"a polygon crosses itself, or has over {_MAX_CORNERS:,} corners: drawn around its first corner"
        notes.add(NoteKind.VALUE_CORRECTED, detail, len(concave) - len(cut))
    kept = ~np.isin(face, concave[cut])
    face, corner = np.concatenate([face[kept], concave[owner]]), np.concatenate([corner[kept], clipped])
    order = np.argsort(face, kind="stable")
    return face[order], corner[order]


def _fans(
    begin: Int64[np.ndarray, " p"], count: Int64[np.ndarray, " p"]
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, "f 3"]]:
    face = np.repeat(np.arange(len(count)), count - 2)
    step = np.arange(len(face)) - (np.cumsum(count - 2) - (count - 2))[face]
    first = begin[face]
    return face, np.stack([first, first + step + 1, first + step + 2], axis=1)


def _clipped(
    points: Float64[np.ndarray, "c 3"],
    begin: Int64[np.ndarray, " p"],
    count: Int64[np.ndarray, " p"],
    normal: Float64[np.ndarray, "p 3"],
) -> tuple[Int64[np.ndarray, " f"], Int64[np.ndarray, "f 3"]]:
    """Ear clipping on each polygon's plane, the axis that it faces most left out (which keeps what lies inside): the
    polygon of each triangle, and its corners; none for one that crosses itself or has too many corners."""
    axis = np.abs(normal).argmax(axis=1)
    across = np.array([[1, 2], [0, 2], [0, 1]])[axis]
    found, owner = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for polygon, (start, corners) in enumerate(zip(begin.tolist(), count.tolist(), strict=True)):
        ring = (points[start : start + corners] - points[start])[:, across[polygon]]
        if corners <= _MAX_CORNERS and np.isfinite(ring).all():
            ears = mapbox_earcut.triangulate_float64(ring, np.array([corners], np.uint32)).reshape(-1, 3)
            found.append(ears.astype(np.int64) + start)
            owner.append(np.full(len(ears), polygon))
    corner, of = np.concatenate(found), np.concatenate(owner)
    areas = np.take_along_axis(face_vectors(points, corner), axis[of][:, None], axis=1)[:, 0]
    whole = normal[np.arange(len(axis)), axis]
    corner = np.where((areas * whole[of] < 0)[:, None], corner[:, ::-1], corner)
    error = np.abs(np.bincount(of, np.abs(areas), len(axis)) - np.abs(whole))
    simple = (error <= _MAX_ERROR * np.abs(whole))[of]
    return of[simple], corner[simple]
