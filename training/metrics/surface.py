"""Metrics on the surface: whether a texture is one picture on the mesh, which an image metric cannot see.

UV maps are in image orientation (row 0 = v 1), colours 8-bit sRGB, differences in [0, 1] of the full range."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int64, UInt8

from geometry.cameras import project
from geometry.texture import sample_image
from schemas.mesh import UvMesh
from schemas.sample import Cameras

SAMPLES_PER_EDGE = 8
FACING = 0.3
"""Cosine between normal and viewing direction from which a pixel shows a surface well enough to compare."""
SAME_SIDE = 0.5
"""Cosine between normals from which two pixels or texels show the same side of a surface."""
SAME_POINT_PIXELS = 1.5
"""Two views show the same point where its places differ by less than this many pixels."""
NEIGHBOUR_PIXELS = 2.0
"""Neighbours are of one piece where they are closer than this many pixels on a surface that just faces well enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seams:
    """Edges of the surface at which two charts meet: the same two points, with other coordinates on either side."""

    uv: Float64[np.ndarray, "edges 2 2 2"]
    """Edge, side, end, (u, v)."""
    length: Float64[np.ndarray, " edges"]
    """On the surface."""


def find_seams(mesh: UvMesh) -> Seams:
    """Find the edges that exactly two faces share (vertices at one place are one) with different coordinates."""
    _, point = np.unique(mesh.vertices, axis=0, return_inverse=True)
    corners = mesh.faces.astype(np.int64)
    start, end = corners.reshape(-1), np.roll(corners, -1, axis=1).reshape(-1)
    place = point.reshape(-1)
    turned = place[start] > place[end]
    start, end = np.where(turned, end, start), np.where(turned, start, end)
    first, second = _shared_twice(place[start] * (len(mesh.vertices) + 1) + place[end])
    uv = mesh.uv.astype(np.float64)
    sides = np.stack([np.stack([uv[start[side]], uv[end[side]]], axis=1) for side in (first, second)], axis=1)
    points = mesh.vertices.astype(np.float64)
    length = np.linalg.norm(points[end[first]] - points[start[first]], axis=1)
    is_seam = np.abs(sides[:, 0] - sides[:, 1]).max(axis=(1, 2), initial=0.0) > 1e-6
    return Seams(uv=sides[is_seam], length=length[is_seam])


def _shared_twice(keys: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " m"], Int64[np.ndarray, " m"]]:
    """Indices of the two entries of every key that occurs exactly twice."""
    order = np.argsort(keys, kind="stable")
    _, first, count = np.unique(keys[order], return_index=True, return_counts=True)
    twice = first[count == 2]
    return order[twice], order[twice + 1]


