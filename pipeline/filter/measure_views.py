"""Measurements taken after rendering: on the views and on the UV map."""

from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from geometry.kernels.measure import count_sheet_pixels, sum_gradients
from geometry.mesh import corner_vectors, mean_angle_deg
from pipeline.filter.measure_mesh import topology
from pipeline.unwrap.uv_metrics import density_spread, layout_stretch, signed_areas
from schemas.ledger import Measurements
from schemas.mesh import TexturedMesh, UvMesh
from schemas.sample import Cameras, UvMaps, Views

OPPOSITE = -0.9
"""Cosine between viewing directions of opposite views, at most: two cameras 10 degrees above the horizon have -0.94."""
SHEET_THICKNESS = 0.005
"""Dataset units (a 400th of the largest side) within which two views see one surface, measured along its normal..."""
SHEET_REACH = 0.05
"""...and across: a few pixels, as the views see it at different ones."""
STRIDE = 2
"""Every second pixel of every second row is compared."""
ENTROPY_WEIGHT = 35.0
"""Weight of a bit of entropy against a unit of edge magnitude (MV-Painter)."""


def measure_views(measurements: Measurements, views: Views, cameras: Cameras) -> Measurements:
    """With the measurements of the views filled in."""
    shares = views.mask.mean(axis=(1, 2))
    pairs = opposite_pairs(cameras)
    edges = edge_score(views)
    entropy = measurements.texture_entropy
    return replace(
        measurements,
        visible_share_min=float(shares.min()),
        visible_share_opposite=max((float(min(shares[a], shares[b])) for a, b in pairs), default=None),
        single_surface_share=single_surface_share(views, cameras, pairs),
        edge_score=edges,
        texture_score=None if entropy is None or edges is None else ENTROPY_WEIGHT * entropy + edges,
    )


def measure_map(measurements: Measurements, uv_mesh: UvMesh, maps: UvMaps) -> Measurements:
    """With the measurements of the final layout filled in; `uv_mesh` in the dataset frame."""
    corners = uv_mesh.vertices.astype(np.float64)[uv_mesh.faces]
    areas = np.linalg.norm(corner_vectors(corners), axis=1) / 2
    uv_areas = signed_areas(uv_mesh.uv, uv_mesh.faces)
    median, spread = density_spread(uv_areas, areas)
    return replace(
        measurements,
        layout=uv_mesh.layout,
        uv_fill=float(maps.mask.mean()),
        layout_charts=len(np.unique(topology(uv_mesh).chart[uv_areas != 0])),
        layout_stretch=layout_stretch(uv_mesh.vertices, uv_mesh.faces, uv_mesh.uv),
        layout_density=None if median is None else median * len(maps.mask),
        layout_density_spread=spread,
    )


def measure_materials(measurements: Measurements, mesh: TexturedMesh, views: Views) -> Measurements:
    """With the measurements of materials in views filled in; as they are where no view shows any."""
    layers, seen = mesh.layers, views.materials
    if layers is None or seen is None or not views.mask.any():
        return measurements
    varied = np.array([varies(mesh, texture) for texture in layers.metallic_roughness.textures], bool)
    areas = np.linalg.norm(corner_vectors(mesh.vertices[mesh.faces].astype(np.float64)), axis=1)
    metallic, roughness = (seen.metallic_roughness[..., channel][views.mask] / 255.0 for channel in range(2))
    emits = layers.emissive.factors.any()
    return replace(
        measurements,
        varied_materials=int(varied.sum()),
        constant_material_share=float(areas[~varied[mesh.face_material]].sum() / areas.sum()),
        metallic_mean=float(metallic.mean()),
        roughness_mean=float(roughness.mean()),
        roughness_std=float(roughness.std()),
        normal_strength_deg=0.0
        if seen.normal_detail is views.normal
        else mean_angle_deg(seen.normal_detail[views.mask], views.normal[views.mask]),
        emissive_share=float(seen.emissive[views.mask].any(axis=1).mean()) if emits else 0.0,
    )


def varies(mesh: TexturedMesh, texture: int | None) -> bool:
    """Return whether a metallic-roughness texture holds more than one value."""
    if texture is None:
        return False
    values = mesh.textures[texture].image[..., 1:3]
    return bool((values != values[0, 0]).any())


def edge_score(views: Views) -> float | None:
    """Mean Sobel magnitude of 8-bit grey over the pixels whose neighbours are covered, too; None where there are
    none."""
    sums = [sum_gradients(rgb, mask) for rgb, mask in zip(views.rgb, views.mask, strict=True)]
    count = sum(pixels for _, pixels in sums)
    return float(sum(total for total, _ in sums) / count) if count else None


def opposite_pairs(cameras: Cameras) -> list[tuple[int, int]]:
    """Views that look at each other's back: every view with the one most opposite to it, each pair once."""
    axes = cameras.world_to_cam[:, 2, :3].astype(np.float64)
    cosines = axes @ axes.T
    partner = cosines.argmin(axis=1)
    found = {(min(i, int(j)), max(i, int(j))) for i, j in enumerate(partner) if cosines[i, j] <= OPPOSITE}
    return sorted(found)


def single_surface_share(views: Views, cameras: Cameras, pairs: list[tuple[int, int]]) -> float | None:
    """Share of the pixels of opposite views whose place the other view sees, too, and from the surface's other side.
    What lies between the two sides of a closed shape keeps them apart; a sheet has nothing between."""
    same, total = 0, 0
    to_clip = cameras.world_to_clip.astype(np.float64)
    for here, there in pairs + [(b, a) for a, b in pairs]:
        found, looked_at = count_sheet_pixels(
            views.position[here], views.normal[here], views.mask[here], views.position[there], views.mask[there],
            eye(cameras, here), eye(cameras, there), to_clip[there], STRIDE, SHEET_THICKNESS, SHEET_REACH,
        )  # fmt: skip
        same, total = same + found, total + looked_at
    return same / total if total else None


def eye(cameras: Cameras, view: int) -> Float64[np.ndarray, "4"]:
    """Return what rays go to: a camera's place, followed by 1, or the direction that all of them have, and 0."""
    pose = cameras.world_to_cam[view].astype(np.float64)
    if cameras.projection[view, 3, 3] == 1:  # orthographic: all rays are parallel
        return np.append(pose[2, :3], 0.0)
    return np.append(-pose[:3, :3].T @ pose[:3, 3], 1.0)
