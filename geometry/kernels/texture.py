"""Compiled loops of texture look-up: over footprints, from mip levels, at points."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.jit import BORROWING

RUN = 256
"""Fragments that are looked up together: what is kept of them stays in a processor's innermost cache."""
MIP_SCALE = 65535.0
"""Linear light and alpha of mip levels are stored as 16-bit fractions: 1/40 of the smallest 8-bit sRGB step."""
MAJOR_TEXELS = 16.0
"""A footprint is summed in a level where its long side spans no more texels than this."""
SLACK_TEXELS = 0.01
"""Footprints this much over a whole number of texels count as that number (coordinates are float32)."""
HUGE_TEXELS = 1e9
"""Longer footprints belong to faces seen edge-on; they are cut to this."""


@njit(forceinline=True, **BORROWING)
def norm(x: float, y: float) -> float:
    """Length of a vector (`np.hypot` guards against overflow at ten times the price)."""
    return np.sqrt(x * x + y * y)


@njit(forceinline=True, **BORROWING)
def reduce_coordinate(coordinate: float, wrap: int) -> float:
    """A texture coordinate brought near [0, 1] before it becomes a texel index (they may be 1e20); NaN counts as 0."""
    if not np.isfinite(coordinate):
        return 0.0
    if wrap == 0:
        return coordinate - np.floor(coordinate)
    if wrap == 1:
        return coordinate - 2.0 * np.floor(coordinate * 0.5)
    return min(max(coordinate, -1.0), 2.0)


@njit(forceinline=True, **BORROWING)
def wrap_index(index: int, size: int, wrap: int) -> int:
    """Texel index in [0, size) under repeat (0), mirror (1) or clamp (2), one texel around a reduced coordinate: -1 to
    size, or to 2 size when mirrored. (A division per texel would cost more than the rest of the look-up.)"""
    if wrap == 0:
        index = index + size if index < 0 else (index - size if index >= size else index)
    elif wrap == 1:
        index = 2 * size - 1 - index if index >= size else index
    return min(max(index, 0), size - 1)


@njit(forceinline=True, **BORROWING)
def corners(
    x: float, y: float, first: int, height: int, width: int, wrap_u: int, wrap_v: int
) -> tuple[int, int, int, int, float, float, float, float]:
    """The four texels around a point (x right, y down, texel centres at .5), as rows of a texel list, and their
    weights."""
    left, top = np.floor(x - 0.5), np.floor(y - 0.5)
    column0, row0 = np.int64(left), np.int64(top)
    column1, row1 = column0 + 1, row0 + 1
    if column0 < 0 or column1 >= width:
        column0, column1 = wrap_index(column0, width, wrap_u), wrap_index(column1, width, wrap_u)
    if row0 < 0 or row1 >= height:
        row0, row1 = wrap_index(row0, height, wrap_v), wrap_index(row1, height, wrap_v)
    fx, fy = np.float32(x - 0.5 - left), np.float32(y - 0.5 - top)
    gx, gy = np.float32(1.0) - fx, np.float32(1.0) - fy
    t00, t01 = np.uint64(first + row0 * width + column0), np.uint64(first + row0 * width + column1)
    t10, t11 = np.uint64(first + row1 * width + column0), np.uint64(first + row1 * width + column1)
    return t00, t01, t10, t11, gx * gy, fx * gy, gx * fy, fx * fy


