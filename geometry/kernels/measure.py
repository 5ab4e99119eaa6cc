"""Compiled loops of the measurements: edges and components of a mesh, coverage of a UV layout, gradients of images."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING

SUBTEXEL = 256
"""Fixed-point steps per texel (8 bits)."""
COVERED, AGAIN, POSITIVE, NEGATIVE = 1, 2, 4, 8
"""Bits of a texel: covered, by a second face, by a face that runs counter-clockwise, by one that runs clockwise."""


@njit(nogil=True, cache=True)
def find_root(parent: np.ndarray, item: int) -> int:
    """The representative of an item's set; halves the path on the way."""
    while parent[item] != item:
        parent[item] = parent[parent[item]]
        item = parent[item]
    return item


@njit(nogil=True, cache=True)
def join(parent: np.ndarray, first: int, second: int) -> None:
    """One set out of two; the lowest item represents it."""
    first, second = find_root(parent, first), find_root(parent, second)
    if first < second:
        parent[second] = first
    elif second < first:
        parent[first] = second


@njit(nogil=True, cache=True)
def count_components(faces: np.ndarray, points: int) -> int:
    """Components of faces [f, 3] that share points 0 .. points - 1, all of which are used."""
    parent = np.arange(points)
    for face in range(faces.shape[0]):
        join(parent, faces[face, 0], faces[face, 1])
        join(parent, faces[face, 1], faces[face, 2])
    count = 0
    for point in range(points):
        count += parent[point] == point
    return count


@njit(nogil=True, cache=True)
def edge_keys(faces: np.ndarray, points: int) -> np.ndarray:
    """Key of every face's edge from corner c to c + 1, [3 f], the same for both directions; -1 where the ends are one
    point."""
    keys = np.empty(3 * faces.shape[0], np.int64)
    for face in range(faces.shape[0]):
        for corner in range(3):
            a, b = faces[face, corner], faces[face, (corner + 1) % 3]
            keys[3 * face + corner] = -1 if a == b else min(a, b) * points + max(a, b)
    return keys


@njit(nogil=True, cache=True)
def walk_edges(
    keys: np.ndarray, order: np.ndarray, welded: np.ndarray, faces: np.ndarray, uv: np.ndarray
) -> tuple[int, int, np.ndarray]:
    """Number of edges of one face, of three faces or more, and the chart of every face as its lowest face.

    `order` sorts `keys`; `welded` [f, 3] are the points behind `keys`, `faces` [f, 3] the vertices that have `uv`.
    Neighbours over an edge share a chart where both of its ends have the same coordinates."""
    parent = np.arange(faces.shape[0])
    boundary, nonmanifold = 0, 0
    first = 0
    while first < order.shape[0]:
        last = first + 1
        while last < order.shape[0] and keys[order[last]] == keys[order[first]]:
            last += 1
        if keys[order[first]] >= 0:
            boundary += last - first == 1
            nonmanifold += last - first > 2
            for entry in range(first + 1, last):
                here, there = order[entry - 1], order[entry]
                face, corner = here // 3, here % 3
                other, other_corner = there // 3, there % 3
                a, b = faces[face, corner], faces[face, (corner + 1) % 3]
                c, d = faces[other, other_corner], faces[other, (other_corner + 1) % 3]
                if welded[face, corner] != welded[other, other_corner]:
                    c, d = d, c
                same = uv[a, 0] == uv[c, 0] and uv[a, 1] == uv[c, 1] and uv[b, 0] == uv[d, 0] and uv[b, 1] == uv[d, 1]
                if same:
                    join(parent, face, other)
        first = last
    for face in range(parent.shape[0]):
        parent[face] = find_root(parent, face)
    return boundary, nonmanifold, parent


