"""How a layout stretches the surface."""

import numpy as np
from jaxtyping import Float32, Int32

from geometry.kernels.stretch import face_stretch


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