@njit(forceinline=True, **BORROWING)
def weigh_texels(
    texels: np.ndarray, decode: np.ndarray, t00: int, t01: int, t10: int, t11: int,
    w00: float, w01: float, w10: float, w11: float, with_alpha: bool,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Linear RGBA of four texels by their weights; alpha 1 where it is not asked for."""
    # Plain scalar indexing: a row view costs two atomic reference counts.
    red = w00 * decode[texels[t00, 0]] + w01 * decode[texels[t01, 0]]
    red += w10 * decode[texels[t10, 0]] + w11 * decode[texels[t11, 0]]
    green = w00 * decode[texels[t00, 1]] + w01 * decode[texels[t01, 1]]
    green += w10 * decode[texels[t10, 1]] + w11 * decode[texels[t11, 1]]
    blue = w00 * decode[texels[t00, 2]] + w01 * decode[texels[t01, 2]]
    blue += w10 * decode[texels[t10, 2]] + w11 * decode[texels[t11, 2]]
    if not with_alpha:
        return red, green, blue, np.float32(1.0)
    alpha = w00 * np.float32(texels[t00, 3]) + w01 * np.float32(texels[t01, 3])
    alpha += w10 * np.float32(texels[t10, 3]) + w11 * np.float32(texels[t11, 3])
    return red, green, blue, alpha * np.float32(1.0 / 255.0)


@njit(forceinline=True, **BORROWING)
def look_up(
    u: float, v: float, texels: np.ndarray, samplers: np.ndarray, sampler: int, decode: np.ndarray, nearest: bool,
    with_alpha: bool,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Linear RGBA of a texture at a point (u, v), v up, filtered in linear light; alpha 1 where it is not asked for."""
    first, height, width = samplers[sampler, 0], samplers[sampler, 1], samplers[sampler, 2]
    wrap_u, wrap_v = samplers[sampler, 3], samplers[sampler, 4]
    x = reduce_coordinate(u, wrap_u) * width
    y = reduce_coordinate(1.0 - v, wrap_v) * height
    if nearest:  # bilinear at the texel's centre
        x, y = np.floor(x) + 0.5, np.floor(y) + 0.5
    t00, t01, t10, t11, w00, w01, w10, w11 = corners(x, y, first, height, width, wrap_u, wrap_v)
    return weigh_texels(texels, decode, t00, t01, t10, t11, w00, w01, w10, w11, with_alpha)


@njit(**BORROWING)
def corner_run(
    u: np.ndarray, v: np.ndarray, count: int, samplers: np.ndarray, sampler: int, at: np.ndarray, weights: np.ndarray
) -> None:
    """The four texels that `look_up` weighs, and their weights, at the first `count` of points (u, v), without
    branches, for vector instructions. Those of corner c start at c x RUN: at [4 RUN], weights [4 RUN]."""
    first, height, width = samplers[sampler, 0], samplers[sampler, 1], samplers[sampler, 2]
    wrap_u, wrap_v, nearest = samplers[sampler, 3], samplers[sampler, 4], samplers[sampler, 5] != 0
    for point in range(count):
        x = reduce_coordinate(u[point], wrap_u) * width
        y = reduce_coordinate(1.0 - v[point], wrap_v) * height
        if nearest:
            x, y = np.floor(x) + 0.5, np.floor(y) + 0.5
        t00, t01, t10, t11, w00, w01, w10, w11 = corners(x, y, first, height, width, wrap_u, wrap_v)
        at[point], at[point + RUN], at[point + 2 * RUN], at[point + 3 * RUN] = t00, t01, t10, t11
        weights[point], weights[point + RUN] = w00, w01
        weights[point + 2 * RUN], weights[point + 3 * RUN] = w10, w11


@njit(**BORROWING)
def texel_run(
    texels: np.ndarray, decode: np.ndarray, at: np.ndarray, weights: np.ndarray, with_alpha: bool, row: int, first: int,
    last: int, out: np.ndarray,
) -> None:  # fmt: skip
    """Write what `look_up` finds, from what `corner_run` leaves, to columns `first:last` of a row of out [h, w, 4]."""
    for column in range(first, last):
        point = column - first
        red, green, blue, alpha = weigh_texels(
            texels, decode, at[point], at[point + RUN], at[point + 2 * RUN], at[point + 3 * RUN],
            weights[point], weights[point + RUN], weights[point + 2 * RUN], weights[point + 3 * RUN], with_alpha,
        )  # fmt: skip
        out[row, column, 0], out[row, column, 1], out[row, column, 2], out[row, column, 3] = red, green, blue, alpha


@njit(forceinline=True, **BORROWING)
def look_up_mip(
    u: float, v: float, mips: np.ndarray, levels: np.ndarray, level: int, wrap_u: int, wrap_v: int, with_alpha: bool
) -> tuple[float, float, float, float]:
    """The same from row `level` of the table of mip levels."""
    first, height, width = levels[level, 0], levels[level, 1], levels[level, 2]
    x = reduce_coordinate(u, wrap_u) * width
    y = reduce_coordinate(1.0 - v, wrap_v) * height
    t00, t01, t10, t11, w00, w01, w10, w11 = corners(x, y, first, height, width, wrap_u, wrap_v)
    scale = np.float32(1.0 / MIP_SCALE)
    w00, w01, w10, w11 = w00 * scale, w01 * scale, w10 * scale, w11 * scale
    red = w00 * np.float32(mips[t00, 0]) + w01 * np.float32(mips[t01, 0])
    red += w10 * np.float32(mips[t10, 0]) + w11 * np.float32(mips[t11, 0])
    green = w00 * np.float32(mips[t00, 1]) + w01 * np.float32(mips[t01, 1])
    green += w10 * np.float32(mips[t10, 1]) + w11 * np.float32(mips[t11, 1])
    blue = w00 * np.float32(mips[t00, 2]) + w01 * np.float32(mips[t01, 2])
    blue += w10 * np.float32(mips[t10, 2]) + w11 * np.float32(mips[t11, 2])
    if not with_alpha:
        return red, green, blue, np.float32(1.0)
    alpha = w00 * np.float32(mips[t00, 3]) + w01 * np.float32(mips[t01, 3])
    alpha += w10 * np.float32(mips[t10, 3]) + w11 * np.float32(mips[t11, 3])
    return red, green, blue, alpha


@njit(forceinline=True, **BORROWING)
def probe_step(texels: float, probes: int) -> float:
    """Distance between probes, as a share of a footprint `texels` long. A bilinear probe is a box one texel wide: n of
    them side by side are a box of n texels exactly, and in between they overlap evenly and reach just as far."""
    return (min(texels, MAJOR_TEXELS) - 1.0) / ((probes - 1) * texels) if probes > 1 else 0.0


@njit(forceinline=True, **BORROWING)
def sum_probes(
    u: float, v: float, ux: float, vx: float, uy: float, vy: float, along_x: float, along_y: float,
    texels: np.ndarray, mips: np.ndarray, levels: np.ndarray, samplers: np.ndarray, sampler: int, decode: np.ndarray,
    with_alpha: bool, minor_texels: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """`area_mean` of a footprint whose sides are `along_x` and `along_y` texels long, one of them more than one."""
    along_x, along_y = min(along_x, HUGE_TEXELS), min(along_y, HUGE_TEXELS)
    level, last = -1, samplers[sampler, 7] - 1
    while level < last and (min(along_x, along_y) > minor_texels or max(along_x, along_y) > MAJOR_TEXELS):
        level, along_x, along_y = level + 1, along_x * 0.5, along_y * 0.5
    probes_x = np.int64(max(np.ceil(min(along_x, MAJOR_TEXELS) - SLACK_TEXELS), 1.0))
    probes_y = np.int64(max(np.ceil(min(along_y, MAJOR_TEXELS) - SLACK_TEXELS), 1.0))
    step_x, step_y = probe_step(along_x, probes_x), probe_step(along_y, probes_y)
    red, green, blue, alpha, total = 0.0, 0.0, 0.0, 0.0, 0.0
    for y in range(probes_y):
        share_y = (y - 0.5 * (probes_y - 1)) * step_y
        for x in range(probes_x):
            share_x = (x - 0.5 * (probes_x - 1)) * step_x
            at_u, at_v = u + share_x * ux + share_y * uy, v + share_x * vx + share_y * vy
            if level < 0:
                r, g, b, a = look_up(at_u, at_v, texels, samplers, sampler, decode, np.bool_(False), with_alpha)
            else:
                r, g, b, a = look_up_mip(
                    at_u, at_v, mips, levels, samplers[sampler, 6] + level, samplers[sampler, 3], samplers[sampler, 4],
                    with_alpha,
                )  # fmt: skip
            weight = max(a, 1e-4) if with_alpha else 1.0
            red, green, blue, total = red + weight * r, green + weight * g, blue + weight * b, total + weight
            alpha += a
    count = probes_x * probes_y
    if not with_alpha and (count == 4 or count == 2):  # multiplying by these is as exact as dividing
        scale = 0.25 if count == 4 else 0.5
        return red * scale, green * scale, blue * scale, 1.0
    return red / total, green / total, blue / total, alpha / count


@njit(forceinline=True, **BORROWING)
def area_mean(
    u: float, v: float, ux: float, vx: float, uy: float, vy: float,
    texels: np.ndarray, mips: np.ndarray, levels: np.ndarray, samplers: np.ndarray, sampler: int, decode: np.ndarray,
    with_alpha: bool, minor_texels: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Linear RGBA of a texture, mean over the parallelogram with centre (u, v) and sides (ux, vx), (uy, vy). Colours
    are weighted by alpha if it is asked for; else it is 1.

    A footprint of up to one texel is magnification: the point look-up of the texture's own filter. A larger one is
    summed in a level where its short side spans `minor_texels` at most: the more, the less does the level's grid show.
    """
    height, width = samplers[sampler, 1], samplers[sampler, 2]
    square_x = (ux * width) * (ux * width) + (vx * height) * (vx * height)
    square_y = (uy * width) * (uy * width) + (vy * height) * (vy * height)
    if square_x <= 1.0 and square_y <= 1.0:
        return look_up(u, v, texels, samplers, sampler, decode, samplers[sampler, 5] != 0, with_alpha)
    along_x, along_y = np.sqrt(square_x), np.sqrt(square_y)
    if not (along_x > 1.0 + SLACK_TEXELS or along_y > 1.0 + SLACK_TEXELS):
        return look_up(u, v, texels, samplers, sampler, decode, samplers[sampler, 5] != 0, with_alpha)
    return sum_probes(
        u, v, ux, vx, uy, vy, along_x, along_y, texels, mips, levels, samplers, sampler, decode, with_alpha,
        minor_texels,
    )  # fmt: skip