@njit(nogil=True, cache=True)
def cover_layout(uv: np.ndarray, faces: np.ndarray, chosen: np.ndarray, side: int) -> np.ndarray:
    """Bits [side, side] of the texels whose centres the chosen faces cover, coordinates wrapped into the unit square
    (row 0 = v 0). Exact: integer edge functions with the top-left rule, so that neighbours share no texel."""
    texels = np.zeros((side, side), np.uint8)
    for face in range(faces.shape[0]):
        if not chosen[face]:
            continue
        i, j, k = faces[face, 0], faces[face, 1], faces[face, 2]
        shift_u = np.floor(min(uv[i, 0], uv[j, 0], uv[k, 0]))
        shift_v = np.floor(min(uv[i, 1], uv[j, 1], uv[k, 1]))
        scale = np.float64(side * SUBTEXEL)
        ax, ay = np.int64(np.rint((uv[i, 0] - shift_u) * scale)), np.int64(np.rint((uv[i, 1] - shift_v) * scale))
        bx, by = np.int64(np.rint((uv[j, 0] - shift_u) * scale)), np.int64(np.rint((uv[j, 1] - shift_v) * scale))
        cx, cy = np.int64(np.rint((uv[k, 0] - shift_u) * scale)), np.int64(np.rint((uv[k, 1] - shift_v) * scale))
        area = (bx - ax) * (cy - ay) - (by - ay) * (cx - ax)
        if area == 0:
            continue
        bit = POSITIVE
        if area < 0:
            bx, by, cx, cy = cx, cy, bx, by
            bit = NEGATIVE
        x_first, x_last = (min(ax, bx, cx) + 127) >> 8, (max(ax, bx, cx) - 128) >> 8
        y_first, y_last = (min(ay, by, cy) + 127) >> 8, (max(ay, by, cy) - 128) >> 8
        px, py = (x_first << 8) + 128, (y_first << 8) + 128
        abx, aby, bcx, bcy, cax, cay = bx - ax, by - ay, cx - bx, cy - by, ax - cx, ay - cy
        edge_ab = abx * (py - ay) - aby * (px - ax) - (0 if aby < 0 or (aby == 0 and abx > 0) else 1)
        edge_bc = bcx * (py - by) - bcy * (px - bx) - (0 if bcy < 0 or (bcy == 0 and bcx > 0) else 1)
        edge_ca = cax * (py - cy) - cay * (px - cx) - (0 if cay < 0 or (cay == 0 and cax > 0) else 1)
        for row in range(y_first, y_last + 1):
            e_ab, e_bc, e_ca = edge_ab, edge_bc, edge_ca
            entered = False
            wrapped_row, wrapped = np.uint64(row % side), np.uint64(x_first % side)  # unsigned: not from the end
            for _ in range(x_first, x_last + 1):
                if (e_ab | e_bc | e_ca) >= 0:
                    entered = True
                    bits = texels[wrapped_row, wrapped]
                    texels[wrapped_row, wrapped] = bits | bit | COVERED | (AGAIN if bits & COVERED else 0)
                elif entered:
                    break
                e_ab -= aby << 8
                e_bc -= bcy << 8
                e_ca -= cay << 8
                wrapped = wrapped + np.uint64(1) if wrapped + np.uint64(1) < np.uint64(side) else np.uint64(0)
            edge_ab += abx << 8
            edge_bc += bcx << 8
            edge_ca += cax << 8
    return texels


@njit(nogil=True, cache=True)
def count_bits(texels: np.ndarray) -> tuple[int, int, int]:
    """Covered texels, those covered again, and those of them that faces of both orientations cover."""
    covered, again, mirrored = 0, 0, 0
    both = POSITIVE | NEGATIVE
    for row in range(texels.shape[0]):
        for column in range(texels.shape[1]):
            bits = texels[row, column]
            covered += bits & COVERED != 0
            again += bits & AGAIN != 0
            mirrored += bits & both == both
    return covered, again, mirrored


@njit(nogil=True, cache=True)
def sum_gradients(rgb: np.ndarray, mask: np.ndarray) -> tuple[float, int]:
    """Sum of Sobel magnitudes (3 x 3, unnormalised) of the grey of an 8-bit image over the pixels that lie in the mask
    with all of their neighbours, and the number of these pixels."""
    height, width = mask.shape
    grey = np.empty((height, width), np.float32)
    for row in range(height):
        for column in range(width):
            red, green, blue = rgb[row, column, 0], rgb[row, column, 1], rgb[row, column, 2]
            grey[row, column] = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    total, count = 0.0, 0
    for row in range(1, height - 1):
        for column in range(1, width - 1):
            inside = True
            for y in range(row - 1, row + 2):
                inside = inside and mask[y, column - 1] and mask[y, column] and mask[y, column + 1]
            if not inside:
                continue
            left = grey[row - 1, column - 1] + 2 * grey[row, column - 1] + grey[row + 1, column - 1]
            right = grey[row - 1, column + 1] + 2 * grey[row, column + 1] + grey[row + 1, column + 1]
            above = grey[row - 1, column - 1] + 2 * grey[row - 1, column] + grey[row - 1, column + 1]
            below = grey[row + 1, column - 1] + 2 * grey[row + 1, column] + grey[row + 1, column + 1]
            total += np.sqrt(np.float64(right - left) ** 2 + np.float64(below - above) ** 2)
            count += 1
    return total, count


