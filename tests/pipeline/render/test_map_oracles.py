"""Every geometry map of ten real assets against independent references: views against Embree's robust ray caster, UV
maps against a brute-force point-in-triangle search. At least 99.9 % of the pixels agree in mask, position and normal,
and each of the others is explained: an edge runs through the pixel centre, or two surfaces lie there in one place."""

import numpy as np
import pytest
from numba import njit

from geometry.cameras import project, seqtex4
from geometry.frames import bounding_box, normalise
from geometry.raster_cpu import CpuRasterizer
from pipeline.mesh_io.load import load_mesh
from pipeline.render.uv_maps import bake_geometry
from pipeline.render.views import render_geometry
from schemas.mesh import TexturedMesh, UvMesh
from schemas.sample import Cameras

pytestmark = pytest.mark.assets

AUTHORED = [
    "water_bottle_pbr.glb",
    "egyptian_cat_statue_webp.glb",
    "htc_vive_controller.glb",
    "exploding_barrel.glb",
    "cannon_palette_texture.glb",
    "lumberjack_skinned_pbr.glb",
    "fox_skinned.glb",
    "fuze_bottle_obj/fuze.obj",
    "magicleap2_controller_alpha.glb",
    "cloth_115k_textured.glb",
]
VIEW_SIDE, UV_SIDE = 256, 128
AGREEING_SHARE = 0.999
POSITION_BOUND = 1e-4
"""Largest error of a coordinate, in a cube of side 2: a twentieth of a pixel of the views."""
NORMAL_BOUND = 1e-3
"""Chord between unit normals."""
ON_EDGE_PIXELS = 1 / 64
"""Both sides snap or round corners: to 1/256 pixel ours, to float32 Embree."""
SAME_PLACE = 1e-4


def mesh_of(path) -> TexturedMesh:
    loaded = load_mesh(path)
    assert isinstance(loaded, TexturedMesh)
    return normalise(loaded)[0]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def agreement(mask, position, normal, true_mask, true_position, true_normal) -> np.ndarray:
    """Per pixel: covered by both or by neither, and the same there."""
    near = np.abs(position - true_position).max(axis=-1) <= POSITION_BOUND
    aligned = np.linalg.norm(normal - true_normal, axis=-1) <= NORMAL_BOUND
    return (mask == true_mask) & (~mask | (near & aligned))


@njit(cache=True)
def edge_distance(x: float, y: float, points: np.ndarray) -> float:
    """Return the distance of a point to the nearest side of a triangle [3, 2]."""
    nearest = np.inf
    for side in range(3):
        ax, ay = points[side, 0], points[side, 1]
        dx, dy = points[(side + 1) % 3, 0] - ax, points[(side + 1) % 3, 1] - ay
        length = dx * dx + dy * dy
        t = 0.0 if length == 0.0 else min(max(((x - ax) * dx + (y - ay) * dy) / length, 0.0), 1.0)
        nearest = min(nearest, np.hypot(x - ax - t * dx, y - ay - t * dy))
    return nearest


@njit(cache=True)
def nearest_edges(xy: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Distance of each point [n, 2] to the nearest side of any triangle [f, 3, 2] around it."""
    out = np.full(len(xy), np.inf)
    for f in range(len(corners)):
        low_x, high_x = corners[f, :, 0].min() - 1.0, corners[f, :, 0].max() + 1.0
        low_y, high_y = corners[f, :, 1].min() - 1.0, corners[f, :, 1].max() + 1.0
        for i in range(len(xy)):
            if low_x <= xy[i, 0] <= high_x and low_y <= xy[i, 1] <= high_y:
                out[i] = min(out[i], edge_distance(xy[i, 0], xy[i, 1], corners[f]))
    return out


@njit(cache=True)
def faces_at(xy: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """The lowest triangle [f, 3, 2] that holds each point [n, 2] (float64, borders count); -1 for none."""
    out = np.full(len(xy), -1)
    for i in range(len(xy)):
        x, y = xy[i, 0], xy[i, 1]
        for f in range(len(corners)):
            ax, ay = corners[f, 0, 0] - x, corners[f, 0, 1] - y
            bx, by = corners[f, 1, 0] - x, corners[f, 1, 1] - y
            cx, cy = corners[f, 2, 0] - x, corners[f, 2, 1] - y
            first, second, third = ax * by - ay * bx, bx * cy - by * cx, cx * ay - cy * ax
            inside = (first >= 0 and second >= 0 and third >= 0) or (first <= 0 and second <= 0 and third <= 0)
            if inside and first + second + third != 0.0:
                out[i] = f
                break
    return out


def weights_at(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Barycentric weights [n, 3] of points in their triangles [n, 3, k], least squares in k dimensions."""
    first, second, offset = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0], points - corners[:, 0]
    aa, ab, bb = (first * first).sum(-1), (first * second).sum(-1), (second * second).sum(-1)
    ra, rb = (offset * first).sum(-1), (offset * second).sum(-1)
    area = aa * bb - ab * ab
    area = np.where(area > 0, area, 1.0)
    v, w = (bb * ra - ab * rb) / area, (aa * rb - ab * ra) / area
    return np.stack([1 - v - w, v, w], axis=-1)


