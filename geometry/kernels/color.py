"""Compiled loops that colour fragments: of views, of UV maps; and those that average and encode colours."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

from typing import Any

import numpy as np
from numba import njit

from geometry.kernels.footprint import fill_frame, inside_span, slopes
from geometry.kernels.jit import BORROWING
from geometry.kernels.texture import area_mean, norm

SAME_CHART = 0.1
"""Two faces of a texel belong to one chart of the source if one's coordinates, continued to a point of the other, miss
it by less than this share of the footprint, or of a texel of the source."""
VIEW_TEXELS, MAP_TEXELS, BORDER_TEXELS = 2.0, 4.0, 16.0
"""`minor_texels` of `area_mean`: a pixel of a view is the mean of several look-ups anyway; one texel of a map may be a
single one; at the border of a chart, texels of a small level would reach over it."""
LEAST_SPAN = 1e-12
"""Of a footprint, in normalised device coordinates; 0 would mean none."""
LEAST_WEIGHT = 1.0 / 512.0
"""Weight in a mean of colours of what is cut out altogether."""


@njit(inline="always", **BORROWING)
def face_uv(surface: Any, f: int, b0: float, b1: float) -> tuple[float, float]:
    """Texture coordinates at a point of a face, in float64: they may be large."""
    i, j, k = surface.faces[f, 0], surface.faces[f, 1], surface.faces[f, 2]
    uv = surface.uv
    weight0, weight1 = np.float64(b0), np.float64(b1)
    weight2 = np.float64(np.float32(1.0) - b0 - b1)
    return (
        weight0 * uv[i, 0] + weight1 * uv[j, 0] + weight2 * uv[k, 0],
        weight0 * uv[i, 1] + weight1 * uv[j, 1] + weight2 * uv[k, 1],
    )


@njit(**BORROWING)
def frame_of(surface: Any, f: int, clip: np.ndarray, clip_faces: np.ndarray, frame: np.ndarray) -> None:
    """`fill_frame` for face `f` of a surface whose corners lie at `clip`."""
    i, j, k = surface.faces[f, 0], surface.faces[f, 1], surface.faces[f, 2]
    uv = surface.uv
    fill_frame(
        clip, clip_faces[f, 0], clip_faces[f, 1], clip_faces[f, 2],
        np.float64(uv[i, 0]), np.float64(uv[i, 1]), np.float64(uv[j, 0]), np.float64(uv[j, 1]),
        np.float64(uv[k, 0]), np.float64(uv[k, 1]), frame,
    )  # fmt: skip


@njit(inline="always", **BORROWING)
def has_texture(surface: Any, f: int) -> bool:
    """Whether a face shows a texture."""
    return surface.material_sampler[surface.face_material[f]] >= 0 and surface.face_has_uv[f]


@njit(inline="always", **BORROWING)
def face_color(
    surface: Any, f: int, b0: float, b1: float,
    frame: np.ndarray, ndc_x: float, ndc_y: float, step_x: float, step_y: float, minor_texels: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Linear RGBA at a point of a face: factor x vertex colour x texture over a footprint of step_x x step_y in
    normalised device coordinates; without size: at the point."""
    material = surface.face_material[f]
    factors = surface.factors
    red, green, blue, alpha = factors[material, 0], factors[material, 1], factors[material, 2], factors[material, 3]
    if surface.has_colors:
        colors = surface.colors
        i, j, k = surface.faces[f, 0], surface.faces[f, 1], surface.faces[f, 2]
        b2 = np.float32(1.0) - b0 - b1
        red *= b0 * colors[i, 0] + b1 * colors[j, 0] + b2 * colors[k, 0]
        green *= b0 * colors[i, 1] + b1 * colors[j, 1] + b2 * colors[k, 1]
        blue *= b0 * colors[i, 2] + b1 * colors[j, 2] + b2 * colors[k, 2]
        alpha *= b0 * colors[i, 3] + b1 * colors[j, 3] + b2 * colors[k, 3]
    if has_texture(surface, f):
        u, v = face_uv(surface, f, b0, b1)
        ux, vx, uy, vy = 0.0, 0.0, 0.0, 0.0
        if step_x > 0.0:
            ux, vx, uy, vy = slopes(frame, ndc_x, ndc_y, u, v)
        t_red, t_green, t_blue, t_alpha = area_mean(
            u, v, ux * step_x, vx * step_x, uy * step_y, vy * step_y,
            surface.texels, surface.mips, surface.levels, surface.samplers, surface.material_sampler[material],
            surface.decode, surface.cutoffs[material] >= 0.0, minor_texels,
        )  # fmt: skip
        red, green, blue, alpha = red * t_red, green * t_green, blue * t_blue, alpha * t_alpha
    return red, green, blue, alpha


