"""Compiled loops that join faces: across edges, around points, into charts."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.measure import find_root, join

MAX_FACES_AT_EDGE = 16
"""Edges with more faces than this are left open: pairing them takes quadratic time, and no layout needs it."""


@njit(nogil=True, cache=True)
def pair_edges(order: np.ndarray, keys: np.ndarray, forward: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Half-edges [3 f] grouped by `keys` in `order`: each one's partner, or -1."""
    mates = np.full(len(keys), -1, np.int64)
    first = 0
    while first < len(order):
        last = first + 1
        while last < len(order) and keys[order[last]] == keys[order[first]]:
            last += 1
        while last - first <= MAX_FACES_AT_EDGE:
            best, one, other = -2.0, -1, -1
            for i in range(first, last):
                for j in range(first, last):
                    a, b = order[i], order[j]
                    if forward[a] and not forward[b] and mates[a] < 0 and mates[b] < 0 and a // 3 != b // 3:
                        m, n = normals[a // 3], normals[b // 3]
                        flat = m[0] * n[0] + m[1] * n[1] + m[2] * n[2]
                        if flat > best:
                            best, one, other = flat, a, b
            if one < 0:
                break
            mates[one], mates[other] = other, one
        first = last
    return mates


@njit(nogil=True, cache=True)
def join_corners(mates: np.ndarray) -> np.ndarray:
    """Corners [3 f] that joined edges make one point, numbered without gaps in order of appearance."""
    parents = np.arange(len(mates))
    for a in range(len(mates)):
        b = mates[a]
        if b > a:
            ends = (b // 3 * 3 + (b + 1) % 3, b)
            starts = (a, a // 3 * 3 + (a + 1) % 3)
            for k in range(2):
                join(parents, starts[k], ends[k])
    names = np.full(len(mates), -1, np.int64)
    fans = np.empty(len(mates), np.int64)
    count = 0
    for corner in range(len(mates)):
        root = find_root(parents, corner)
        if names[root] < 0:
            names[root] = count
            count += 1
        fans[corner] = names[root]
    return fans


@njit(nogil=True, cache=True)
def connected_pieces(groups: np.ndarray, mates: np.ndarray) -> np.ndarray:
    """First face of the connected piece [f] of its group that each face lies in."""
    parents = np.arange(len(groups))
    for edge in range(len(mates)):
        other = mates[edge] // 3
        if mates[edge] > edge and groups[edge // 3] == groups[other]:
            join(parents, edge // 3, other)
    for face in range(len(parents)):
        parents[face] = find_root(parents, face)
    return parents


@njit(nogil=True, cache=True)
def faces_within(first: int, following: np.ndarray, normals: np.ndarray, axis: np.ndarray, cosine: float) -> bool:
    """Return whether all faces of a list look along an axis (any length), within a cone."""
    limit = cosine * np.sqrt(axis[0] * axis[0] + axis[1] * axis[1] + axis[2] * axis[2])
    face = first
    while face >= 0:
        if normals[face, 0] * axis[0] + normals[face, 1] * axis[1] + normals[face, 2] * axis[2] < limit:
            return False
        face = following[face]
    return True


@njit(nogil=True, cache=True)
def merge_round(
    order: np.ndarray, one: np.ndarray, other: np.ndarray, shared: np.ndarray, normals: np.ndarray, cosine: float,
    labels: np.ndarray, vectors: np.ndarray, areas: np.ndarray, borders: np.ndarray, following: np.ndarray,
    ends: np.ndarray,
) -> int:  # fmt: skip
    """Merge the pairs that are each other's best, in place; returns their number."""
    taken, blocked = np.zeros(len(labels), np.bool_), np.zeros(len(labels), np.bool_)
    axis, merged = np.empty(3), 0
    for pair in order:
        a, b = one[pair], other[pair]
        if taken[a] or taken[b] or blocked[a] or blocked[b]:
            blocked[a] = blocked[b] = True
            continue
        for k in range(3):
            axis[k] = vectors[a, k] + vectors[b, k]
        if not faces_within(a, following, normals, axis, cosine) or not faces_within(
            b, following, normals, axis, cosine
        ):
            continue
        taken[a] = taken[b] = True
        for k in range(3):
            vectors[a, k] = axis[k]
        areas[a] += areas[b]
        borders[a] += borders[b] - 2 * shared[pair]
        following[ends[a]] = b
        ends[a] = ends[b]
        labels[b] = a
        merged += 1
    return merged
