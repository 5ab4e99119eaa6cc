"""Compiled loops that colour the fragments of views."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

from typing import Any

import numpy as np
from numba import njit

from geometry.kernels.footprint import fill_corners, fill_frame, framed_uv, framed_weights, slopes
from geometry.kernels.jit import BORROWING
from geometry.kernels.texture import RUN, area_mean, corner_run, texel_run

VIEW_TEXELS = 2.0
"""`minor_texels` of `area_mean` in views, whose pixels are means of several look-ups anyway."""


@njit(forceinline=True, **BORROWING)
def face_corners(surface: Any, f: int) -> tuple[int, int, int]:
    """Vertices of a face, unsigned: numba looks at the sign of an index each time."""
    face = np.uint32(f)
    return np.uint32(surface.faces[face, 0]), np.uint32(surface.faces[face, 1]), np.uint32(surface.faces[face, 2])


@njit(forceinline=True, **BORROWING)
def frame_of(surface: Any, f: int, clip: np.ndarray, clip_faces: np.ndarray, frame: np.ndarray) -> None:
    """`fill_frame` for face `f` of a surface whose corners lie at `clip`."""
    i, j, k = face_corners(surface, f)
    uv = surface.uv
    fill_frame(
        clip, clip_faces[f, 0], clip_faces[f, 1], clip_faces[f, 2],
        np.float64(uv[i, 0]), np.float64(uv[i, 1]), np.float64(uv[j, 0]), np.float64(uv[j, 1]),
        np.float64(uv[k, 0]), np.float64(uv[k, 1]), frame,
    )  # fmt: skip


@njit(forceinline=True, **BORROWING)
def corners_of(surface: Any, f: int, clip: np.ndarray, clip_faces: np.ndarray, frame: np.ndarray) -> None:
    """`fill_corners`, likewise."""
    i, j, k = face_corners(surface, f)
    uv = surface.uv
    fill_corners(
        clip, clip_faces[f, 0], clip_faces[f, 1], clip_faces[f, 2],
        np.float64(uv[i, 0]), np.float64(uv[i, 1]), np.float64(uv[j, 0]), np.float64(uv[j, 1]),
        np.float64(uv[k, 0]), np.float64(uv[k, 1]), frame,
    )  # fmt: skip


@njit(forceinline=True, **BORROWING)
def has_texture(surface: Any, f: int) -> bool:
    """Return whether a face shows a texture."""
    return surface.material_sampler[np.uint32(surface.face_material[f])] >= 0 and surface.face_has_uv[np.uint32(f)]


@njit(forceinline=True, **BORROWING)
def vertex_color(surface: Any, f: int, b0: float, b1: float) -> tuple[float, float, float, float]:
    """RGBA of the vertices at a point of a face."""
    colors = surface.colors
    i, j, k = face_corners(surface, f)
    b2 = np.float32(1.0) - b0 - b1
    return (
        b0 * colors[i, 0] + b1 * colors[j, 0] + b2 * colors[k, 0],
        b0 * colors[i, 1] + b1 * colors[j, 1] + b2 * colors[k, 1],
        b0 * colors[i, 2] + b1 * colors[j, 2] + b2 * colors[k, 2],
        b0 * colors[i, 3] + b1 * colors[j, 3] + b2 * colors[k, 3],
    )


@njit(forceinline=True, **BORROWING)
def face_color(
    surface: Any, f: int, b0: float, b1: float,
    frame: np.ndarray, ndc_x: float, ndc_y: float, step_x: float, step_y: float, minor_texels: float,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Linear RGBA at a point of a face: factor x vertex colour x texture over a footprint of step_x x step_y in
    normalised device coordinates; without width: at the point."""
    material = np.uint32(surface.face_material[f])
    factors = surface.factors
    red, green, blue, alpha = factors[material, 0], factors[material, 1], factors[material, 2], factors[material, 3]
    if surface.has_colors:
        tint = vertex_color(surface, f, b0, b1)
        red, green, blue, alpha = red * tint[0], green * tint[1], blue * tint[2], alpha * tint[3]
    if has_texture(surface, f):
        u, v = framed_uv(frame, b0, b1)
        ux, vx, uy, vy = slopes(frame, ndc_x, ndc_y, u, v) if step_x > 0.0 else (0.0, 0.0, 0.0, 0.0)
        t_red, t_green, t_blue, t_alpha = area_mean(
            u, v, ux * step_x, vx * step_x, uy * step_y, vy * step_y,
            surface.texels, surface.mips, surface.levels, surface.samplers,
            np.uint64(surface.material_sampler[material]), surface.decode, surface.cutoffs[material] >= 0.0,
            minor_texels,
        )  # fmt: skip
        red, green, blue, alpha = red * t_red, green * t_green, blue * t_blue, alpha * t_alpha
    return red, green, blue, alpha


