"""Surface patches: regular grids of positions and normals, each of which becomes one rectangular UV chart.

Frame: Z up, right-handed. Grid axis 0 is s, axis 1 is t, and ds x dt points out of the surface. A hard edge is a row
(or column) of vertices that occurs twice with different normals; the cells between them have no area and give no face.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.interpolate import PchipInterpolator

Grid = Float[np.ndarray, "s t 3"]
Rng = np.random.Generator
Triple = Sequence[float | int] | np.ndarray
"""Three numbers."""
Points = Sequence[Triple] | np.ndarray
"""Points in two or three dimensions."""


@dataclass(frozen=True, slots=True)
class Detail:
    """Multiplies the number of segments in each direction; 1 gives 500 to 6000 faces."""

    factor: float = 1.0

    def __call__(self, segments: int) -> int:
        return max(4, round(segments * self.factor))


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """A grid of surface points with unit normals."""

    positions: Grid
    normals: Grid

    def moved(self, offset: Triple) -> "Patch":
        return Patch(positions=self.positions + np.asarray(offset, float), normals=self.normals)

    def turned(self, rotation: Float[np.ndarray, "3 3"]) -> "Patch":
        return Patch(positions=self.positions @ rotation.T, normals=self.normals @ rotation.T)


def unit(vectors: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
    """Vectors at length 1; +z where a vector is zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.where(length > 1e-12, vectors / np.maximum(length, 1e-12), (0.0, 0.0, 1.0))


def rotation_z(angle: float) -> Float[np.ndarray, "3 3"]:
    """Counter-clockwise seen from above; radians."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _difference(grid: Grid, axis: int, wrap: bool) -> Grid:
    if not wrap:
        return np.gradient(grid, axis=axis)
    before, after = np.take(grid, [-2], axis=axis), np.take(grid, [1], axis=axis)
    padded = np.concatenate([before, grid, after], axis=axis)
    count = grid.shape[axis]
    return np.take(padded, range(2, count + 2), axis=axis) - np.take(padded, range(count), axis=axis)


def smooth_patch(positions: Grid, *, wrap_s: bool = False, wrap_t: bool = False) -> Patch:
    """Normals from central differences; on a wrapped axis the first and last point coincide. Where a whole row falls
    into one point (a pole) the normal is the mean of the next row's."""
    normals = np.cross(_difference(positions, 0, wrap_s), _difference(positions, 1, wrap_t))
    for pole, inner in ((0, 1), (-1, -2)):
        if np.ptp(positions[:, pole], axis=0).max() < 1e-9:
            normals[:, pole] = unit(normals[:, inner]).mean(axis=0)
    return Patch(positions=positions, normals=unit(normals))


def stitched(pieces: Sequence[Patch], axis: int) -> Patch:
    """Pieces that share border points become one patch with hard edges between them."""
    return Patch(
        positions=np.concatenate([p.positions for p in pieces], axis=axis),
        normals=np.concatenate([p.normals for p in pieces], axis=axis),
    )


def faceted(patch: Patch) -> Patch:
    """The same surface with one flat normal for each grid cell."""
    p = patch.positions
    flat = unit(np.cross(p[1:, 1:] - p[:-1, :-1], p[:-1, 1:] - p[1:, :-1]))
    rows, columns = (np.repeat(np.arange(n), 2)[1:-1] for n in p.shape[:2])
    return Patch(positions=p[rows][:, columns], normals=np.repeat(np.repeat(flat, 2, axis=0), 2, axis=1))


def curve(control: Points, count: int) -> Float[np.ndarray, "count d"]:
    """A smooth curve through control points without overshoot, `count` points evenly spaced in chord length."""
    points = np.asarray(control, float)
    knots = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    return PchipInterpolator(knots, points)(np.linspace(0.0, knots[-1], count))


def lathe(pieces: Sequence[Float[np.ndarray, "_ 2"]], around: int, *, closed: bool = False) -> Patch:
    """Revolves profile pieces (radius, z) about z, from the bottom outward and up. Edges between pieces are
    hard. `closed`: the single piece is a loop."""
    angle = np.linspace(0.0, 2.0 * np.pi, around + 1)
    angle[-1] = 0.0
    grids = [
        np.stack(
            [np.outer(np.cos(angle), p[:, 0]), np.outer(np.sin(angle), p[:, 0]), np.tile(p[:, 1], (around + 1, 1))], -1
        )
        for p in pieces
    ]
    return stitched([smooth_patch(g, wrap_s=True, wrap_t=closed) for g in grids], axis=1)


def superellipsoid(half_sizes: Triple, east: float, north: float, around: int, along: int) -> Patch:
    """|x|^(2/east) + |y|^(2/east) ... = 1, sampled evenly in direction; exponent 1 is an ellipsoid, near 0 a box."""
    azimuth = np.linspace(0.0, 2.0 * np.pi, around + 1)
    azimuth[-1] = 0.0
    height = np.linspace(-np.pi / 2, np.pi / 2, along + 1)
    level = np.cos(height)
    level[[0, -1]] = 0.0
    x, y = np.outer(np.cos(azimuth), level), np.outer(np.sin(azimuth), level)
    direction = np.stack([x, y, np.tile(np.sin(height), (around + 1, 1))], axis=-1)
    ax, ay, az = np.moveaxis(np.abs(direction), -1, 0)
    implicit = (ax ** (2 / east) + ay ** (2 / east)) ** (east / north) + az ** (2 / north)
    points = direction * (implicit ** (-north / 2))[..., None] * np.asarray(half_sizes, float)
    return smooth_patch(points, wrap_s=True)