@njit(**BORROWING)
def color_rows(
    surface: Any,
    face: np.ndarray,
    bary: np.ndarray,
    clip: np.ndarray,
    footprints: bool,
    frame: np.ndarray,
    out: np.ndarray,
) -> None:
    """Linear RGBA of the fragments of one image: face [h, w], bary [h, w, 2], clip [v, 4] -> out [h, w, 4]."""
    height, width = face.shape
    framed = -1
    step_x, step_y = (2.0 / width, 2.0 / height) if footprints else (0.0, 0.0)
    for row in range(height):
        ndc_y = (row + 0.5) * step_y - 1.0
        for column in range(width):
            f = face[row, column]
            if f < 0:
                for channel in range(4):
                    out[row, column, channel] = 0.0
                continue
            if footprints and f != framed:
                frame_of(surface, f, clip, surface.faces, frame)
                framed = f
            ndc_x = (column + 0.5) * step_x - 1.0
            red, green, blue, alpha = face_color(
                surface,
                f,
                bary[row, column, 0],
                bary[row, column, 1],
                frame,
                ndc_x,
                ndc_y,
                step_x,
                step_y,
                VIEW_TEXELS,
            )
            out[row, column, 0], out[row, column, 1], out[row, column, 2] = red, green, blue
            out[row, column, 3] = 0.0 if alpha < surface.cutoffs[surface.face_material[f]] else 1.0


@njit(inline="always", **BORROWING)
def opacity_of(alpha: float, cutoff: float) -> float:
    """Alpha shifted so that the cut lies at one half; 1 for opaque materials."""
    return 1.0 if cutoff < 0.0 else min(max(alpha - cutoff + 0.5, 0.0), 1.0)


@njit(**BORROWING)
def continues(
    surface: Any, f: int, g: int, frame: np.ndarray, ndc_x: float, ndc_y: float, step_x: float, step_y: float,
    u: float, v: float, at_x: float, at_y: float, b0: float, b1: float,
) -> bool:  # fmt: skip
    """Whether face `g`, at its point (at_x, at_y), carries on the coordinates that `f` has around (ndc_x, ndc_y)."""
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


@njit(**BORROWING)
def is_one_chart(
    surface: Any, f: int, b0: float, b1: float, frame: np.ndarray, face: np.ndarray, bary: np.ndarray,
    row: int, column: int, s: int, rim: int,
) -> bool:  # fmt: skip
    """Whether every sample of a texel, and as many more around it as `rim` says, lies on the face at its centre or on
    others that carry on its chart. Beyond the edge of the map all is well."""
    step_y, step_x = 2.0 * s / face.shape[0], 2.0 * s / face.shape[1]
    ndc_x, ndc_y = (column + 0.5) * step_x - 1.0, (row + 0.5) * step_y - 1.0
    textured = has_texture(surface, f)
    u, v = face_uv(surface, f, b0, b1)
    for y in range(max(row * s - rim, 0), min(row * s + s + rim, face.shape[0])):
        for x in range(max(column * s - rim, 0), min(column * s + s + rim, face.shape[1])):
            g = face[y, x]
            if g == f:
                continue
            if g < 0 or not textured:
                return False
            at_x, at_y = (x + 0.5) * step_x / s - 1.0, (y + 0.5) * step_y / s - 1.0
            if not continues(
                surface, f, g, frame, ndc_x, ndc_y, step_x, step_y, u, v, at_x, at_y, bary[y, x, 0], bary[y, x, 1]
            ):
                return False
    return True


