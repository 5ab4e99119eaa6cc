"""Compiled loops that colour the texels of a UV map."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

from typing import Any

import numpy as np
from numba import njit

from geometry.kernels.color import corners_of, face_color, frame_of, has_texture
from geometry.kernels.footprint import FRAME_SIZE, framed_uv, framed_weights, inside_span, slopes
from geometry.kernels.jit import BORROWING
from geometry.kernels.texture import norm

SAME_CHART = 0.1
"""Two faces of a texel belong to one chart of the source if one's coordinates, continued to a point of the other, miss
it by less than this share of the footprint, or of a texel of the source."""
MAP_TEXELS, BORDER_TEXELS = 4.0, 16.0
"""`minor_texels` of `area_mean`: one texel of a map may be a single look-up; at the border of a chart, texels of a
small level would reach over it."""
LEAST_SPAN = 1e-12
"""Smallest span of a footprint, in normalised device coordinates; 0 would mean none."""
LEAST_WEIGHT = 1.0 / 512.0
"""Weight in a mean of colours of what is cut out altogether."""


@njit(forceinline=True, **BORROWING)
def opacity_of(alpha: float, cutoff: float) -> float:
    """Alpha shifted so that the cut lies at one half; 1 for opaque materials."""
    return 1.0 if cutoff < 0.0 else min(max(alpha - cutoff + 0.5, 0.0), 1.0)


@njit(forceinline=True, **BORROWING)
def chart_reach(
    surface: Any, f: int, b0: float, b1: float, frame: np.ndarray, other: np.ndarray, side: np.ndarray,
    clip: np.ndarray, clip_faces: np.ndarray, row: int, column: int, s: int,
) -> int:  # fmt: skip
    """Return the reach of the chart at a texel's centre: 2 where all of the texel's samples and those just around them
    lie on the face there or on others that carry on its coordinates, 1 where the texel's own do, else 0. Beyond the
    edge of the map all is well. `other`: a frame of the face whose number is `other[FRAME_SIZE]`."""
    height_s, width_s = side.shape
    step_y, step_x = 2.0 * s / height_s, 2.0 * s / width_s
    part_y, part_x = 2.0 / height_s, 2.0 / width_s
    ndc_x, ndc_y = (column + 0.5) * step_x - 1.0, (row + 0.5) * step_y - 1.0
    material, top, left = surface.face_material[f], row * s, column * s
    comparable = has_texture(surface, f) and not surface.has_colors
    u, v, ux, vx, uy, vy, width, height, limit = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    if comparable:
        u, v = framed_uv(frame, b0, b1)
        ux, vx, uy, vy = slopes(frame, ndc_x, ndc_y, u, v)
        sampler = surface.material_sampler[material]
        height, width = np.float64(surface.samplers[sampler, 1]), np.float64(surface.samplers[sampler, 2])
        along_x, along_y = norm(ux * width, vx * height) * step_x, norm(uy * width, vy * height) * step_y
        limit = SAME_CHART * max(1.0, min(along_x, along_y))
    for rim in range(2):
        for y in range(max(top - rim, 0), min(top + s + rim, height_s)):
            for x in range(max(left - rim, 0), min(left + s + rim, width_s)):
                g = side[y, x] >> 1
                if g == f or (rim == 1 and top <= y < top + s and left <= x < left + s):
                    continue
                if g < 0 or not comparable or surface.face_material[g] != material or not surface.face_has_uv[g]:
                    return rim
                if other[FRAME_SIZE] != g:
                    corners_of(surface, g, clip, clip_faces, other)
                    other[FRAME_SIZE] = g
                g0, g1 = framed_weights(other, side[y, x] & 1, (x + 0.5) * part_x - 1.0, (y + 0.5) * part_y - 1.0)
                g_u, g_v = framed_uv(other, g0, g1)
                at_x, at_y = (x + 0.5) * step_x / s - 1.0, (y + 0.5) * step_y / s - 1.0
                off_u = (u + ux * (at_x - ndc_x) + uy * (at_y - ndc_y) - g_u) * width
                off_v = (v + vx * (at_x - ndc_x) + vy * (at_y - ndc_y) - g_v) * height
                if not norm(off_u, off_v) <= limit:
                    return rim
    return 2


@njit(forceinline=True, **BORROWING)
def clip_footprint(
    frame: np.ndarray, b0: float, b1: float, width: int, height: int, step_x: float, step_y: float
) -> tuple[float, float, float, float]:
    """A footprint in a flat layout, cut off where its face ends: weights of its centre, and its sides. Only where the
    texture (width x height) is minified; elsewhere nothing beyond the point counts anyway."""
    ux, vx, uy, vy = slopes(frame, 0.0, 0.0, frame[3], frame[4])
    scale = 1.0 / frame[2] if frame[2] != 0.0 else 0.0
    if norm(ux * width, vx * height) * step_x > 1.0:
        low, high = inside_span(frame, np.int64(0), b0, b1, step_x)
        middle, step_x = 0.5 * (low + high), max(high - low, LEAST_SPAN)
        b0, b1 = b0 + frame[9] * scale * middle, b1 + frame[11] * scale * middle
    if norm(uy * width, vy * height) * step_y > 1.0:
        low, high = inside_span(frame, np.int64(1), b0, b1, step_y)
        middle, step_y = 0.5 * (low + high), max(high - low, LEAST_SPAN)
        b0, b1 = b0 + frame[10] * scale * middle, b1 + frame[12] * scale * middle
    return b0, b1, step_x, step_y


@njit(forceinline=True, **BORROWING)
def look_around(side: np.ndarray, f: int, row: int, column: int, s: int, seen: np.ndarray) -> tuple[int, bool]:
    """Number of a texel's samples that lie on some face, which are marked as seen, and whether these and those just
    around them all lie on face `f`."""
    count, uniform = 0, f >= 0
    for y in range(row * s, row * s + s):
        for x in range(column * s, column * s + s):
            g = side[y, x] >> 1
            uniform = uniform and g == f
            if g >= 0:
                seen[g] = True
                count += 1
    if uniform:
        first, last = max(column * s - 1, 0), min(column * s + s, side.shape[1] - 1)
        above, below = max(row * s - 1, 0), min(row * s + s, side.shape[0] - 1)
        for x in range(first, last + 1):
            uniform = uniform and side[above, x] >> 1 == f and side[below, x] >> 1 == f
        for y in range(row * s, row * s + s):
            uniform = uniform and side[y, first] >> 1 == f and side[y, last] >> 1 == f
    return count, uniform


@njit(**BORROWING)
def texel_rows(
    surface: Any, centre_face: np.ndarray, centre_bary: np.ndarray, side: np.ndarray, s: int, clip: np.ndarray,
    clip_faces: np.ndarray, frame: np.ndarray, other: np.ndarray, out: np.ndarray, known: np.ndarray, seen: np.ndarray,
) -> None:  # fmt: skip
    """Linear RGB and, where out has a fourth channel, opacity of the texels of a map.

    centre_face [h, w], centre_bary [h, w, 2]; side [h s, w s]; clip [n, 4], clip_faces [f, 3]
    -> out [h, w, 3 or 4], known [h, w], seen [f]: faces that some sample met.

    A texel inside a chart is one look-up over its whole footprint, so that a map of the source's own layout and size is
    the source; next to a border it ends with its face. A texel on a border is the mean of its covered samples, each
    over its own part of its own face.
    """
    height, width, channels = out.shape
    framed = -1
    for row in range(height):
        for column in range(width):
            f = centre_face[row, column]
            count, uniform = look_around(side, f, row, column, s, seen)
            known[row, column] = f >= 0 or count > 0
            for channel in range(channels):
                out[row, column, channel] = 0.0
            if not known[row, column]:
                continue
            whole, clipped = uniform, not uniform
            if f >= 0 and not uniform:
                seen[f] = True
                if f != framed:
                    frame_of(surface, f, clip, clip_faces, frame)
                    framed = f
                b0, b1 = centre_bary[row, column, 0], centre_bary[row, column, 1]
                reach = chart_reach(surface, f, b0, b1, frame, other, side, clip, clip_faces, row, column, s)
                whole, clipped = count == 0 or reach > 0, reach < 2
            total, parts = 0.0, 1 if whole else s
            step_y, step_x = 2.0 / (height * parts), 2.0 / (width * parts)
            for y in range(row * parts, row * parts + parts):
                for x in range(column * parts, column * parts + parts):
                    g = f if whole else side[y, x] >> 1
                    if g < 0:
                        continue
                    if g != framed:
                        frame_of(surface, g, clip, clip_faces, frame)
                        framed = g
                    ndc_x, ndc_y = (x + 0.5) * step_x - 1.0, (y + 0.5) * step_y - 1.0
                    if whole:
                        b0, b1 = np.float64(centre_bary[y, x, 0]), np.float64(centre_bary[y, x, 1])
                    else:
                        g0, g1 = framed_weights(frame, side[y, x] & 1, ndc_x, ndc_y)
                        b0, b1 = np.float64(g0), np.float64(g1)
                    along_x, along_y, minor_texels = step_x, step_y, MAP_TEXELS
                    material = surface.face_material[g]
                    if clipped and has_texture(surface, g):
                        minor_texels, sampler = BORDER_TEXELS, surface.material_sampler[material]
                        b0, b1, along_x, along_y = clip_footprint(
                            frame, b0, b1, surface.samplers[sampler, 2], surface.samplers[sampler, 1], step_x, step_y
                        )
                    red, green, blue, alpha = face_color(
                        surface, g, np.float32(b0), np.float32(b1), frame, ndc_x, ndc_y, along_x, along_y, minor_texels
                    )  # fmt: skip
                    opacity = opacity_of(alpha, surface.cutoffs[material])
                    weight = max(opacity, LEAST_WEIGHT)
                    out[row, column, 0] += weight * red
                    out[row, column, 1] += weight * green
                    out[row, column, 2] += weight * blue
                    total += weight
                    if channels == 4:
                        out[row, column, 3] += opacity / (1 if whole else count)
            for channel in range(3):
                out[row, column, channel] /= total
