"""One UV layout in the unit square: the authored one where it is good, else a new one by xatlas, within a budget."""

from dataclasses import dataclass

import numpy as np
import xatlas
from jaxtyping import Bool, Float32, Int64

from pipeline.formats.parts import face_vectors
from pipeline.measure import DEGENERATE_AREA
from pipeline.sandbox import run_limited
from pipeline.weld import weld
from schemas.ledger import Measurements, Reason, Rejected
from schemas.mesh import TexturedMesh, UvMesh

_SIDE = 100.0
"""Size at which xatlas sees a mesh. It hangs on very large coordinates, and its absolute tolerances (1e-4 and less) cut
a mesh of size 1 into needless charts (Spot the cow: 58, here 37)."""


@dataclass(frozen=True, kw_only=True)
class UnwrapConfig:
    """When an authored layout is kept, and what a new one may cost."""

    max_overlap_share: float = 0.01
    """Share of used texels that more than one face covers in an authored layout (ours)."""
    max_uv_degenerate_share: float = 0.01
    """Share of the surface without a place in an authored layout (ours)."""
    max_faces: int = 40_000
    """Triangles that are given to xatlas (the budget of Hunyuan3D); 10k take 0.6 s, 50k 11 s."""
    timeout_s: float = 60.0
    """Wall clock for xatlas, seconds (ours)."""
    padding: int = 2
    """Texels between charts (paper)."""


def unwrap(
    mesh: TexturedMesh, measurements: Measurements, cfg: UnwrapConfig, resolution: int = 1024
) -> UvMesh | Rejected:
    """The mesh with a layout in which every point of the surface has a texel of its own; or why it has none, in which
    case the asset still serves as multi-view data. Face i stays face i. New charts are packed for a map of `resolution`
    texels a side."""
    fault = authored_fault(measurements, cfg)
    if fault is None:
        return UvMesh(
            vertices=mesh.vertices,
            normals=mesh.normals,
            uv=np.clip(mesh.uv, 0.0, 1.0),
            faces=mesh.faces,
            layout="authored",
        )
    if len(mesh.faces) > cfg.max_faces:
        detail = (
            f"authored layout unusable ({fault}) and {len(mesh.faces):,} faces to unwrap, at most {cfg.max_faces:,}"
        )
        return Rejected(reason=Reason.UNWRAP_BUDGET, detail=detail)
    return _xatlas_layout(mesh, cfg, resolution)


def authored_fault(measurements: Measurements, cfg: UnwrapConfig) -> str | None:
    """Why the layout that came with an asset cannot be kept; None where it can."""
    m = measurements
    if m.uv_faces_share is None or m.uv_faces_share < 1:
        return f"{m.uv_faces_share or 0:.1%} of faces have texture coordinates"
    if m.uv_outside_share is None or m.uv_outside_share > 0:
        return f"{m.uv_outside_share or 0:.1%} of faces lie outside the unit square"
    if m.uv_overlap_share is None or m.uv_overlap_share > cfg.max_overlap_share:
        return f"{m.uv_overlap_share or 0:.1%} of texels are used twice, at most {cfg.max_overlap_share:.1%}"
    if m.uv_degenerate_share is None or m.uv_degenerate_share > cfg.max_uv_degenerate_share:
        return (
            f"{m.uv_degenerate_share or 0:.1%} of the surface has no texels, at most {cfg.max_uv_degenerate_share:.1%}"
        )
    return None


