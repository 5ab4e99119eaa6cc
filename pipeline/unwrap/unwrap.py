"""One UV layout in the unit square: the authored one where it is good, else a new one within limits of time, memory and
quality."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xatlas
from jaxtyping import Bool, Float32, Float64, Int64

from geometry.mesh import face_vectors, weld
from pipeline.sandbox.child import run_limited
from pipeline.unwrap.atlas import grown_layout
from pipeline.unwrap.uv_metrics import DEGENERATE_AREA, coverage, layout_stretch
from schemas.errors import require_between
from schemas.ledger import Measurements, Reason, Rejected
from schemas.mesh import AUTHORED, GROWN, XATLAS, TexturedMesh, UvMesh

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


@dataclass(frozen=True, kw_only=True)
class UnwrapConfig:
    """Conditions on keeping an authored layout, and limits on cost and quality of a new one."""

    max_overlap_share: float = 0.01
    """Share of used texels that more than one face covers in a layout (ours)."""
    max_uv_degenerate_share: float = 0.01
    """Share of the surface without a place in an authored layout (ours)."""
    max_faces: int = 500_000
    """Triangles that get a new layout (ours: as many as an asset may have)."""
    max_xatlas_faces: int = 0
    """Triangles up to which xatlas makes the new layout instead of our own charts (ours: none, as our
    seams are shorter on most meshes; xatlas takes 26 s for 100k faces of one piece, more than 70 s for 200k)."""
    max_rescue_faces: int = 50_000
    """Triangles up to which xatlas is tried where our own charts fail or are poor (ours: what it lays out in a third of
    the time limit)."""
    timeout_s: float = 60.0
    """Wall clock for a new layout, seconds (ours: fifteen times what 200k faces take)."""
    memory_gb: float = 2.0
    """Memory for a new layout on top of what the asset's process maps, GiB (ours)."""
    padding: int = 2
    """Texels between charts (paper)."""
    min_fill: float = 0.2
    """Share of the map that a new layout must use (ours)."""
    max_stretch: float = 1.5
    """L2 stretch (Sander et al. 2001; 1: every length is kept) of a new layout (ours)."""
    max_charts: int = 20_000
    """Charts of a new layout (ours: at 1024 texels a side, 50 texels each, most of them gutter)."""

    def __post_init__(self) -> None:
        require_between("unwrap.timeout_s", self.timeout_s, 1e-3, 1e6)
        require_between("unwrap.memory_gb", self.memory_gb, 1e-3, 1e6)
        require_between("unwrap.padding", self.padding, 0, 64)


def unwrap(
    mesh: TexturedMesh, measurements: Measurements, cfg: UnwrapConfig, resolution: int = 1024
) -> UvMesh | Rejected:
    """The mesh with a layout in which every point of the surface has a texel of its own; or why it has none, in which
    case the asset still serves as multi-view data. Face i stays face i. New charts are packed for a map of `resolution`
    texels a side."""
    problem = authored_problem(measurements, cfg)
    if problem is None:
        return UvMesh(
            vertices=mesh.vertices,
            normals=mesh.normals,
            uv=np.clip(mesh.uv, 0.0, 1.0),
            faces=mesh.faces,
            layout=AUTHORED,
            single_sided=mesh.single_sided if mesh.single_sided.any() else None,
        )
    if len(mesh.faces) > cfg.max_faces:
        detail = (
            f"authored layout unusable ({problem}) and {len(mesh.faces):,} faces to unwrap, at most {cfg.max_faces:,}"
        )
        return Rejected(reason=Reason.UNWRAP_BUDGET, detail=detail)
    if len(mesh.faces) <= cfg.max_xatlas_faces:
        makers: tuple[str, ...] = (XATLAS, GROWN)
    else:
        makers = (GROWN, XATLAS) if len(mesh.faces) <= cfg.max_rescue_faces else (GROWN,)
    return new_layout(mesh, makers, cfg, resolution)


def authored_problem(measurements: Measurements, cfg: UnwrapConfig) -> str | None:
    """Describe why the layout that came with an asset cannot be kept; None where it can."""
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


