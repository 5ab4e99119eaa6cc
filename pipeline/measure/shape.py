"""The shape of a mesh: its edges, its parts, and the charts of its texture coordinates."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int64

from geometry.kernels.measure import count_components, edge_keys, walk_edges
from pipeline.weld import weld
from schemas.mesh import TexturedMesh, UvMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How the faces of a mesh hang together once vertices at one place are one."""

    parts: int
    boundary_edges: int
    nonmanifold_edges: int
    chart: Int64[np.ndarray, " f"]
    """Lowest face of the chart that a face belongs to."""


def topology(mesh: TexturedMesh | UvMesh) -> Topology:
    """Parts share a point, charts an edge with the same texture coordinates on both sides. Edges between two corners at
    one place are none."""
    welded = weld(mesh.vertices, mesh.faces)[1]
    points = int(welded.max(initial=-1)) + 1
    keys = edge_keys(welded, points)
    boundary, nonmanifold, chart = walk_edges(keys, np.argsort(keys, kind="stable"), welded, mesh.faces, mesh.uv)
    return Topology(
        parts=int(count_components(welded, points)),
        boundary_edges=int(boundary),
        nonmanifold_edges=int(nonmanifold),
        chart=chart,
    )
