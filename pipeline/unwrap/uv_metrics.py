"""A UV layout: what it covers, how often, and how evenly."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from geometry.kernels.measure import count_bits, cover_layout
from pipeline.unwrap.kernels.stretch import face_stretch

UV_TOLERANCE = 1e-3
"""Texture coordinates may leave [0, 1] this far: one texel of a 1024 map; they are clipped."""
OVERLAP_RESOLUTION = 1024
"""Texels a side at which coverage is counted, where the boxes around the faces fill the unit square no more than..."""
OVERLAP_LAYERS = 8.0
"""...this many times; beyond, the map is coarser in proportion, so that the work stays bounded..."""
MIN_RESOLUTION = 32
"""...down to this side; layouts of still more layers are not counted."""
DEGENERATE_TEXELS = 0.01
"""Area of a face in texels of that map below which it has no place of its own in the layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """Texels of the unit square, coordinates wrapped into it."""

    fill: float
    overlap_share: float
    mirrored_share: float


def signed_areas(uv: Float32[np.ndarray, "v 2"], faces: Int32[np.ndarray, "f 3"]) -> Float64[np.ndarray, " f"]:
    """Areas of faces in the layout; negative where they run clockwise."""
    corners = uv.astype(np.float64)[faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2


def inside_unit(uv: Float32[np.ndarray, "v 2"], faces: Int32[np.ndarray, "f 3"]) -> Bool[np.ndarray, " f"]:
    """Return whether all corners lie in the unit square, give or take the tolerance."""
    good = (np.abs(uv - np.float32(0.5)) <= 0.5 + UV_TOLERANCE)[faces]
    return good.all(axis=(1, 2))


def coverage(
    uv: Float32[np.ndarray, "v 2"], faces: Int32[np.ndarray, "f 3"], chosen: Bool[np.ndarray, " f"]
) -> Coverage | None:
    """Return the share that the chosen faces cover, by the exact coverage of a rasteriser: faces that share an edge
    share no texel. None where the layout is tiled so often that counting would take long."""
    wide, used = uv.astype(np.float64), faces[chosen]
    a, b, c = wide[used[:, 0]], wide[used[:, 1]], wide[used[:, 2]]
    extents = np.maximum(np.maximum(a, b), c) - np.minimum(np.minimum(a, b), c)
    layers = float(extents.prod(axis=1).sum())
    side = int(OVERLAP_RESOLUTION * min(1.0, (OVERLAP_LAYERS / max(layers, 1e-6)) ** 0.5))
    widest = float(extents.max(initial=0.0))
    if side < MIN_RESOLUTION or widest > OVERLAP_RESOLUTION:
        return None
    covered, again, mirrored = count_bits(cover_layout(wide, faces, chosen, side))
    return Coverage(
        fill=covered / side**2, overlap_share=again / max(1, covered), mirrored_share=mirrored / max(1, again)
    )


def density_spread(
    uv_areas: Float64[np.ndarray, " f"], areas: Float64[np.ndarray, " f"]
) -> tuple[float | None, float | None]:
    """Median over the surface of the length in the layout that a unit of length on the surface gets, and the 95th over
    the 5th percentile of it; None where that much of the surface has no place."""
    solid = areas > 0
    if not solid.any():
        return None, None
    density = np.sqrt(np.abs(uv_areas[solid]) / areas[solid])
    order = np.argsort(density, kind="stable")
    share = np.cumsum(areas[solid][order])
    low, median, high = density[order][np.searchsorted(share, np.array([0.05, 0.5, 0.95]) * share[-1])]
    return (float(median) if median > 0 else None), (float(high / low) if low > 0 else None)


def uv_score(
    chart: Int64[np.ndarray, " f"], uv_areas: Float64[np.ndarray, " f"], areas: Float64[np.ndarray, " f"]
) -> float:
    """1 - 0.5 * L1(share of the surface, share of the layout) over charts (Texture-Anything)."""
    flat = np.abs(uv_areas)
    if not (areas.sum() > 0 and flat.sum() > 0):
        return 0.0
    surface = np.bincount(chart, areas) / areas.sum()
    layout = np.bincount(chart, flat) / flat.sum()
    return float(1 - 0.5 * np.abs(surface - layout).sum())


def layout_stretch(
    vertices: Float32[np.ndarray, "n 3"], faces: Int32[np.ndarray, "f 3"], uv: Float32[np.ndarray, "n 2"]
) -> float | None:
    """L2 stretch of a layout (Sander et al. 2001), scaled so that 1 keeps every length; over the 99.9 % of the surface
    that is stretched least, as one needle without area in the layout would make it infinite. None without area,
    or where more than that has none in the layout."""
    corners = vertices.astype(np.float64)[faces]
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    base = np.linalg.norm(first, axis=1)
    doubled = np.linalg.norm(np.cross(first, second), axis=1)
    solid = (doubled > 0) & (base > 0)
    base, doubled = base[solid], doubled[solid]
    rest = np.stack([base, (first[solid] * second[solid]).sum(axis=1) / base, doubled / base], axis=1)
    signed, largest, smallest = face_stretch(faces[solid].astype(np.int64), rest, uv.astype(np.float64))
    energy = (largest**2 + smallest**2) / 2
    order = np.argsort(energy, kind="stable")
    chosen = order[np.cumsum(doubled[order]) <= 0.999 * doubled.sum()]
    if not len(chosen):
        return None
    area, used = doubled[chosen].sum() / 2, np.abs(signed[chosen]).sum()
    stretch = float(np.sqrt((energy[chosen] * doubled[chosen]).sum() / 2 / area * used / area))
    return stretch if np.isfinite(stretch) else None


DEGENERATE_AREA = 1e-12
"""Area of a face, over the squared bounding-box diagonal, below which it is degenerate (float32 noise is 1e-14)."""