def new_layout(mesh: TexturedMesh, makers: Sequence[str], cfg: UnwrapConfig, resolution: int) -> UvMesh | Rejected:
    """The first layout worth baking that one of the makers (`grown`, `xatlas`) comes to; authored coordinates do not
    count. No other is tried after one that took too long."""
    points, welded = weld(mesh.vertices, mesh.faces)
    box = _rescaled(points)
    areas = np.linalg.norm(face_vectors(box, welded), axis=1) / 2
    solid = areas > DEGENERATE_AREA
    if not solid.any():
        return Rejected(reason=Reason.UNWRAP_FAILED, detail=f"none of {len(welded):,} faces has any area")
    problems: list[Rejected] = []
    for maker in makers:
        found = _try_layout(maker, box, welded[solid], cfg, resolution)
        if not isinstance(found, Rejected):
            uv_mesh = _split(mesh, solid, found["uv"], found["faces"].astype(np.int64), maker)
            poor = _poor(uv_mesh, int(found["charts"]), cfg)
            if poor is None:
                return uv_mesh
            found = poor
        problems.append(found)
        if found.reason is Reason.UNWRAP_BUDGET:
            break
    details = "; ".join(f"{maker}: {problem.detail}" for maker, problem in zip(makers, problems, strict=False))
    return replace(problems[0], detail=details)


def _try_layout(
    maker: str, box: Float64[np.ndarray, "w 3"], faces: Int64[np.ndarray, "f 3"], cfg: UnwrapConfig, resolution: int
) -> dict[str, np.ndarray] | Rejected:
    """One maker's arrays, from a child process that is killed at the limit of time."""
    make = xatlas_layout if maker == XATLAS else grown_layout
    found = run_limited(
        lambda: make(box, faces, resolution, cfg.padding), timeout_s=cfg.timeout_s, memory_gb=cfg.memory_gb
    )
    if isinstance(found, Rejected):
        if found.reason is Reason.TIMEOUT:
            return Rejected(reason=Reason.UNWRAP_BUDGET, detail=f"unwrapping took more than {cfg.timeout_s:g} s")
        return Rejected(reason=Reason.UNWRAP_FAILED, detail=f"unwrapping ended with {found.reason}: {found.detail}")
    if problem := layout_fault(found, faces):
        return Rejected(reason=Reason.UNWRAP_FAILED, detail=problem)
    return found


def _poor(uv_mesh: UvMesh, charts: int, cfg: UnwrapConfig) -> Rejected | None:
    """Reject a new layout that is not worth baking."""
    covered = coverage(uv_mesh.uv, uv_mesh.faces, np.ones(len(uv_mesh.faces), bool))
    assert covered is not None  # only tiled layouts are beyond counting
    fill, shared = covered.fill, covered.overlap_share
    stretch = layout_stretch(uv_mesh.vertices, uv_mesh.faces, uv_mesh.uv)
    detail = None
    if charts > cfg.max_charts:
        detail = f"{charts:,} charts, at most {cfg.max_charts:,}"
    elif shared > cfg.max_overlap_share:
        detail = f"{shared:.1%} of texels are used twice, at most {cfg.max_overlap_share:.1%}"
    elif fill < cfg.min_fill:
        detail = f"{fill:.1%} of the map are used, at least {cfg.min_fill:.1%}"
    elif stretch is None or stretch > cfg.max_stretch:
        detail = f"stretch {stretch or 0:.2f}, at most {cfg.max_stretch:g}"
    return None if detail is None else Rejected(reason=Reason.UNWRAP_POOR, detail=f"the layout is poor: {detail}")


def layout_fault(found: dict[str, np.ndarray], faces: Int64[np.ndarray, "f 3"]) -> str | None:
    """Describe what is wrong with a layout of `faces`, which the makers of layouts do not report themselves."""
    uv, corners = found["uv"], found["faces"]
    if int(found["charts"]) < 1:
        return "no charts were made, or too many to pack"
    if corners.shape != faces.shape or not np.array_equal(found["origin"][corners], faces):
        return f"{len(corners):,} other faces came back for {len(faces):,}"
    if not np.isfinite(uv).all():
        return f"{int((~np.isfinite(uv)).any(axis=1).sum()):,} coordinates are not finite"
    if uv.min() < 0 or uv.max() > 1:
        return f"coordinates lie in [{uv.min():.4f}, {uv.max():.4f}]"
    return None


def _split(
    mesh: TexturedMesh,
    solid: Bool[np.ndarray, " f"],
    uv: Float32[np.ndarray, "n 2"],
    corners: Int64[np.ndarray, "s 3"],
    layout: str,
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
        layout=layout,
        single_sided=mesh.single_sided if mesh.single_sided.any() else None,
    )


def _rescaled(points: Float32[np.ndarray, "w 3"]) -> Float64[np.ndarray, "w 3"]:
    """Into a box of side 1, with its corner at the origin."""
    wide = points.astype(np.float64)
    low, high = wide.min(axis=0, initial=np.inf), wide.max(axis=0, initial=-np.inf)
    side = float((high - low).max())
    return (wide - low) / (side if side > 0 else 1.0)
