"""A layout by xatlas."""

import numpy as np
import xatlas
from jaxtyping import Float64, Int64

_SIDE = 100.0
"""Size at which xatlas sees a mesh. It hangs on very large coordinates, and its absolute tolerances (1e-4 and less) cut
a mesh of size 1 into needless charts (Spot the cow: 58, here 37)."""


def xatlas_layout(
    points: Float64[np.ndarray, "w 3"], faces: Int64[np.ndarray, "f 3"], resolution: int, padding: int
) -> dict[str, np.ndarray]:
    """`uv` [n, 2] in the unit square with the atlas' aspect kept, `faces` [f, 3] over it, `origin` [n] the point of
    each, `charts` [] their number. Points lie in a box of side 1. Holds the GIL and may hang: call it in a
    child process."""
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = resolution, padding, True
    atlas = xatlas.Atlas()
    atlas.add_mesh((points * _SIDE).astype(np.float32), faces.astype(np.uint32))
    atlas.generate(chart_options=chart, pack_options=pack)
    origin, corners, uv = atlas[0]
    sides = np.array([atlas.width, atlas.height], np.float64)
    return {
        "uv": (uv * (sides / max(sides.max(), 1.0))).astype(np.float32),
        "faces": corners,
        "origin": origin,
        "charts": np.array(atlas.chart_count),
    }
