"""What a layout does to the surface: where it cuts, and how it stretches."""

import numpy as np
from jaxtyping import Float32, Int32, Int64

from geometry.kernels.stretch import face_stretch
from pipeline.formats.parts import face_vectors
from pipeline.unwrap.surface import make_surface
from pipeline.weld import weld
from schemas.mesh import UvMesh


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


def seam_length(uv_mesh: UvMesh) -> float:
    """Length of the edges at which a layout is cut, over the root of the surface's area."""
    points, faces = weld(uv_mesh.vertices, uv_mesh.faces)
    solid = np.linalg.norm(face_vectors(points.astype(np.float64), faces), axis=1) > 0
    surface = make_surface(points.astype(np.float64), faces[solid])
    rows = np.concatenate([uv_mesh.vertices, uv_mesh.uv], axis=1)
    place = np.unique(rows, axis=0, return_inverse=True)[1].reshape(-1)[uv_mesh.faces[solid]].reshape(-1)
    edge = np.flatnonzero(surface.mates.reshape(-1) > np.arange(surface.mates.size))
    mate = surface.mates.reshape(-1)[edge]
    whole = (place[edge] == place[_next(mate)]) & (place[_next(edge)] == place[mate])
    return float(surface.lengths.reshape(-1)[edge[~whole]].sum() / np.sqrt(surface.areas.sum()))


def _next(corner: Int64[np.ndarray, " e"]) -> Int64[np.ndarray, " e"]:
    """The following corner of the same face."""
    return corner // 3 * 3 + (corner + 1) % 3
