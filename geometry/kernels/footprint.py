"""Compiled arithmetic of footprints: the part of a face under a pixel, and how far it reaches in its texture."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

import numpy as np
from numba import njit

from geometry.kernels.clip import clamped_weights
from geometry.kernels.jit import BORROWING

FRAME_SIZE = 28
"""Numbers that `fill_frame` keeps of a face."""


@njit(forceinline=True, **BORROWING)
def fill_frame(
    clip: np.ndarray, i: int, j: int, k: int, u0: float, v0: float, u1: float, v1: float, u2: float, v2: float,
    frame: np.ndarray,
) -> None:  # fmt: skip
    """Set up the derivatives of u and v over a face: with homogeneous edge functions W_i(x, y), linear in normalised
    device coordinates, the weight of corner i is W_i / sum W and u = sum W_i u_i / sum W.

    frame: x and y slopes and constant of sum W; (u0, v0); slopes of sum W_i (u_i - u0), of sum W_i (v_i - v0); x and y
    slopes of each W_i; (x, y, w) of each corner; (u1, v1, u2, v2).
    """
    x0, y0, w0 = np.float64(clip[i, 0]), np.float64(clip[i, 1]), np.float64(clip[i, 3])
    x1, y1, w1 = np.float64(clip[j, 0]), np.float64(clip[j, 1]), np.float64(clip[j, 3])
    x2, y2, w2 = np.float64(clip[k, 0]), np.float64(clip[k, 1]), np.float64(clip[k, 3])
    frame[9], frame[10] = y1 * w2 - y2 * w1, w1 * x2 - w2 * x1
    frame[11], frame[12] = y2 * w0 - y0 * w2, w2 * x0 - w0 * x2
    frame[13], frame[14] = y0 * w1 - y1 * w0, w0 * x1 - w1 * x0
    frame[0], frame[1] = frame[9] + frame[11] + frame[13], frame[10] + frame[12] + frame[14]
    frame[2] = x1 * y2 - x2 * y1 + x2 * y0 - x0 * y2 + x0 * y1 - x1 * y0
    frame[5] = frame[11] * (u1 - u0) + frame[13] * (u2 - u0)
    frame[6] = frame[12] * (u1 - u0) + frame[14] * (u2 - u0)
    frame[7] = frame[11] * (v1 - v0) + frame[13] * (v2 - v0)
    frame[8] = frame[12] * (v1 - v0) + frame[14] * (v2 - v0)
    fill_corners(clip, i, j, k, u0, v0, u1, v1, u2, v2, frame)


@njit(forceinline=True, **BORROWING)
def fill_corners(
    clip: np.ndarray, i: int, j: int, k: int, u0: float, v0: float, u1: float, v1: float, u2: float, v2: float,
    frame: np.ndarray,
) -> None:  # fmt: skip
    """Set up what `framed_weights` and `framed_uv` need of a face."""
    frame[15], frame[16], frame[17] = clip[i, 0], clip[i, 1], clip[i, 3]
    frame[18], frame[19], frame[20] = clip[j, 0], clip[j, 1], clip[j, 3]
    frame[21], frame[22], frame[23] = clip[k, 0], clip[k, 1], clip[k, 3]
    frame[3], frame[4], frame[24], frame[25], frame[26], frame[27] = u0, v0, u1, v1, u2, v2


@njit(forceinline=True, **BORROWING)
def framed_weights(frame: np.ndarray, turned: int, ndc_x: float, ndc_y: float) -> tuple[float, float]:
    """Perspective-correct weights of corners 0 and 1 of the face that `frame` describes, under a pixel's centre, as
    float32. `turned`: 1 where its corners run clockwise."""
    weight0, weight1, weight2 = clamped_weights(
        frame[15], frame[16], frame[17], frame[18], frame[19], frame[20], frame[21], frame[22], frame[23],
        ndc_x, ndc_y, 1.0 - 2.0 * turned,
    )  # fmt: skip
    scale = 1.0 / (weight0 + weight1 + weight2)
    return np.float32(weight0 * scale), np.float32(weight1 * scale)


@njit(forceinline=True, **BORROWING)
def framed_uv(frame: np.ndarray, b0: float, b1: float) -> tuple[float, float]:
    """`face_uv` of the face that `frame` describes."""
    weight0, weight1 = np.float64(b0), np.float64(b1)
    weight2 = np.float64(np.float32(1.0) - b0 - b1)
    return (
        weight0 * frame[3] + weight1 * frame[24] + weight2 * frame[26],
        weight0 * frame[4] + weight1 * frame[25] + weight2 * frame[27],
    )


@njit(forceinline=True, **BORROWING)
def slopes(frame: np.ndarray, ndc_x: float, ndc_y: float, u: float, v: float) -> tuple[float, float, float, float]:
    """du/dx, dv/dx, du/dy, dv/dy at a point of the face that `frame` describes; 0 where it is seen edge-on."""
    total = frame[0] * ndc_x + frame[1] * ndc_y + frame[2]
    scale = 1.0 / total if total != 0.0 else 0.0
    off_u, off_v = u - frame[3], v - frame[4]
    return (
        (frame[5] - off_u * frame[0]) * scale, (frame[7] - off_v * frame[0]) * scale,
        (frame[6] - off_u * frame[1]) * scale, (frame[8] - off_v * frame[1]) * scale,
    )  # fmt: skip


@njit(forceinline=True, **BORROWING)
def inside_span(frame: np.ndarray, axis: int, b0: float, b1: float, length: float) -> tuple[float, float]:
    """The part of a line of this length, along x (0) or y (1) and centred on a point of a face, that stays on the face:
    its two ends. For faces of a flat layout (w = 1), whose weights are linear."""
    low, high, scale = -0.5 * length, 0.5 * length, 1.0 / frame[2] if frame[2] != 0.0 else 0.0
    for corner in range(3):
        weight = b0 if corner == 0 else (b1 if corner == 1 else 1.0 - b0 - b1)
        slope = frame[9 + 2 * corner + axis] * scale
        if slope > 0.0:
            low = max(low, min(-weight / slope, 0.0))
        elif slope < 0.0:
            high = min(high, max(-weight / slope, 0.0))
    return low, high
