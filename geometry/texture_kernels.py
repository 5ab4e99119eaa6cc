"""Compiled loops of texture look-up, averaging, sRGB encoding and gutter filling."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def reduce_coordinate(coordinate: float, wrap: int) -> float:
    """A texture coordinate brought near [0, 1] before it becomes a texel index (they may be 1e20); NaN counts as 0."""
    if not np.isfinite(coordinate):
        return 0.0
    if wrap == 0:
        return coordinate - np.floor(coordinate)
    if wrap == 1:
        return coordinate - 2.0 * np.floor(coordinate * 0.5)
    return min(max(coordinate, -1.0), 2.0)


@njit(nogil=True, cache=True)
def wrap_index(index: int, size: int, wrap: int) -> int:
    """Texel index in [0, size) under repeat (0), mirror (1) or clamp (2), one texel around a reduced coordinate: -1 to
    size, or to 2 size when mirrored. (A division per texel would cost more than the rest of the look-up.)"""
    if wrap == 0:
        index = index + size if index < 0 else (index - size if index >= size else index)
    elif wrap == 1:
        index = 2 * size - 1 - index if index >= size else index
    return min(max(index, 0), size - 1)


@njit(nogil=True, cache=True, inline="always")
def bilinear(
    x: float, y: float, texels: np.ndarray, first: int, height: int, width: int, wrap_u: int, wrap_v: int,
    decode: np.ndarray,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Linear RGBA at texel coordinates (x right, y down, texel centres at .5), filtered in linear light."""
    left, top = np.floor(x - 0.5), np.floor(y - 0.5)
    column0, row0 = np.int64(left), np.int64(top)
    column1, row1 = column0 + 1, row0 + 1
    if column0 < 0 or column1 >= width:
        column0, column1 = wrap_index(column0, width, wrap_u), wrap_index(column1, width, wrap_u)
    if row0 < 0 or row1 >= height:
        row0, row1 = wrap_index(row0, height, wrap_v), wrap_index(row1, height, wrap_v)
    fx, fy = np.float32(x - 0.5 - left), np.float32(y - 0.5 - top)
    gx, gy = np.float32(1.0) - fx, np.float32(1.0) - fy
    w00, w01, w10, w11 = gx * gy, fx * gy, gx * fy, fx * fy
    # Plain scalar indexing: a row view costs two atomic reference counts.
    t00, t01 = first + row0 * width + column0, first + row0 * width + column1
    t10, t11 = first + row1 * width + column0, first + row1 * width + column1
    red = w00 * decode[texels[t00, 0]] + w01 * decode[texels[t01, 0]]
    red += w10 * decode[texels[t10, 0]] + w11 * decode[texels[t11, 0]]
    green = w00 * decode[texels[t00, 1]] + w01 * decode[texels[t01, 1]]
    green += w10 * decode[texels[t10, 1]] + w11 * decode[texels[t11, 1]]
    blue = w00 * decode[texels[t00, 2]] + w01 * decode[texels[t01, 2]]
    blue += w10 * decode[texels[t10, 2]] + w11 * decode[texels[t11, 2]]
    alpha = w00 * np.float32(texels[t00, 3]) + w01 * np.float32(texels[t01, 3])
    alpha += w10 * np.float32(texels[t10, 3]) + w11 * np.float32(texels[t11, 3])
    return red, green, blue, alpha * np.float32(1.0 / 255.0)


@njit(nogil=True, cache=True, inline="always")
def look_up(
    u: float, v: float, texels: np.ndarray, samplers: np.ndarray, texture: int, decode: np.ndarray
) -> tuple[float, float, float, float]:
    """Linear RGBA of a texture at (u, v), v up."""
    first, height, width = samplers[texture, 0], samplers[texture, 1], samplers[texture, 2]
    wrap_u, wrap_v = samplers[texture, 3], samplers[texture, 4]
    x = reduce_coordinate(u, wrap_u) * width
    y = reduce_coordinate(1.0 - v, wrap_v) * height
    if samplers[texture, 5]:  # nearest: bilinear at the texel's centre
        x, y = np.floor(x) + 0.5, np.floor(y) + 0.5
    return bilinear(x, y, texels, first, height, width, wrap_u, wrap_v, decode)