def seam_step(mesh: UvMesh, rgb: UInt8[np.ndarray, "height width 3"]) -> float:
    """Seam continuity: mean colour step across chart borders, by length of border; 0 without a border. What a renderer
    shows on either side is looked up at the same points of the edge."""
    seams = find_seams(mesh)
    if not seams.length.sum() > 0:
        return 0.0
    along = ((np.arange(SAMPLES_PER_EDGE) + 0.5) / SAMPLES_PER_EDGE)[:, None]
    uv = seams.uv[:, :, None, 0] * (1 - along) + seams.uv[:, :, None, 1] * along
    color = sample_image(rgb, uv) / 255
    step = np.abs(color[:, 0] - color[:, 1]).mean(axis=(1, 2))
    return float((step * seams.length).sum() / seams.length.sum())


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """Geometry of the views of one mesh, as a dataset has them."""

    position: Float32[np.ndarray, "views height width 3"]
    normal: Float32[np.ndarray, "views height width 3"]
    mask: Bool[np.ndarray, "views height width"]
    cameras: Cameras

    def places(
        self, points: Float32[np.ndarray, "n 3"], normals: Float32[np.ndarray, "n 3"], view: int
    ) -> tuple[Float64[np.ndarray, "n 2"], Bool[np.ndarray, " n"]]:
        """Project points of the surface into a view: (column, row) with pixel centres at .5, and whether the view
        really shows them there: they are in the picture, nothing is in front, and it is not their back that is seen."""
        height, width = self.mask.shape[1:]
        camera = Cameras(
            world_to_cam=self.cameras.world_to_cam[view : view + 1], projection=self.cameras.projection[view : view + 1]
        )
        clip = project(points, camera.world_to_clip)[0].astype(np.float64)
        in_front = clip[:, 3] > 0
        w = np.where(in_front, clip[:, 3], 1.0)
        place = (clip[:, :2] / w[:, None] + 1) / 2 * (width, height)
        inside = in_front & (place >= 0).all(axis=1) & (place < (width, height)).all(axis=1)
        column, row = np.where(inside[:, None], place, 0).astype(np.int64).T
        apart = np.linalg.norm(self.position[view, row, column] - points, axis=1)
        # A pixel's own point may lie half a pixel's diagonal off, and farther where the surface is slanted.
        near = apart < SAME_POINT_PIXELS * self.pixel_size(points, view) / np.maximum(
            self.facing(view)[row, column], FACING
        )
        same_side = (self.normal[view, row, column] * normals).sum(axis=1) > SAME_SIDE
        return place, inside & self.mask[view, row, column] & near & same_side

    def inner(self, view: int) -> Bool[np.ndarray, "height width"]:
        """Well-facing pixels whose eight neighbours lie on the same piece of surface, so that colours may be looked up
        between them."""
        position, good = self.position[view], self.facing(view) >= FACING
        reach = NEIGHBOUR_PIXELS / FACING * self.pixel_size(position.reshape(-1, 3), view).reshape(good.shape)
        whole = np.zeros_like(good)
        whole[1:-1, 1:-1] = good[1:-1, 1:-1]
        for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
            for sign in (1, -1):
                near = np.roll(position, (sign * down, sign * right), axis=(0, 1))
                also = np.roll(good, (sign * down, sign * right), axis=(0, 1))
                whole &= also & (np.linalg.norm(near - position, axis=-1) < reach)
        return whole

    def pixel_size(self, points: Float32[np.ndarray, "n 3"], view: int) -> Float64[np.ndarray, " n"]:
        """Return the length that a pixel spans at the distance of each point."""
        world_to_clip = self.cameras.world_to_clip[view].astype(np.float64)
        w = points @ world_to_clip[3, :3] + world_to_clip[3, 3]
        return 2 * np.abs(w) / (abs(float(self.cameras.projection[view, 1, 1])) * self.mask.shape[1])

    def facing(self, view: int) -> Float64[np.ndarray, "height width"]:
        """Cosine between each pixel's normal and the direction to the camera; 0 outside the mask."""
        to_cam = self.cameras.world_to_cam[view].astype(np.float64)
        if self.cameras.projection[view, 3, 3] == 1:  # orthographic: one direction for all
            toward = np.broadcast_to(to_cam[2, :3], self.position[view].shape)
        else:
            toward = -to_cam[:3, :3].T @ to_cam[:3, 3] - self.position[view]
        cosine = (self.normal[view] * toward).sum(axis=-1) / np.maximum(np.linalg.norm(toward, axis=-1), 1e-12)
        return np.abs(cosine) * self.mask[view]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrossView:
    """Measure how far views agree about the points that they both show."""

    step: float
    """Mean colour difference; 0 where no point is seen twice."""
    pairs: int
    """Points compared, each once for every ordered pair of views that shows it."""


def cross_view_consistency(rgb: UInt8[np.ndarray, "views height width 3"], seen: Seen) -> CrossView:
    """Every well-facing pixel of a view is looked up in the other views that show its point well."""
    total, pairs = 0.0, 0
    facing = [seen.inner(view) for view in range(len(rgb))]
    for view in range(len(rgb)):
        points, colors = seen.position[view][facing[view]], rgb[view][facing[view]] / 255
        for other in range(len(rgb)):
            if other == view or not len(points):
                continue
            place, shown = seen.places(points, seen.normal[view][facing[view]], other)
            column, row = place.astype(np.int64).clip(0, np.array(facing[other].shape[::-1]) - 1).T
            shown &= facing[other][row, column]
            height, width = rgb.shape[1:3]
            uv = np.stack([place[shown, 0] / width, 1 - place[shown, 1] / height], axis=-1)
            step = np.abs(sample_image(rgb[other], uv) / 255 - colors[shown]).mean(axis=-1)
            total, pairs = total + float(step.sum()), pairs + len(step)
    return CrossView(step=total / pairs if pairs else 0.0, pairs=pairs)


def visible_texels(
    position: Float32[np.ndarray, "height width 3"],
    normal: Float32[np.ndarray, "height width 3"],
    mask: Bool[np.ndarray, "height width"],
    seen: Seen,
) -> Bool[np.ndarray, "height width"]:
    """Return which covered texels of a UV map at least one view shows. The network invents the others."""
    found = np.zeros(int(mask.sum()), bool)
    for view in range(len(seen.mask)):
        found |= seen.places(position[mask], normal[mask], view)[1]
    out = np.zeros_like(mask)
    out[mask] = found
    return out
