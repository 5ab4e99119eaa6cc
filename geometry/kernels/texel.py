"""Compiled loops that colour the texels of a UV map."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

from typing import Any

import numpy as np
from numba import njit

from geometry.kernels.color import face_color, face_uv, frame_of, has_texture
from geometry.kernels.footprint import framed_uv, framed_weights, inside_span, slopes
from geometry.kernels.jit import BORROWING
from geometry.kernels.texture import norm
from geometry.kernels.weights import side_weights

SAME_CHART = 0.1
"""Two faces of a texel belong to one chart of the source if one's coordinates, continued to a point of the other, miss
it by less than this share of the footprint, or of a texel of the source."""
MAP_TEXELS, BORDER_TEXELS = 4.0, 16.0
"""`minor_texels` of `area_mean`: one texel of a map may be a single look-up; at the border of a chart, texels of a
small level would reach over it."""
LEAST_SPAN = 1e-12
"""Of a footprint, in normalised device coordinates; 0 would mean none."""
LEAST_WEIGHT = 1.0 / 512.0
"""Weight in a mean of colours of what is cut out altogether."""


@njit(forceinline=True, **BORROWING)
def opacity_of(alpha: float, cutoff: float) -> float:
    """Alpha shifted so that the cut lies at one half; 1 for opaque materials."""
    return 1.0 if cutoff < 0.0 else min(max(alpha - cutoff + 0.5, 0.0), 1.0)


@njit(forceinline=True, **BORROWING)
def continues(
    surface: Any, f: int, g: int, frame: np.ndarray, ndc_x: float, ndc_y: float, step_x: float, step_y: float,
    u: float, v: float, at_x: float, at_y: float, b0: float, b1: float,
) -> bool:  # fmt: skip
    """Return whether face `g`, at its point (at_x, at_y), carries on the coordinates that `f` has around (ndc_x,
    ndc_y)."""
    material = surface.face_material[f]
    if surface.has_colors or surface.face_material[g] != material or not surface.face_has_uv[g]:
        return False
    ux, vx, uy, vy = slopes(frame, ndc_x, ndc_y, u, v)
    g_u, g_v = face_uv(surface, g, b0, b1)
    sampler = surface.material_sampler[material]
    height, width = surface.samplers[sampler, 1], surface.samplers[sampler, 2]
    off_u = (u + ux * (at_x - ndc_x) + uy * (at_y - ndc_y) - g_u) * width
    off_v = (v + vx * (at_x - ndc_x) + vy * (at_y - ndc_y) - g_v) * height
    along_x, along_y = norm(ux * width, vx * height) * step_x, norm(uy * width, vy * height) * step_y
    return norm(off_u, off_v) <= SAME_CHART * max(1.0, min(along_x, along_y))


@njit(forceinline=True, **BORROWING)
def is_one_chart(
    surface: Any, f: int, b0: float, b1: float, frame: np.ndarray, side: np.ndarray,
    clip: np.ndarray, clip_faces: np.ndarray, row: int, column: int, s: int, rim: int,
) -> bool:  # fmt: skip
    """Return whether every sample of a texel, and as many more around it as `rim` says, lies on the face at its centre
    or on others that carry on its chart. Beyond the edge of the map all is well."""
    step_y, step_x = 2.0 * s / side.shape[0], 2.0 * s / side.shape[1]
    part_y, part_x = 2.0 / side.shape[0], 2.0 / side.shape[1]
    ndc_x, ndc_y = (column + 0.5) * step_x - 1.0, (row + 0.5) * step_y - 1.0
    textured = has_texture(surface, f)
    u, v = framed_uv(frame, b0, b1)
    for y in range(max(row * s - rim, 0), min(row * s + s + rim, side.shape[0])):
        for x in range(max(column * s - rim, 0), min(column * s + s + rim, side.shape[1])):
            g = side[y, x] >> 1
            if g == f:
                continue
            if g < 0 or not textured:
                return False
            at_x, at_y = (x + 0.5) * step_x / s - 1.0, (y + 0.5) * step_y / s - 1.0
            g0, g1 = side_weights(clip, clip_faces, side[y, x], (x + 0.5) * part_x - 1.0, (y + 0.5) * part_y - 1.0)
            if not continues(surface, f, g, frame, ndc_x, ndc_y, step_x, step_y, u, v, at_x, at_y, g0, g1):
                return False
    return True


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
        for y in range(max(row * s - 1, 0), min(row * s + s + 1, side.shape[0])):
            for x in range(max(column * s - 1, 0), min(column * s + s + 1, side.shape[1])):
                uniform = uniform and side[y, x] >> 1 == f
    return count, uniform


@njit(**BORROWING)
def texel_rows(
    surface: Any, centre_face: np.ndarray, centre_bary: np.ndarray, side: np.ndarray, s: int, clip: np.ndarray,
    clip_faces: np.ndarray, frame: np.ndarray, out: np.ndarray, known: np.ndarray, seen: np.ndarray,
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
                whole = count == 0 or is_one_chart(
                    surface, f, b0, b1, frame, side, clip, clip_faces, row, column, s, np.int64(0)
                )
                if whole:
                    clipped = not is_one_chart(
                        surface, f, b0, b1, frame, side, clip, clip_faces, row, column, s, np.int64(1)
                    )
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