@njit(**BORROWING)
def clip_footprint(
    frame: np.ndarray, b0: float, b1: float, width: int, height: int, step_x: float, step_y: float
) -> tuple[float, float, float, float]:
    """A footprint in a flat layout, cut off where its face ends: weights of its centre, and its sides. Only where the
    texture (width x height) is minified; elsewhere nothing beyond the point counts anyway."""
    ux, vx, uy, vy = slopes(frame, 0.0, 0.0, frame[3], frame[4])
    scale = 1.0 / frame[2] if frame[2] != 0.0 else 0.0
    if norm(ux * width, vx * height) * step_x > 1.0:
        low, high = inside_span(frame, 0, b0, b1, step_x)
        middle, step_x = 0.5 * (low + high), max(high - low, LEAST_SPAN)
        b0, b1 = b0 + frame[9] * scale * middle, b1 + frame[11] * scale * middle
    if norm(uy * width, vy * height) * step_y > 1.0:
        low, high = inside_span(frame, 1, b0, b1, step_y)
        middle, step_y = 0.5 * (low + high), max(high - low, LEAST_SPAN)
        b0, b1 = b0 + frame[10] * scale * middle, b1 + frame[12] * scale * middle
    return b0, b1, step_x, step_y


@njit(inline="always", **BORROWING)
def look_around(face: np.ndarray, f: int, row: int, column: int, s: int, seen: np.ndarray) -> tuple[int, bool]:
    """Number of a texel's samples that lie on some face, which are marked as seen, and whether these and those just
    around them all lie on face `f`."""
    count, uniform = 0, f >= 0
    for y in range(max(row * s - 1, 0), min(row * s + s + 1, face.shape[0])):
        for x in range(max(column * s - 1, 0), min(column * s + s + 1, face.shape[1])):
            g = face[y, x]
            uniform = uniform and g == f
            if g >= 0 and row * s <= y < row * s + s and column * s <= x < column * s + s:
                seen[g] = True
                count += 1
    return count, uniform


@njit(**BORROWING)
def texel_rows(
    surface: Any, centre_face: np.ndarray, centre_bary: np.ndarray, face: np.ndarray, bary: np.ndarray, s: int,
    clip: np.ndarray, clip_faces: np.ndarray, frame: np.ndarray, out: np.ndarray, known: np.ndarray, seen: np.ndarray,
) -> None:  # fmt: skip
    """Linear RGB and, where out has a fourth channel, opacity of the texels of a map.

    centre_face [h, w], centre_bary [h, w, 2]; face [h s, w s], bary [h s, w s, 2]; clip [n, 4], clip_faces [f, 3]
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
            count, uniform = look_around(face, f, row, column, s, seen)
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
                whole = count == 0 or is_one_chart(surface, f, b0, b1, frame, face, bary, row, column, s, 0)
                if whole:
                    clipped = not is_one_chart(surface, f, b0, b1, frame, face, bary, row, column, s, 1)
            total, parts = 0.0, 1 if whole else s
            step_y, step_x = 2.0 / (height * parts), 2.0 / (width * parts)
            for y in range(row * parts, row * parts + parts):
                for x in range(column * parts, column * parts + parts):
                    g = f if whole else face[y, x]
                    if g < 0:
                        continue
                    if g != framed:
                        frame_of(surface, g, clip, clip_faces, frame)
                        framed = g
                    b0 = np.float64(centre_bary[y, x, 0] if whole else bary[y, x, 0])
                    b1 = np.float64(centre_bary[y, x, 1] if whole else bary[y, x, 1])
                    along_x, along_y, minor_texels = step_x, step_y, MAP_TEXELS
                    material = surface.face_material[g]
                    if clipped and has_texture(surface, g):
                        minor_texels, sampler = BORDER_TEXELS, surface.material_sampler[material]
                        b0, b1, along_x, along_y = clip_footprint(
                            frame, b0, b1, surface.samplers[sampler, 2], surface.samplers[sampler, 1], step_x, step_y
                        )
                    red, green, blue, alpha = face_color(
                        surface, g, np.float32(b0), np.float32(b1), frame,
                        (x + 0.5) * step_x - 1.0, (y + 0.5) * step_y - 1.0, along_x, along_y, minor_texels,
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


@njit(**BORROWING)
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


@njit(**BORROWING)
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
