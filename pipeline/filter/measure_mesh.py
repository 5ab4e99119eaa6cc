"""Measure a mesh for the filter before anything is rendered."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from geometry.kernels.measure import count_components, edge_keys, walk_edges
from geometry.kernels.samples import box_around
from geometry.mesh import face_vectors, weld
from geometry.texture import PackedSurface
from pipeline.filter.baked_light import baked_light
from pipeline.filter.signature import signature
from pipeline.filter.surface_samples import SurfaceSamples, count_by_color, sample_surface
from pipeline.mesh_io.preflight import AssetFacts
from pipeline.unwrap.uv_metrics import (
    DEGENERATE_AREA,
    DEGENERATE_TEXELS,
    OVERLAP_RESOLUTION,
    coverage,
    density_spread,
    inside_unit,
    signed_areas,
    uv_score,
)
from schemas.ledger import Measurements
from schemas.mesh import TexturedMesh, UvMesh


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Connectivity of a mesh's faces once vertices at one place are merged."""

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


def measure(mesh: TexturedMesh, facts: AssetFacts | None = None, surface: PackedSurface | None = None) -> Measurements:
    """Measure an asset as loaded, in its own frame and units. `surface`: the mesh, packed already."""
    shape = topology(mesh)
    wide = mesh.vertices.astype(np.float64)
    low, high = np.empty((2, 3))
    box_around(mesh.vertices, mesh.faces, low, high)
    sides = high - low
    areas = np.linalg.norm(face_vectors(wide, mesh.faces.astype(np.int64)), axis=1) / 2
    samples = sample_surface(mesh, areas, surface)
    return Measurements(
        bytes=facts.bytes if facts else None,
        faces=len(mesh.faces),
        vertices=len(mesh.vertices),
        parts=shape.parts,
        size_x=float(sides[0]),
        size_y=float(sides[1]),
        size_z=float(sides[2]),
        flatness=float(sides.min() / sides.max()) if sides.max() > 0 else 0.0,
        boundary_edges=shape.boundary_edges,
        nonmanifold_edges=shape.nonmanifold_edges,
        degenerate_share=float((areas <= DEGENERATE_AREA * (sides @ sides)).mean()),
        **_appearance(mesh, areas, samples, shape.chart),
        **_authored_layout(mesh, areas, shape.chart),
    )


def _appearance(
    mesh: TexturedMesh, areas: Float64[np.ndarray, " f"], samples: SurfaceSamples, chart: Int64[np.ndarray, " f"]
) -> dict[str, Any]:
    """The measurements of colour, by name."""
    colors = count_by_color(samples.srgb)
    base = {m.texture for m in mesh.materials if m.texture is not None}
    sides = [side for index in base for side in mesh.textures[index].image.shape[:2]]
    wears_texture = np.array([m.texture is not None for m in mesh.materials], bool)[mesh.face_material]
    return {
        "materials": len(mesh.materials),
        "textures": len(mesh.textures),
        "texture_side_min": min(sides, default=None),
        "texture_side_max": max(sides, default=0),
        "textured_share": area_share(wears_texture & mesh.face_has_uv, areas),
        "transparent_share": float(1 - samples.opaque.mean()) if len(samples.opaque) else 0.0,
        "distinct_colors": colors.count(),
        "color_std": colors.std,
        "flat_share": float(colors.shares.max(initial=0.0)),
        "grey_share": colors.grey_share,
        "texture_entropy": colors.entropy,
        "baked_light": baked_light(mesh, samples, chart),
        "signature": signature(mesh, samples, float(areas.sum())),
    }


def _authored_layout(
    mesh: TexturedMesh, areas: Float64[np.ndarray, " f"], chart: Int64[np.ndarray, " f"]
) -> dict[str, Any]:
    """The measurements of the texture coordinates, by name."""
    has_uv = mesh.face_has_uv
    in_unit = inside_unit(mesh.uv, mesh.faces)
    shares: dict[str, Any] = {
        "uv_faces_share": float(has_uv.mean()),
        "uv_outside_share": float((has_uv & ~in_unit).mean()),
    }
    if not has_uv.any():
        return shares
    flat, solid = signed_areas(mesh.uv, mesh.faces)[has_uv], areas[has_uv]
    covered = coverage(mesh.uv, mesh.faces, has_uv)
    return shares | {
        "uv_fill_authored": covered.fill if covered else None,
        "uv_overlap_share": covered.overlap_share if covered else None,
        "uv_mirrored_share": covered.mirrored_share if covered else None,
        "uv_flipped_share": area_share(flat < 0, solid),
        "uv_degenerate_share": area_share(np.abs(flat) < DEGENERATE_TEXELS / OVERLAP_RESOLUTION**2, solid),
        "uv_charts": len(np.unique(chart[has_uv])),
        "uv_density_spread": density_spread(flat, solid)[1],
        "uv_score": uv_score(chart[has_uv], flat, solid),
    }


def area_share(chosen: Bool[np.ndarray, " f"], areas: Float64[np.ndarray, " f"]) -> float:
    """Share of the area on the chosen faces."""
    return float(areas[chosen].sum() / areas.sum()) if areas.sum() > 0 else 0.0
