"""Compiled loops over points of a surface: where they lie, how far apart, and what colours they have."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING

COLOR_BITS = 5
"""Bits a channel at which colours are distinguished."""
HUES, LEVELS = 180, 256
"""Numbers of different hues (OpenCV's 8-bit HSV), saturations and values."""


@njit(**BORROWING)
def box_around(vertices: np.ndarray, faces: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    """Corners [3] of the box around the vertices [v, 3] that faces [f, 3] use; NaN where one of them is."""
    low[:], high[:] = np.inf, -np.inf
    for face in range(faces.shape[0]):
        for corner in range(3):
            vertex = faces[face, corner]
            for axis in range(3):
                value = np.float64(vertices[vertex, axis])
                low[axis] = value if value < low[axis] or value != value else low[axis]
                high[axis] = value if value > high[axis] or value != value else high[axis]


@njit(**BORROWING)
def column_sums(values: np.ndarray, sums: np.ndarray) -> None:
    """Sums [3] of values [n, 3] from the first row to the last, as numpy adds them up."""
    red, green, blue = 0.0, 0.0, 0.0
    for row in range(values.shape[0]):
        red, green, blue = red + values[row, 0], green + values[row, 1], blue + values[row, 2]
    sums[0], sums[1], sums[2] = red, green, blue


@njit(**BORROWING)
def points_on_faces(
    vertices: np.ndarray, faces: np.ndarray, face: np.ndarray, bary: np.ndarray, out: np.ndarray
) -> None:
    """Points on faces: vertices [v, 3], faces [f, 3], face [n], weights of corners 0 and 1 [n, 2] -> out [n, 3]."""
    for point in range(face.shape[0]):
        i, j, k = faces[face[point], 0], faces[face[point], 1], faces[face[point], 2]
        first, second = np.float64(bary[point, 0]), np.float64(bary[point, 1])
        for axis in range(3):
            origin = np.float64(vertices[k, axis])
            place = origin + first * (np.float64(vertices[i, axis]) - origin)
            out[point, axis] = place + second * (np.float64(vertices[j, axis]) - origin)


@njit(**BORROWING)
def weighted_corners(
    values: np.ndarray, shift: np.ndarray, scale: float, faces: np.ndarray, face: np.ndarray, bary: np.ndarray,
    out: np.ndarray,
) -> None:  # fmt: skip
    """Mean of (values - shift) / scale over the corners of faces: values [v, 3], shift [3], faces [f, 3], face [n],
    bary [n, 2] -> out [n, 3]."""
    for point in range(face.shape[0]):
        i, j, k = faces[face[point], 0], faces[face[point], 1], faces[face[point], 2]
        b0, b1 = bary[point, 0], bary[point, 1]
        weight0, weight1, weight2 = np.float64(b0), np.float64(b1), np.float64(np.float32(1.0) - (b0 + b1))
        for axis in range(3):
            out[point, axis] = (
                (np.float64(values[i, axis]) - shift[axis]) / scale * weight0
                + (np.float64(values[j, axis]) - shift[axis]) / scale * weight1
                + (np.float64(values[k, axis]) - shift[axis]) / scale * weight2
            )


@njit(**BORROWING)
def lengths_between(points: np.ndarray, order: np.ndarray, shift: int, out: np.ndarray) -> None:
    """Distances [n] of points [n, 3] from those that `order` [n], rolled by `shift`, pairs them with."""
    count = points.shape[0]
    for point in range(count):
        other = order[point - shift if point >= shift else point - shift + count]
        x, y = points[point, 0] - points[other, 0], points[point, 1] - points[other, 1]
        z = points[point, 2] - points[other, 2]
        out[point] = np.sqrt(x * x + y * y + z * z)


@njit(**BORROWING)
def gather_shells(
    distances: np.ndarray, srgb: np.ndarray, opaque: np.ndarray, shells: np.ndarray, sums: np.ndarray
) -> None:
    """Add up colours by distance: distances [n], 8-bit srgb [n, 3], opaque [n] -> sums [shells, 3], colours in [0, 1].
    A colour counts fully at the distance of its shell and fades out towards the next one's."""
    step = shells[1] - shells[0]
    for point in range(distances.shape[0]):
        if not opaque[point]:
            continue
        for shell in range(shells.shape[0]):
            weight = 1.0 - abs(distances[point] - shells[shell]) / step
            if weight > 0.0:
                for channel in range(3):
                    sums[shell, channel] += weight * (srgb[point, channel] / 255.0)


@njit(**BORROWING)
def gather_layout(
    points: np.ndarray,
    vertices: np.ndarray,
    uv: np.ndarray,
    faces: np.ndarray,
    mapped: np.ndarray,
    face: np.ndarray,
    bary: np.ndarray,
    values: np.ndarray,
    by_texture: np.ndarray,
    by_direction: np.ndarray,
) -> None:
    """Add up values [n, c] of points [n, 3] around the origin, on faces [f, 3] of vertices [v, 3] with uv [v, 2], at
    face [n] with weights bary [n, 2] of corners 0 and 1, into two grids [s, s, c]: by place in the texture, and by
    direction from the origin on an octahedral map. Faces that are not mapped [f] to a texture have their place by
    distance from the origin and slope against it."""
    side = by_texture.shape[0]
    for n in range(points.shape[0]):
        i, j, k = faces[face[n], 0], faces[face[n], 1], faces[face[n], 2]
        x, y, z = points[n, 0], points[n, 1], points[n, 2]
        length = np.sqrt(x * x + y * y + z * z)
        if mapped[face[n]]:
            first, second = np.float64(bary[n, 0]), np.float64(bary[n, 1])
            third = 1.0 - first - second
            u = first * uv[i, 0] + second * uv[j, 0] + third * uv[k, 0]
            v = first * uv[i, 1] + second * uv[j, 1] + third * uv[k, 1]
        else:
            u, v = min(length / 4.0, 0.99), 0.5 + 0.49 * _slope(vertices, i, j, k, x, y, z)
        _spread(u * side - 0.5, v * side - 0.5, values, n, by_texture, True)
        total = abs(x) + abs(y) + abs(z)
        if total > 0.0:
            u, v = x / total, y / total
            if z < 0.0:
                u, v = (1.0 - abs(v)) * (1.0 if u >= 0 else -1.0), (1.0 - abs(u)) * (1.0 if v >= 0 else -1.0)
            _spread((u + 1.0) / 2.0 * side - 0.5, (v + 1.0) / 2.0 * side - 0.5, values, n, by_direction, False)


@njit(**BORROWING)
def _slope(vertices: np.ndarray, i: int, j: int, k: int, x: float, y: float, z: float) -> float:
    """Cosine between a face's normal and a direction; 0 where either has no length."""
    px, py, pz = np.float64(vertices[i, 0]), np.float64(vertices[i, 1]), np.float64(vertices[i, 2])
    ax, ay, az = vertices[j, 0] - px, vertices[j, 1] - py, vertices[j, 2] - pz
    bx, by, bz = vertices[k, 0] - px, vertices[k, 1] - py, vertices[k, 2] - pz
    nx, ny, nz = ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx
    across = np.sqrt((nx * nx + ny * ny + nz * nz) * (x * x + y * y + z * z))
    return (x * nx + y * ny + z * nz) / across if across > 0.0 else 0.0


@njit(**BORROWING)
def _spread(x: float, y: float, values: np.ndarray, n: int, grid: np.ndarray, wraps: bool) -> None:
    """Add row n of values [n, c] to the four cells of a grid [s, s, c] around a place, by nearness."""
    side = grid.shape[0]
    left, top = np.floor(x), np.floor(y)
    for row in range(2):
        for column in range(2):
            weight = abs(1.0 - row - (y - top)) * abs(1.0 - column - (x - left))
            if wraps:
                at_x, at_y = np.int64((left + column) % side), np.int64((top + row) % side)
            else:
                at_x = min(max(np.int64(left + column), 0), side - 1)
                at_y = min(max(np.int64(top + row), 0), side - 1)
            for channel in range(values.shape[1]):
                grid[at_y, at_x, channel] += weight * values[n, channel]


@njit(**BORROWING)
def count_colors(
    srgb: np.ndarray,
    grey_levels: int,
    colors: np.ndarray,
    hues: np.ndarray,
    saturations: np.ndarray,
    values: np.ndarray,
) -> int:
    """Histograms of 8-bit colours [n, 3]: colors [32768], hues [180], saturations [256], values [256]. Returns the
    number of greys, whose channels differ by less than `grey_levels`."""
    greys = 0
    for point in range(srgb.shape[0]):
        r, g, b = np.int64(srgb[point, 0]), np.int64(srgb[point, 1]), np.int64(srgb[point, 2])
        colors[(r >> 3) * 1024 + (g >> 3) * 32 + (b >> 3)] += 1
        high, low = max(r, g, b), min(r, g, b)
        greys += high - low < grey_levels
        red, green, blue = np.float32(r), np.float32(g), np.float32(b)
        value, chroma = np.float32(high), np.float32(high - low)
        safe = chroma if chroma > 0 else np.float32(1.0)
        if value == red:
            sector = (green - blue) / safe
        elif value == green:
            sector = np.float32(2.0) + (blue - red) / safe
        else:
            sector = np.float32(4.0) + (red - green) / safe
        hue = np.int64(np.rint(np.float32(30.0) * sector))
        hues[hue + HUES if hue < 0 else hue] += 1
        saturations[np.int64(np.rint(np.float32(255.0) * chroma / max(value, np.float32(1.0))))] += 1
        values[high] += 1
    return greys