@njit(nogil=True, cache=True)
def color_rows(
    face: np.ndarray, bary: np.ndarray, faces: np.ndarray, uv: np.ndarray, colors: np.ndarray, has_colors: bool,
    face_material: np.ndarray, face_has_uv: np.ndarray, factors: np.ndarray, cutoffs: np.ndarray,
    material_texture: np.ndarray, texels: np.ndarray, samplers: np.ndarray, decode: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Linear RGBA of fragments: face [rows, w], bary [rows, w, 2] -> out [rows, w, 4]."""
    for row in range(face.shape[0]):
        for column in range(face.shape[1]):
            f = face[row, column]
            if f < 0:
                for channel in range(4):
                    out[row, column, channel] = 0.0
                continue
            i, j, k = faces[f, 0], faces[f, 1], faces[f, 2]
            b0, b1 = bary[row, column, 0], bary[row, column, 1]
            b2 = np.float32(1.0) - b0 - b1
            material = face_material[f]
            red, green, blue = factors[material, 0], factors[material, 1], factors[material, 2]
            alpha = factors[material, 3]
            if has_colors:
                red *= b0 * colors[i, 0] + b1 * colors[j, 0] + b2 * colors[k, 0]
                green *= b0 * colors[i, 1] + b1 * colors[j, 1] + b2 * colors[k, 1]
                blue *= b0 * colors[i, 2] + b1 * colors[j, 2] + b2 * colors[k, 2]
                alpha *= b0 * colors[i, 3] + b1 * colors[j, 3] + b2 * colors[k, 3]
            texture = material_texture[material]
            if texture >= 0 and face_has_uv[f]:
                u = np.float64(b0) * uv[i, 0] + np.float64(b1) * uv[j, 0] + np.float64(b2) * uv[k, 0]
                v = np.float64(b0) * uv[i, 1] + np.float64(b1) * uv[j, 1] + np.float64(b2) * uv[k, 1]
                t_red, t_green, t_blue, t_alpha = look_up(u, v, texels, samplers, texture, decode)
                red, green, blue, alpha = red * t_red, green * t_green, blue * t_blue, alpha * t_alpha
            out[row, column, 0], out[row, column, 1], out[row, column, 2] = red, green, blue
            out[row, column, 3] = 0.0 if alpha < cutoffs[material] else 1.0


@njit(nogil=True, cache=True)
def average_rows(color: np.ndarray, covered: np.ndarray, s: int, rgb: np.ndarray, any_covered: np.ndarray) -> None:
    """Mean over the covered of s x s samples: color [h s, w s, 4], covered [h s, w s] -> rgb [h, w, 3], [h, w]."""
    for row in range(rgb.shape[0]):
        for column in range(rgb.shape[1]):
            red, green, blue, count = np.float32(0.0), np.float32(0.0), np.float32(0.0), 0
            for y in range(row * s, row * s + s):
                for x in range(column * s, column * s + s):
                    if covered[y, x]:
                        red += color[y, x, 0]
                        green += color[y, x, 1]
                        blue += color[y, x, 2]
                        count += 1
            scale = np.float32(1.0 / count) if count else np.float32(0.0)
            rgb[row, column, 0], rgb[row, column, 1], rgb[row, column, 2] = red * scale, green * scale, blue * scale
            any_covered[row, column] = count > 0


@njit(nogil=True, cache=True)
def encode_rows(linear: np.ndarray, steps: np.ndarray, guess: np.ndarray, out: np.ndarray) -> None:
    """Linear light [n] to the 8-bit sRGB level [n] whose interval of `steps` holds it."""
    for i in range(linear.shape[0]):
        value = linear[i]
        if not value > 0.0:
            out[i] = 0
            continue
        if value >= 1.0:
            out[i] = 255
            continue
        level = np.int64(guess[np.int64(value * np.float32(4096.0))])
        while level < 255 and value >= steps[level]:
            level += 1
        out[i] = level


@njit(nogil=True, cache=True)
def grow_once(color: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unknown texels next to known ones become the mean of those among their 8 neighbours."""
    height, width = known.shape
    grown, now_known = color.copy(), known.copy()
    for row in range(height):
        for column in range(width):
            if known[row, column]:
                continue
            count = 0
            for y in range(max(row - 1, 0), min(row + 2, height)):
                for x in range(max(column - 1, 0), min(column + 2, width)):
                    if known[y, x]:
                        count += 1
                        for channel in range(3):
                            grown[row, column, channel] += color[y, x, channel]
            if count:
                now_known[row, column] = True
                for channel in range(3):
                    grown[row, column, channel] /= np.float32(count)
    return grown, now_known


@njit(nogil=True, cache=True)
def pull(color: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Half the size (rounded up): mean of the known texels of each 2 x 2 block."""
    height, width = known.shape
    coarse = np.zeros(((height + 1) // 2, (width + 1) // 2, 3), np.float32)
    coarse_known = np.zeros(coarse.shape[:2], np.bool_)
    for row in range(coarse.shape[0]):
        for column in range(coarse.shape[1]):
            count = 0
            for y in range(2 * row, min(2 * row + 2, height)):
                for x in range(2 * column, min(2 * column + 2, width)):
                    if known[y, x]:
                        count += 1
                        for channel in range(3):
                            coarse[row, column, channel] += color[y, x, channel]
            if count:
                coarse_known[row, column] = True
                for channel in range(3):
                    coarse[row, column, channel] /= np.float32(count)
    return coarse, coarse_known


@njit(nogil=True, cache=True)
def push(color: np.ndarray, known: np.ndarray, coarse: np.ndarray) -> np.ndarray:
    """Unknown texels from the level of half the size, bilinearly."""
    height, width = known.shape
    last_row, last_column = coarse.shape[0] - 1, coarse.shape[1] - 1
    filled = color.copy()
    for row in range(height):
        # The centre of fine texel r lies at r / 2 - 1 / 4 among coarse centres: 3/4 of its parent, 1/4 of the next.
        near_y, far_y = row // 2, min(max(row // 2 + (1 if row % 2 else -1), 0), last_row)
        for column in range(width):
            if known[row, column]:
                continue
            near_x, far_x = column // 2, min(max(column // 2 + (1 if column % 2 else -1), 0), last_column)
            for channel in range(3):
                filled[row, column, channel] = np.float32(0.0625) * (
                    9.0 * coarse[near_y, near_x, channel] + 3.0 * coarse[near_y, far_x, channel]
                    + 3.0 * coarse[far_y, near_x, channel] + coarse[far_y, far_x, channel]
                )  # fmt: skip
    return filled