def sweep(centers: Float[np.ndarray, "t 3"], radii: Float[np.ndarray, " t"], around: int) -> Patch:
    """A tube of circles about a curve, frame carried along without twist; radius 0 at an end closes it."""
    tangents = unit(np.gradient(centers, axis=0))
    start = np.eye(3)[np.argmin(np.abs(tangents[0]))]
    sides = np.empty_like(tangents)
    side = start
    for index, tangent in enumerate(tangents):
        side = unit(side - tangent * (side @ tangent))
        sides[index] = side
    angle = np.linspace(0.0, 2.0 * np.pi, around + 1)
    angle[-1] = 0.0
    c, s = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    ring = c * sides + s * np.cross(tangents, sides)
    return smooth_patch(centers + radii[:, None] * ring, wrap_s=True)


def tube(control: Points, radius: float, end_radius: float, around: int, along: int) -> Patch:
    """A tube through control points with rounded ends; the radius goes linearly from `radius` to `end_radius`."""
    centers = curve(control, along)
    radii = np.linspace(radius, end_radius, along)
    tangents = unit(np.gradient(centers, axis=0))
    angle = np.linspace(0.0, np.pi / 2, max(4, around // 4 + 1))[1:]
    level = np.append(np.cos(angle[:-1]), 0.0)
    tail = centers[0] - np.outer(np.sin(angle) * radius, tangents[0])
    head = centers[-1] + np.outer(np.sin(angle) * end_radius, tangents[-1])
    return sweep(
        np.concatenate([tail[::-1], centers, head]),
        np.concatenate([level[::-1] * radius, radii, level * end_radius]),
        around,
    )


def cap(outline: Float[np.ndarray, "_ 3"]) -> Patch:
    """A flat patch inside a convex outline of 4 m points, counter-clockwise seen from outside; the square grid is
    stretched onto it, ring by ring."""
    side = len(outline) // 4
    a, b = np.meshgrid(*[np.linspace(-1.0, 1.0, side + 1)] * 2, indexing="ij")
    ring = np.maximum(np.abs(a), np.abs(b))
    u, v = a / np.maximum(ring, 1e-12), b / np.maximum(ring, 1e-12)
    on_side = [u >= 1.0 - 1e-9, v >= 1.0 - 1e-9, u <= -1.0 + 1e-9, v <= -1.0 + 1e-9]
    where = np.select(on_side, [(v + 1) / 2, 1 + (1 - u) / 2, 2 + (1 - v) / 2, 3 + (u + 1) / 2], 0.0) * side
    low = np.floor(where).astype(int)
    share = (where - low)[..., None]
    rim = outline[low % len(outline)] * (1 - share) + outline[(low + 1) % len(outline)] * share
    center = outline.mean(axis=0)
    return _flat(center + ring[..., None] * (rim - center), outline)


def fan(outline: Float[np.ndarray, "_ 3"], rings: int) -> Patch:
    """Make a cap in rings about the centre: for outlines with dents, where a square grid would fold."""
    center = outline.mean(axis=0)
    rim = np.concatenate([outline, outline[:1]])
    inward = np.linspace(0.0, 1.0, rings + 1)[:, None]
    return _flat((1 - inward) * rim[:, None] + inward * center, outline)


def _flat(positions: Grid, outline: Float[np.ndarray, "_ 3"]) -> Patch:
    center = outline.mean(axis=0)
    normal = np.cross(outline - center, np.roll(outline, -1, axis=0) - center).sum(axis=0)
    return Patch(positions=positions, normals=np.broadcast_to(unit(normal), positions.shape).copy())


def prism(
    corners: Float[np.ndarray, "corners 2"],
    half_height: float,
    *,
    per_edge: int,
    rows: int,
    twist: float = 0.0,
    taper: float = 1.0,
) -> list[Patch]:
    """Side band with hard edges, bottom and top of a polygon (counter-clockwise, star-shaped about 0) along z;
    `twist` in radians and `taper` (size of the top) grow linearly. With four corners, caps are square grids."""
    share = np.linspace(0.0, 1.0, per_edge + 1)[:, None]
    edges = [(1 - share) * a + share * b for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)]
    height = np.linspace(0.0, 1.0, rows + 1)

    def raised(points: Float[np.ndarray, "n 2"]) -> Grid:
        levels = [
            np.column_stack([points * (1 + (taper - 1) * h), np.full(len(points), (2 * h - 1) * half_height)])
            @ rotation_z(twist * h).T
            for h in height
        ]
        return np.stack(levels, axis=1)

    side = stitched([smooth_patch(raised(edge)) for edge in edges], axis=0)
    loop = raised(np.concatenate([edge[:-1] for edge in edges]))
    # Reversed about the first point, so that polygon corners stay on grid corners.
    bottom = np.roll(loop[::-1, 0], 1, axis=0)
    if len(corners) == 4:
        return [side, cap(bottom), cap(loop[:, -1])]
    return [side, fan(bottom, per_edge), fan(loop[:, -1], per_edge)]


def cells(patch: Patch) -> Int[np.ndarray, "f 3"]:
    """Faces over the flattened grid, two for each cell, without those of zero area."""
    rows, columns = patch.positions.shape[:2]
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (q.ravel() for q in (index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]))
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], axis=1).reshape(-1, 3)
    p = patch.positions.reshape(-1, 3)[faces]
    area = np.linalg.norm(np.cross(p[:, 1] - p[:, 0], p[:, 2] - p[:, 0]), axis=1)
    return faces[area > 1e-9]
