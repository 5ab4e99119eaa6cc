"""Is light baked into the colours? A suspicion by regression; too weak a proof to reject an asset for."""

import numpy as np
from jaxtyping import Float32, Float64, Int32, Int64

from geometry.kernels.samples import box_around, weighted_corners
from geometry.raster_cpu import CpuRasterizer
from pipeline.filter.surface_samples import SurfaceSamples
from schemas.mesh import TexturedMesh

EVERY = 4
"""One in so many surface samples is looked at."""
NUM_DIRECTIONS = 12
"""Directions from which a place may see the sky."""
DEPTH_RESOLUTION = 128
"""Side of the depth maps that tell whether it does."""
DEPTH_BIAS = 2.5
"""Tolerance of that test, pixels of the map."""
CHROMA_LEVELS = 24
"""Steps of red and green in their share of r + g + b: those of one chart and chromaticity are compared."""
MIN_GROUP = 64
"""Samples below which a chromaticity says nothing."""
DARKEST = 0.002
"""Linear luminance below which 8-bit chromaticity is noise."""
MIN_CONTRAST = 0.05
"""Standard deviation of log luminance below which there is nothing to explain."""
LUMINANCE = np.array([0.2126, 0.7152, 0.0722])
"""Weights of linear RGB in luminance (Rec. 709)."""


def baked_light(mesh: TexturedMesh, samples: SurfaceSamples, chart: Int64[np.ndarray, " f"]) -> float:
    """Share of the variance of log luminance, among places of one UV chart and chromaticity, that is linear in the
    normal (light from some direction) and the openness of the place (ambient occlusion): R^2 of that regression, 0..1.
    Paint does not know where a surface faces; light does. Blind where every chart is a plane. Over the shared assets:
    0 to 0.2 as they are but for three, 0.3 to 0.9 for two out of three when light is multiplied into their colours."""
    chosen = np.flatnonzero(samples.opaque)[::EVERY]
    linear = samples.linear[chosen].astype(np.float64)
    bright = linear @ LUMINANCE > DARKEST
    chosen, linear = chosen[bright], linear[bright]
    group = group_of(chart[samples.face[chosen]], linear)
    usable = np.bincount(group, minlength=1)[group] >= MIN_GROUP
    if not usable.any():
        return 0.0
    chosen, linear, group = chosen[usable], linear[usable], group[usable]
    points, normals = places(mesh, samples.face[chosen], samples.bary[chosen])
    y = within(np.log(linear @ LUMINANCE)[:, None], group)
    if not y.std() > MIN_CONTRAST:
        return 0.0
    x = within(np.column_stack([normals, openness(mesh, points, normals)]), group)
    rest = y - x @ np.linalg.lstsq(x, y, rcond=1e-6)[0]
    return float(np.clip(1 - (rest**2).sum() / (y**2).sum(), 0.0, 1.0))


def group_of(chart: Int64[np.ndarray, " n"], linear: Float64[np.ndarray, "n 3"]) -> Int64[np.ndarray, " n"]:
    """Number of the chart and the cell of chromaticity that each sample lies in."""
    share = linear[:, :2] / linear.sum(axis=1, keepdims=True)
    cell = np.minimum((share * CHROMA_LEVELS).astype(np.int64), CHROMA_LEVELS - 1) @ np.array([CHROMA_LEVELS, 1])
    return np.unique(chart * CHROMA_LEVELS**2 + cell, return_inverse=True)[1].reshape(-1)


def within(values: Float64[np.ndarray, "n k"], group: np.ndarray) -> Float64[np.ndarray, "n k"]:
    """Values less the mean of their group."""
    counts = np.maximum(np.bincount(group), 1)
    means = np.stack([np.bincount(group, column) / counts for column in values.T], axis=1)
    return values - means[group]


def places(
    mesh: TexturedMesh, face: Int32[np.ndarray, " n"], bary: Float32[np.ndarray, "n 2"]
) -> tuple[Float64[np.ndarray, "n 3"], Float64[np.ndarray, "n 3"]]:
    """Position, in a box of side 1 around the mesh's middle, and unit normal of points on faces."""
    points, normals = np.empty((2, len(face), 3))
    weighted_corners(mesh.vertices, *box_of(mesh), mesh.faces, face, bary, points)
    weighted_corners(mesh.normals, np.zeros(3), 1.0, mesh.faces, face, bary, normals)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return points, normals / np.maximum(length, 1e-9)


def box_of(mesh: TexturedMesh) -> tuple[Float64[np.ndarray, "3"], float]:
    """Middle of the box around the faces and its largest side, which counts as 1 where it is nothing."""
    low, high = np.empty((2, 3))
    box_around(mesh.vertices, mesh.faces, low, high)
    side = float((high - low).max())
    return (low + high) / 2, side if side > 0 else 1.0


def openness(
    mesh: TexturedMesh, points: Float64[np.ndarray, "n 3"], normals: Float64[np.ndarray, "n 3"]
) -> Float64[np.ndarray, " n"]:
    """Cosine-weighted share of the sky that places see, by orthographic depth maps from all around (0..1)."""
    directions = sphere(NUM_DIRECTIONS)
    middle, side = box_of(mesh)
    vertices = (mesh.vertices.astype(np.float64) - middle) / side
    seen, total = np.zeros(len(points)), np.zeros(len(points))
    rasterizer, single_sided = CpuRasterizer(), mesh.single_sided
    faces = np.ascontiguousarray(mesh.faces[:, ::-1])  # y points up here, so that fronts would run the other way round
    for direction in directions:
        view = looking_along(direction)
        clip = np.ones((1, len(vertices), 4), np.float32)
        clip[0, :, :3] = vertices @ view.T
        layer = rasterizer.rasterize(clip, faces, DEPTH_RESOLUTION, DEPTH_RESOLUTION, single_sided=single_sided)
        depth = layer.depth[0]
        here = points @ view.T
        column, row = np.clip(((here[:, :2] + 1) / 2 * DEPTH_RESOLUTION).astype(np.int64), 0, DEPTH_RESOLUTION - 1).T
        free = here[:, 2] <= depth[row, column] + DEPTH_BIAS * 2 / DEPTH_RESOLUTION
        cosine = np.maximum(normals @ direction, 0.0)
        seen += cosine * free
        total += cosine
    return seen / np.maximum(total, 1e-9)


def sphere(count: int) -> Float64[np.ndarray, "count 3"]:
    """Directions spread over the sphere (Fibonacci lattice)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.arange(count) * np.pi * (3 - 5**0.5)
    radius = np.sqrt(1 - z * z)
    return np.stack([radius * np.cos(turn), radius * np.sin(turn), z], axis=1)


def looking_along(direction: Float64[np.ndarray, "3"]) -> Float64[np.ndarray, "3 3"]:
    """Rotation whose third row points away from the sky in `direction`: what is nearer to it has less depth."""
    helper = np.eye(3)[np.abs(direction).argmin()]
    right = np.cross(helper, direction)
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(direction, right), -direction])
