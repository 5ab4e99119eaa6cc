"""What an asset measures, and whether it is worth learning from. The verdict needs the measurements alone, so that it
can be passed again on a ledger under other thresholds."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from geometry.raster import Fragments
from geometry.raster_cpu import CpuRasterizer
from geometry.texture import encode_srgb8, surface_color
from pipeline.formats.parts import face_vectors
from pipeline.preflight import AssetFacts
from pipeline.weld import weld
from schemas.ledger import Measurements, Reason, Rejected
from schemas.mesh import TexturedMesh

NUM_COLOR_SAMPLES = 1 << 16
"""Points on the surface at which colour is looked up."""
MIN_COLOR_SHARE = 1e-3
"""A colour counts from this share of the area on."""
DEGENERATE_AREA = 1e-12
"""Area of a face, over the squared bounding-box diagonal, below which it is degenerate (float32 noise is 1e-14)."""
UV_TOLERANCE = 1e-3
"""Texture coordinates may leave [0, 1] this far: one texel of a 1024 map; they are clipped."""
OVERLAP_RESOLUTION = 1024
"""Texels a side at which overlap is counted, where the faces together fill the unit square no more than..."""
OVERLAP_LAYERS = 4.0
"""...this many times; beyond, the map is coarser in proportion, so that the work stays bounded."""
DEGENERATE_TEXELS = 0.01
"""Area of a face in texels of that map below which it has no place of its own in the layout."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """Thresholds of the verdict; all ours."""

    min_faces: int = 12
    """Triangles; a box has 12."""
    max_faces: int = 500_000
    """Triangles."""
    max_degenerate_share: float = 0.25
    """Share of faces without area."""
    min_flatness: float = 0.01
    """Smallest over largest side of the bounding box."""
    max_transparent_share: float = 0.5
    """Share of the surface that is looked through."""
    min_distinct_colors: int = 2
    """Colours on at least 0.1 % of the surface each."""
    min_color_std: float = 0.01
    """Standard deviation of surface colour, sRGB 0..1; catches one colour with compression noise."""


def measure(mesh: TexturedMesh, facts: AssetFacts | None = None) -> Measurements:
    """Everything that the verdict needs. Colours are those of the source, sampled evenly over its area; transparency is
    what rendering looks through (masked below the cutoff, blended below one half)."""
    corners = mesh.vertices.astype(np.float64)[mesh.faces]
    sides = np.ptp(corners.reshape(-1, 3), axis=0)
    areas = np.linalg.norm(face_vectors(mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64)), axis=1) / 2
    rgb, transparent_share = _surface_samples(mesh, areas)
    in_unit, uv_areas = _layout(mesh)
    clean = bool(mesh.face_has_uv.all() and in_unit.all())
    return Measurements(
        bytes=facts.bytes if facts else None,
        faces=len(mesh.faces),
        vertices=len(mesh.vertices),
        parts=_num_parts(mesh),
        materials=len(mesh.materials),
        textures=len(mesh.textures),
        texture_side_max=max((max(texture.image.shape[:2]) for texture in mesh.textures), default=0),
        degenerate_share=float((areas <= DEGENERATE_AREA * (sides @ sides)).mean()),
        flatness=float(sides.min() / sides.max()) if sides.max() > 0 else 0.0,
        transparent_share=transparent_share,
        distinct_colors=_num_colors(rgb),
        color_std=float(rgb.std(axis=0, dtype=np.float64).mean()) if len(rgb) else 0.0,
        uv_faces_share=float(mesh.face_has_uv.mean()),
        uv_outside_share=float((mesh.face_has_uv & ~in_unit).mean()),
        uv_overlap_share=_overlap_share(mesh, float(uv_areas.sum())) if clean else None,
        uv_degenerate_share=_area_share(uv_areas < DEGENERATE_TEXELS / OVERLAP_RESOLUTION**2, areas) if clean else None,
    )


def judge(measurements: Measurements, cfg: JudgeConfig) -> Rejected | None:
    """The first rule that fires, or None for an asset that may be used."""
    return next(_faults(measurements, cfg), None)


def _faults(m: Measurements, cfg: JudgeConfig) -> Iterator[Rejected]:
    """Rules in order; a measurement that was not taken fires none."""
    if m.faces is not None and m.faces == 0:
        yield Rejected(reason=Reason.NO_GEOMETRY, detail="0 faces")
    if m.faces is not None and m.faces > cfg.max_faces:
        yield Rejected(reason=Reason.TOO_MANY_FACES, detail=f"{m.faces:,} faces, at most {cfg.max_faces:,}")
    if m.degenerate_share is not None and m.degenerate_share > cfg.max_degenerate_share:
        detail = f"{m.degenerate_share:.1%} of faces have no area, at most {cfg.max_degenerate_share:.1%}"
        yield Rejected(reason=Reason.DEGENERATE, detail=detail)
    if m.flatness is not None and m.flatness < cfg.min_flatness:
        detail = f"smallest over largest side {m.flatness:.4f}, at least {cfg.min_flatness}"
        yield Rejected(reason=Reason.FLAT, detail=detail)
    if m.faces is not None and m.faces < cfg.min_faces:
        yield Rejected(reason=Reason.TOO_FEW_FACES, detail=f"{m.faces} faces, at least {cfg.min_faces}")
    if m.transparent_share is not None and m.transparent_share > cfg.max_transparent_share:
        detail = f"{m.transparent_share:.1%} of the surface is transparent, at most {cfg.max_transparent_share:.1%}"
        yield Rejected(reason=Reason.TRANSPARENT, detail=detail)
    if m.distinct_colors is not None and m.distinct_colors < cfg.min_distinct_colors:
        detail = f"{m.distinct_colors} colour on the whole surface, at least {cfg.min_distinct_colors}"
        yield Rejected(reason=Reason.UNTEXTURED, detail=detail)
    if m.color_std is not None and m.color_std < cfg.min_color_std:
        detail = f"standard deviation of colour {m.color_std:.4f}, at least {cfg.min_color_std}"
        yield Rejected(reason=Reason.UNTEXTURED, detail=detail)


def _surface_samples(mesh: TexturedMesh, areas: Float64[np.ndarray, " f"]) -> tuple[Float32[np.ndarray, "n 3"], float]:
    """sRGB (0..1) of the opaque ones among points spread evenly over the surface, and the share that is not opaque."""
    total = np.cumsum(areas)
    if not len(total) or not total[-1] > 0:
        return np.zeros((0, 3), np.float32), 0.0
    # Evenly spaced in cumulated area, so that every face of 1/n of the area or more is met; random only within a face.
    marks = (np.arange(NUM_COLOR_SAMPLES) + 0.5) / NUM_COLOR_SAMPLES * total[-1]
    face = np.minimum(np.searchsorted(total, marks), len(areas) - 1).astype(np.int32)
    bary = np.random.default_rng(0).random((NUM_COLOR_SAMPLES, 2)).astype(np.float32)
    bary = np.where(bary.sum(axis=1, keepdims=True) > 1, 1 - bary, bary)
    points = Fragments(face=face[None, None], bary=bary[None, None], depth=np.zeros((1, 1, len(face)), np.float32))
    color = surface_color(mesh, points)[0, 0]
    opaque = color[:, 3] > 0
    return encode_srgb8(color[opaque, :3]).astype(np.float32) / 255, float(1 - opaque.mean())


def _num_colors(rgb: Float32[np.ndarray, "n 3"]) -> int:
    """Distinct colours at 5 bits a channel that cover a visible share."""
    levels = np.minimum((rgb * 32).astype(np.int64), 31)
    counts = np.bincount(levels @ np.array([1024, 32, 1]), minlength=1)
    return int((counts >= max(1.0, MIN_COLOR_SHARE * len(rgb))).sum())


def _num_parts(mesh: TexturedMesh) -> int:
    """Connected components once vertices at the same place are one."""
    faces = weld(mesh.vertices, mesh.faces)[1]
    size = int(faces.max(initial=-1)) + 1
    pairs = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]]])
    graph = coo_matrix((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(size, size))
    return int(connected_components(graph, directed=False)[0])


def _layout(mesh: TexturedMesh) -> tuple[np.ndarray, Float64[np.ndarray, " f"]]:
    """Per face: whether its texture coordinates lie in the unit square, and its area there."""
    uv = mesh.uv.astype(np.float64)[mesh.faces]
    in_unit = ((uv >= -UV_TOLERANCE) & (uv <= 1 + UV_TOLERANCE)).all(axis=(1, 2))
    first, second = uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0]
    return in_unit, np.abs(first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]) / 2


def _overlap_share(mesh: TexturedMesh, layers: float) -> float:
    """Share of covered texels that a second face covers, by the rasteriser's exact coverage (top-left rule: faces that
    share an edge share no texel)."""
    clip = np.zeros((1, len(mesh.uv), 4), np.float32)
    clip[0, :, :2] = 2 * mesh.uv - 1
    clip[0, :, 3] = 1
    side = max(32, int(OVERLAP_RESOLUTION * min(1.0, (OVERLAP_LAYERS / max(layers, 1e-6)) ** 0.5)))
    rasterizer = CpuRasterizer()
    front = rasterizer.rasterize(clip, mesh.faces, side, side)
    second = rasterizer.rasterize(clip, mesh.faces, side, side, behind=front)
    return float((second.face >= 0).sum() / max(1, (front.face >= 0).sum()))


def _area_share(chosen: np.ndarray, areas: Float64[np.ndarray, " f"]) -> float:
    return float(areas[chosen].sum() / areas.sum()) if areas.sum() > 0 else 0.0