@njit(nogil=True, cache=True)
def sum_differences(image: np.ndarray, truth: np.ndarray, mask: np.ndarray, off: int) -> tuple[int, int, int]:
    """Sum of the squared differences of 8-bit pixels [n, 3] in the mask [n], number of those of which a channel differs
    by more than `off`, and number of all."""
    squares, differ, pixels = 0, 0, 0
    for pixel in range(mask.shape[0]):
        if not mask[pixel]:
            continue
        pixels += 1
        red = np.int64(image[pixel, 0]) - np.int64(truth[pixel, 0])
        green = np.int64(image[pixel, 1]) - np.int64(truth[pixel, 1])
        blue = np.int64(image[pixel, 2]) - np.int64(truth[pixel, 2])
        squares += red * red + green * green + blue * blue
        differ += max(abs(red), abs(green), abs(blue)) > off
    return squares, differ, pixels


@njit(**BORROWING)
def count_sheet_pixels(
    position: np.ndarray, normal: np.ndarray, mask: np.ndarray, other_position: np.ndarray, other_mask: np.ndarray,
    eye: np.ndarray, other_eye: np.ndarray, to_clip: np.ndarray, stride: int, thickness: float, reach: float,
) -> tuple[int, int]:  # fmt: skip
    """Number of every `stride`-th pixels of a view whose place the other view sees, too, from the surface's other side,
    and number of all of them in the mask.

    position and normal [h, w, 3], mask [h, w]; eye [4]: where rays go, as a place (last number 1) or direction (0);
    to_clip [4, 4]: into the other view, float64."""
    height, width = mask.shape
    same, total = 0, 0
    for row in range(0, height, stride):
        for column in range(0, width, stride):
            if not mask[row, column]:
                continue
            total += 1
            facing, other_facing = 0.0, 0.0
            for axis in range(3):
                place, slope = np.float64(position[row, column, axis]), np.float64(normal[row, column, axis])
                facing += (eye[axis] - eye[3] * place) * slope
                other_facing += (other_eye[axis] - other_eye[3] * place) * slope
            if not facing * other_facing < 0.0:
                continue
            x, y = np.float64(position[row, column, 0]), np.float64(position[row, column, 1])
            z = np.float64(position[row, column, 2])
            clip_x = np.float32(to_clip[0, 0] * x + to_clip[0, 1] * y + to_clip[0, 2] * z + to_clip[0, 3])
            clip_y = np.float32(to_clip[1, 0] * x + to_clip[1, 1] * y + to_clip[1, 2] * z + to_clip[1, 3])
            clip_w = np.float32(to_clip[3, 0] * x + to_clip[3, 1] * y + to_clip[3, 2] * z + to_clip[3, 3])
            at_x = np.floor(np.float64((clip_x / clip_w + np.float32(1.0)) / np.float32(2.0)) * width)
            at_y = np.floor(np.float64((clip_y / clip_w + np.float32(1.0)) / np.float32(2.0)) * height)
            if not (at_x >= 0.0 and at_x < width and at_y >= 0.0 and at_y < height):
                continue
            there_row, there_column = np.int64(at_y), np.int64(at_x)
            if not other_mask[there_row, there_column]:
                continue
            apart, furthest = np.float32(0.0), np.float32(0.0)
            for axis in range(3):
                step = other_position[there_row, there_column, axis] - position[row, column, axis]
                apart += step * normal[row, column, axis]
                furthest = max(furthest, abs(step))
            same += abs(apart) < np.float32(thickness) and furthest < np.float32(reach)
    return same, total