def _xatlas_layout(mesh: TexturedMesh, cfg: UnwrapConfig, resolution: int) -> UvMesh | Rejected:
    points, welded = weld(mesh.vertices, mesh.faces)
    points = _rescaled(points)
    areas = np.linalg.norm(face_vectors(points.astype(np.float64), welded), axis=1) / 2
    solid = areas > DEGENERATE_AREA * _SIDE**2
    if not solid.any():
        return Rejected(reason=Reason.UNWRAP_FAILED, detail=f"none of {len(welded):,} faces has any area")
    found = run_limited(lambda: pack_charts(points, welded[solid], resolution, cfg.padding), timeout_s=cfg.timeout_s)
    if isinstance(found, Rejected):
        if found.reason is Reason.TIMEOUT:
            return Rejected(reason=Reason.UNWRAP_BUDGET, detail=f"unwrapping took more than {cfg.timeout_s:g} s")
        return Rejected(reason=Reason.UNWRAP_FAILED, detail=f"unwrapping ended with {found.reason}: {found.detail}")
    if fault := layout_fault(found, welded[solid]):
        return Rejected(reason=Reason.UNWRAP_FAILED, detail=fault)
    return _split(mesh, solid, found["uv"], found["faces"].astype(np.int64))


def pack_charts(
    points: Float32[np.ndarray, "w 3"], faces: Int64[np.ndarray, "f 3"], resolution: int, padding: int
) -> dict[str, np.ndarray]:
    """xatlas' layout: `uv` [n, 2] in the unit square with the atlas' aspect kept, `faces` [f, 3] over it, `origin` [n]
    the point of each, `charts` [] their number. Holds the GIL and may hang: call it in a child process."""
    chart, pack = xatlas.ChartOptions(), xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = resolution, padding, True
    atlas = xatlas.Atlas()
    atlas.add_mesh(points, faces.astype(np.uint32))
    atlas.generate(chart_options=chart, pack_options=pack)
    origin, corners, uv = atlas[0]
    sides = np.array([atlas.width, atlas.height], np.float64)
    return {
        "uv": (uv * (sides / max(sides.max(), 1.0))).astype(np.float32),
        "faces": corners,
        "origin": origin,
        "charts": np.array(atlas.chart_count),
    }


def layout_fault(found: dict[str, np.ndarray], faces: Int64[np.ndarray, "f 3"]) -> str | None:
    """What is wrong with a layout of `faces`, as xatlas reports no errors itself."""
    uv, corners = found["uv"], found["faces"]
    if int(found["charts"]) < 1:
        return "xatlas made no charts"
    if corners.shape != faces.shape or not np.array_equal(found["origin"][corners], faces):
        return f"xatlas returned {len(corners):,} other faces for {len(faces):,}"
    if not np.isfinite(uv).all():
        return f"xatlas returned {int((~np.isfinite(uv)).any(axis=1).sum()):,} coordinates that are not finite"
    if uv.min() < 0 or uv.max() > 1:
        return f"xatlas returned coordinates in [{uv.min():.4f}, {uv.max():.4f}]"
    return None


def _split(
    mesh: TexturedMesh, solid: Bool[np.ndarray, " f"], uv: Float32[np.ndarray, "n 2"], corners: Int64[np.ndarray, "s 3"]
) -> UvMesh:
    """Vertices of the mesh, one for each coordinate that they have. Faces without area get one at the origin, where
    they cover nothing."""
    slots = np.zeros(mesh.faces.shape, np.int64)
    slots[solid] = corners + 1
    pairs = mesh.faces.astype(np.int64) * (len(uv) + 1) + slots
    unique, faces = np.unique(pairs, return_inverse=True)
    vertex, slot = np.divmod(unique, len(uv) + 1)
    return UvMesh(
        vertices=mesh.vertices[vertex],
        normals=mesh.normals[vertex],
        uv=np.concatenate([np.zeros((1, 2), np.float32), uv])[slot],
        faces=faces.reshape(-1, 3).astype(np.int32),
        layout="xatlas",
    )


def _rescaled(points: Float32[np.ndarray, "w 3"]) -> Float32[np.ndarray, "w 3"]:
    """Into a box of side 100, with its corner at the origin."""
    wide = points.astype(np.float64)
    low, high = wide.min(axis=0, initial=np.inf), wide.max(axis=0, initial=-np.inf)
    side = float((high - low).max())
    return ((wide - low) * (_SIDE / side if side > 0 else 1.0)).astype(np.float32)