@njit(**BORROWING)
def color_rows(
    surface: Any, face: np.ndarray, bary: np.ndarray, clip: np.ndarray, frame: np.ndarray, out: np.ndarray
) -> None:
    """Linear RGBA of the fragments of one image, textures over the pixel: face [h, w], bary [h, w, 2], clip [v, 4] ->
    out [h, w, 4]."""
    height, width = face.shape
    framed = -1
    step_x, step_y = 2.0 / width, 2.0 / height
    for row in range(height):
        ndc_y = (row + 0.5) * step_y - 1.0
        for column in range(width):
            f = face[row, column]
            if f < 0:
                for channel in range(4):
                    out[row, column, channel] = 0.0
                continue
            if f != framed:
                frame_of(surface, f, clip, surface.faces, frame)
                framed = f
            red, green, blue, alpha = face_color(
                surface, f, bary[row, column, 0], bary[row, column, 1], frame, (column + 0.5) * step_x - 1.0, ndc_y,
                step_x, step_y, VIEW_TEXELS,
            )  # fmt: skip
            out[row, column, 0], out[row, column, 1], out[row, column, 2] = red, green, blue
            out[row, column, 3] = 0.0 if alpha < surface.cutoffs[surface.face_material[f]] else 1.0


@njit(**BORROWING)
def point_rows(
    surface: Any, face: np.ndarray, bary: np.ndarray, u: np.ndarray, v: np.ndarray, at: np.ndarray,
    weights: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Linear RGBA of the fragments of one image, textures at the point: run by run of fragments of one material, each
    step of the look-up for all of a run, for vector instructions. Scratch: u and v [RUN], at and weights [4 RUN]."""
    height, width = face.shape
    for row in range(height):
        first = np.int64(0)
        while first < width:
            if face[row, first] < 0:
                for channel in range(4):
                    out[row, first, channel] = 0.0
                first += 1
                continue
            shown = np.uint32(face[row, first])
            material = np.uint32(surface.face_material[shown])
            last = run_end(surface, face, row, first, min(width, first + RUN))
            if has_texture(surface, shown):
                sampler = surface.material_sampler[material]
                uv_run(surface, face, bary, row, first, last, u, v)
                corner_run(u, v, last - first, surface.samplers, sampler, at, weights)
                with_alpha = surface.cutoffs[material] >= 0.0
                texel_run(surface.texels, surface.decode, at, weights, with_alpha, row, first, last, out)
            else:
                out[row, first:last] = 1.0
            if surface.has_colors or surface.cutoffs[material] >= 0.0 or not is_white(surface.factors, material):
                tint_run(surface, face, bary, row, first, last, material, out)
            first = last


@njit(forceinline=True, **BORROWING)
def is_white(factors: np.ndarray, material: int) -> bool:
    """Return whether multiplying by the factor of an opaque material changes nothing."""
    white = factors[material, 0] == 1.0 and factors[material, 1] == 1.0 and factors[material, 2] == 1.0
    return white and factors[material, 3] == 1.0


@njit(forceinline=True, **BORROWING)
def run_end(surface: Any, face: np.ndarray, row: int, first: int, limit: int) -> int:
    """Column, `limit` at most, behind the last of a run of fragments of one material, with texture or without."""
    shown = np.uint32(face[row, first])
    material, has_uv = surface.face_material[shown], surface.face_has_uv[shown]
    for column in range(first + 1, limit):
        f = face[row, column]
        if f < 0 or surface.face_material[np.uint32(f)] != material or surface.face_has_uv[np.uint32(f)] != has_uv:
            return column
    return limit


@njit(**BORROWING)
def uv_run(
    surface: Any, face: np.ndarray, bary: np.ndarray, row: int, first: int, last: int, u: np.ndarray, v: np.ndarray
) -> None:
    """Texture coordinates of the fragments in columns `first:last` of a row, in float64: they may be large."""
    for column in range(first, last):
        i, j, k = face_corners(surface, face[row, column])
        b0, b1 = bary[row, column, 0], bary[row, column, 1]
        weight0, weight1 = np.float64(b0), np.float64(b1)
        weight2 = np.float64(np.float32(1.0) - b0 - b1)
        u[column - first] = weight0 * surface.uv[i, 0] + weight1 * surface.uv[j, 0] + weight2 * surface.uv[k, 0]
        v[column - first] = weight0 * surface.uv[i, 1] + weight1 * surface.uv[j, 1] + weight2 * surface.uv[k, 1]


@njit(**BORROWING)
def tint_run(
    surface: Any, face: np.ndarray, bary: np.ndarray, row: int, first: int, last: int, material: int, out: np.ndarray
) -> None:
    """Multiply the RGBA of the fragments in columns `first:last` of a row, of one material, by its factor and vertex
    colours, and cut its holes."""
    cutoff = surface.cutoffs[material]
    for column in range(first, last):
        red, green, blue = surface.factors[material, 0], surface.factors[material, 1], surface.factors[material, 2]
        alpha = surface.factors[material, 3]
        if surface.has_colors:
            tint = vertex_color(surface, face[row, column], bary[row, column, 0], bary[row, column, 1])
            red, green, blue, alpha = red * tint[0], green * tint[1], blue * tint[2], alpha * tint[3]
        out[row, column, 0], out[row, column, 1] = red * out[row, column, 0], green * out[row, column, 1]
        out[row, column, 2] = blue * out[row, column, 2]
        out[row, column, 3] = 0.0 if np.float64(alpha) * out[row, column, 3] < cutoff else 1.0


@njit(**BORROWING)
def pixel_rows(
    surface: Any, centre_face: np.ndarray, centre_bary: np.ndarray, side: np.ndarray, clip: np.ndarray, s: int,
    frame: np.ndarray, out: np.ndarray,
) -> None:  # fmt: skip
    """Linear RGB of the pixels of a view that looks through nothing, mean of the covered ones among s x s samples, each
    over its own footprint; where none is, the colour at the centre over the whole pixel.

    centre_face [h, w], centre_bary [h, w, 2]; side [h s, w s]; clip [v, 4] -> out [h, w, 3]."""
    height, width = centre_face.shape
    step_x, step_y = 2.0 / (width * s), 2.0 / (height * s)
    framed = -1
    for row in range(height):
        for column in range(width):
            red, green, blue, count = 0.0, 0.0, 0.0, 0
            for y in range(row * s, row * s + s):
                for x in range(column * s, column * s + s):
                    if side[y, x] < 0:
                        continue
                    f = side[y, x] >> 1
                    if f != framed:
                        frame_of(surface, f, clip, surface.faces, frame)
                        framed = f
                    ndc_x, ndc_y = (x + 0.5) * step_x - 1.0, (y + 0.5) * step_y - 1.0
                    b0, b1 = framed_weights(frame, side[y, x] & 1, ndc_x, ndc_y)
                    r, g, b, _ = face_color(surface, f, b0, b1, frame, ndc_x, ndc_y, step_x, step_y, VIEW_TEXELS)
                    red, green, blue, count = red + r, green + g, blue + b, count + 1
            if count == 0 and centre_face[row, column] >= 0:
                f, framed, count = centre_face[row, column], centre_face[row, column], 1
                frame_of(surface, f, clip, surface.faces, frame)
                red, green, blue, _ = face_color(
                    surface, f, centre_bary[row, column, 0], centre_bary[row, column, 1], frame,
                    (column + 0.5) * step_x * s - 1.0, (row + 0.5) * step_y * s - 1.0, step_x * s, step_y * s,
                    VIEW_TEXELS,
                )  # fmt: skip
            scale = 1.0 / count if count else 0.0
            out[row, column, 0], out[row, column, 1], out[row, column, 2] = red * scale, green * scale, blue * scale
