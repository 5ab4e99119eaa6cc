"""Charts made flat: seen along their mean normal first, then relaxed until every face keeps its shape as well as its
neighbours allow (as rigid as possible, Liu et al. 2008: a local and a global step in turn)."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float64, Int64

from pipeline.unwrap.half_edges import Surface
from pipeline.unwrap.kernels.flatten import relax_all
from pipeline.unwrap.kernels.stretch import sound_charts

TURNS = 12
"""Local and global steps per chart."""
SOLVER_STEPS = 24
"""Conjugate gradient steps per global step, from the last solution."""
MAX_COTANGENT = 20.0
"""Cotangent weights are kept in [1 / this, this]: needles would stiffen their whole chart, obtuse corners push it
apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flat:
    """Some faces of a surface as charts in the plane, each somewhere of its own, in units of the surface."""

    order: Int64[np.ndarray, " f"]
    """Faces, chart after chart."""
    first_face: Int64[np.ndarray, " c1"]
    """First face of each chart in `order`, and the end."""
    corners: Int64[np.ndarray, "f 3"]
    """Chart vertices; those of one chart are consecutive."""
    first_vertex: Int64[np.ndarray, " c1"]
    """First vertex of each chart, and the end."""
    origin: Int64[np.ndarray, " n"]
    """Point of the surface under each chart vertex."""
    chart: Int64[np.ndarray, " n"]
    """Chart of each vertex."""


def index_charts(surface: Surface, chosen: Int64[np.ndarray, " f"], labels: Int64[np.ndarray, " f"]) -> Flat:
    """The `chosen` faces with the chart of each, numbered without gaps."""
    order = np.argsort(labels, kind="stable")
    ends = np.arange(int(labels.max()) + 2)
    size = int(surface.fans.max()) + 1
    keys, first, corners = np.unique(
        (labels[:, None] * size + surface.fans[chosen]).reshape(-1), return_index=True, return_inverse=True
    )
    chart = keys // size
    return Flat(
        order=order,
        first_face=np.searchsorted(labels[order], ends),
        corners=corners.reshape(-1, 3),
        first_vertex=np.searchsorted(chart, ends),
        origin=surface.faces[chosen].reshape(-1)[first],
        chart=chart,
    )


def flatten_charts(
    surface: Surface,
    chosen: Int64[np.ndarray, " f"],
    labels: Int64[np.ndarray, " f"],
    rest: Float64[np.ndarray, "w 3"],
    weights: Float64[np.ndarray, "w 3"],
    texel: float,
) -> tuple[Float64[np.ndarray, "f 3 2"], Bool[np.ndarray, " c"]]:
    """Corner coordinates of the `chosen` faces, relaxed where that works and as seen along the chart's mean normal
    elsewhere; and the charts that neither lays flat without turning a face over or two into one place (as seen on a
    grid of step `texel`)."""
    flat = index_charts(surface, chosen, labels)
    vectors = surface.normals[chosen] * surface.areas[chosen, None]
    axis = np.stack([np.bincount(labels, vectors[:, k]) for k in range(3)], axis=1)
    seen = _along(axis, flat.chart, surface.points[flat.origin])
    relaxed, rest, weights = seen.copy(), rest[chosen], weights[chosen]
    parts = (flat.order, flat.first_face, flat.first_vertex, flat.corners)
    relax_all(*parts, rest, weights, relaxed, TURNS, SOLVER_STEPS)
    good = sound_charts(*parts, relaxed, texel)
    uv = np.where(good[flat.chart, None], relaxed, seen)
    if not good.all():
        good |= sound_charts(*parts, seen, texel)
    return uv[flat.corners], ~good


def _along(
    axis: Float64[np.ndarray, "c 3"], chart: Int64[np.ndarray, " n"], points: Float64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, "n 2"]:
    """Points in the plane across their chart's axis, right-handed (counter-clockwise faces stay so)."""
    length = np.linalg.norm(axis, axis=1, keepdims=True)
    axis = np.where(length > 1e-12, axis / np.where(length > 1e-12, length, 1.0), [0.0, 0.0, 1.0])
    helper = np.eye(3)[np.abs(axis).argmin(axis=1)]
    first = np.cross(helper, axis)
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(axis, first)
    return np.stack([(points * first[chart]).sum(axis=1), (points * second[chart]).sum(axis=1)], axis=1)


def rest_shapes(
    points: Float64[np.ndarray, "w 3"], faces: Int64[np.ndarray, "f 3"]
) -> tuple[Float64[np.ndarray, "f 3"], Float64[np.ndarray, "f 3"]]:
    """Faces laid flat: corner 0 at the origin, corner 1 at (x1, 0), corner 2 at (x2, y2), as [x1, x2, y2]; and the
    weight (half a cotangent) of the edge from corner k to k + 1."""
    a, b, c = points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]
    base = np.linalg.norm(b - a, axis=1)
    x2 = ((c - a) * (b - a)).sum(axis=1) / base
    y2 = np.linalg.norm(np.cross(b - a, c - a), axis=1) / base
    doubled = base * y2
    opposite = ((a, b, c), (b, c, a), (c, a, b))  # edge from corner k to k + 1, and the corner across
    cotangents = [((p - r) * (q - r)).sum(axis=1) / doubled for p, q, r in opposite]
    weights = np.clip(np.stack(cotangents, axis=1), 1 / MAX_COTANGENT, MAX_COTANGENT) / 2
    return np.stack([base, x2, y2], axis=1), weights