def interpolated(mesh, face: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Position and unit normal; 0 where there is no face."""
    corners = mesh.faces[np.maximum(face, 0)]
    position = (mesh.vertices.astype(np.float64)[corners] * weights[..., None]).sum(axis=1)
    normal = unit((mesh.normals.astype(np.float64)[corners] * weights[..., None]).sum(axis=1))
    covered = (face >= 0)[:, None]
    return position * covered, normal * covered


def embree_view(mesh: TexturedMesh, cameras: Cameras, view: int):
    """Mask, position and normal of one camera, flat, and the faces that were hit."""
    embree = pytest.importorskip("benchmarks.embree", reason="embreex has no wheel here", exc_type=ImportError)
    face, point = embree.hits(embree.scene_of(mesh.vertices, mesh.faces), embree.view_rays(cameras, VIEW_SIDE)[view])
    face = face.astype(np.int64)
    corners = mesh.vertices.astype(np.float64)[mesh.faces[np.maximum(face, 0)]]
    position, normal = interpolated(mesh, face, weights_at(point, corners))
    return face >= 0, position, normal


@pytest.mark.parametrize("name", AUTHORED)
def test_views_agree_with_embree(assets_dir, name):
    mesh = mesh_of(assets_dir / name)
    cameras = seqtex4(*bounding_box(mesh.vertices, mesh.faces))
    position, normal, mask = render_geometry(mesh, cameras, VIEW_SIDE, CpuRasterizer())
    clip = project(mesh.vertices, cameras.world_to_clip).astype(np.float64)
    agreed = covered = 0
    for view in range(4):
        true_mask, true_position, true_normal = embree_view(mesh, cameras, view)
        ours = mask[view].reshape(-1), position[view].reshape(-1, 3), normal[view].reshape(-1, 3)
        agrees = agreement(*ours, true_mask, true_position, true_normal)
        either = ours[0] | true_mask
        agreed, covered = agreed + int(agrees[either].sum()), covered + int(either.sum())
        rest = np.flatnonzero(~agrees)
        same_place = (ours[0] & true_mask)[rest] & (np.abs(ours[1] - true_position).max(axis=-1)[rest] < SAME_PLACE)
        rest = rest[~same_place]
        xy = np.stack([rest % VIEW_SIDE + 0.5, rest // VIEW_SIDE + 0.5], axis=-1)
        pixels = (clip[view, :, :2] / clip[view, :, 3:] + 1) * VIEW_SIDE / 2
        assert (nearest_edges(xy, pixels[mesh.faces]) <= ON_EDGE_PIXELS).all()
    assert agreed / covered >= AGREEING_SHARE


def layout_of(mesh: TexturedMesh) -> UvMesh:
    """The authored layout."""
    return UvMesh(
        vertices=mesh.vertices, normals=mesh.normals, uv=mesh.uv.clip(0, 1), faces=mesh.faces, layout="authored"
    )


def assert_layout_agrees(uv_mesh: UvMesh) -> None:
    position, normal, mask = bake_geometry(uv_mesh, UV_SIDE, CpuRasterizer())
    rows, columns = np.divmod(np.arange(UV_SIDE**2), UV_SIDE)
    xy = np.stack([columns + 0.5, rows + 0.5], axis=-1)
    texels = uv_mesh.uv.astype(np.float64) * UV_SIDE
    texels[:, 1] = UV_SIDE - texels[:, 1]  # row 0 is v = 1
    corners = texels[uv_mesh.faces]
    face = faces_at(xy, corners)
    true_position, true_normal = interpolated(uv_mesh, face, weights_at(xy, corners[np.maximum(face, 0)]))
    ours = mask.reshape(-1), position.reshape(-1, 3), normal.reshape(-1, 3)
    agrees = agreement(*ours, face >= 0, true_position, true_normal)
    either = ours[0] | (face >= 0)
    assert either.mean() > 0.1
    assert agrees[either].mean() >= AGREEING_SHARE
    assert (nearest_edges(xy[~agrees], corners) <= ON_EDGE_PIXELS).all()


@pytest.mark.parametrize("name", AUTHORED)
def test_uv_maps_agree_with_a_brute_force_search(assets_dir, name):
    assert_layout_agrees(layout_of(mesh_of(assets_dir / name)))
