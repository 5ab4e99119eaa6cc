"""Compiled arithmetic of points on faces: the weights of a face's corners under a pixel's centre."""

# mypy: disable-error-code="arg-type, return-value, assignment"
# (scalars are numba's, annotated as the Python types they stand for)

from numba import njit

from geometry.kernels.jit import BORROWING


@njit(forceinline=True, **BORROWING)
def clamped_weights(
    x0: float, y0: float, w0: float, x1: float, y1: float, w1: float, x2: float, y2: float, w2: float,
    ndc_x: float, ndc_y: float, sign: float,
) -> tuple[float, float, float]:  # fmt: skip
    """Weights of a face's corners under a pixel's centre, up to a factor: that of a corner is the volume spanned by the
    pixel's ray and the two others. The sign is that of the face's area as drawn."""
    rx0, ry0 = x0 - ndc_x * w0, y0 - ndc_y * w0
    rx1, ry1 = x1 - ndc_x * w1, y1 - ndc_y * w1
    rx2, ry2 = x2 - ndc_x * w2, y2 - ndc_y * w2
    # The centre may lie outside the unsnapped face by 1/512 pixel: the nearest point of the face then.
    weight0 = max(sign * (rx1 * ry2 - rx2 * ry1), 0.0)
    weight1 = max(sign * (rx2 * ry0 - rx0 * ry2), 0.0)
    weight2 = max(sign * (rx0 * ry1 - rx1 * ry0), 0.0)
    if not weight0 + weight1 + weight2 > 0.0:  # seen edge-on: any point of the face will do
        return 1.0, 1.0, 1.0
    return weight0, weight1, weight2
