import math

import numpy as np
import pytest

from geometry.image_metrics import mean_color_fill, psnr
from training.metrics.images import ssim


def test_psnr_counts_the_mask_only() -> None:
    truth = np.full((4, 4, 3), 100, dtype=np.uint8)
    image = truth.copy()
    image[0] = 90
    image[3] = 255
    mask = np.zeros((4, 4), dtype=bool)
    mask[:2] = True
    assert psnr(image, truth, mask) == pytest.approx(10 * math.log10(255**2 / 50))
    assert psnr(truth, truth, mask) == math.inf
    with pytest.raises(ValueError, match="empty mask"):
        psnr(image, truth, np.zeros((4, 4), dtype=bool))


def test_fill_is_the_mean_colour_of_the_foreground() -> None:
    image = np.zeros((2, 3, 3), dtype=np.uint8)
    mask = np.array([[True, True, False], [False, False, False]])
    image[0, :2] = [[10, 20, 30], [30, 40, 51]]
    filled = mean_color_fill(image, mask, 5, 7)
    assert filled.shape == (5, 7, 3)
    assert (filled == (20, 30, 40)).all()  # 40.5 goes to the even neighbour


def test_ssim_is_one_for_equal_images_and_falls_with_noise_inside_the_mask_only() -> None:
    rng = np.random.default_rng(0)
    truth = np.repeat(np.linspace(40, 200, 64).astype(np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2)
    mask = np.zeros((64, 64), dtype=bool)
    mask[8:56, 8:40] = True
    assert ssim(truth, truth, mask) == pytest.approx(1.0)
    elsewhere = np.where(mask[..., None], truth, rng.integers(0, 256, truth.shape)).astype(np.uint8)
    assert ssim(elsewhere, truth, mask) == pytest.approx(1.0)
    levels = [(truth + rng.normal(0, s, truth.shape)).clip(0, 255).astype(np.uint8) for s in (2, 8, 32)]
    scores = [ssim(level, truth, mask) for level in levels]
    assert 1.0 > scores[0] > scores[1] > scores[2] > 0.0
    with pytest.raises(ValueError, match="empty mask"):
        ssim(truth, truth, np.zeros((64, 64), dtype=bool))


def test_ssim_of_flat_images_is_the_luminance_term() -> None:
    """Without structure, (2 a b + c) / (a^2 + b^2 + c) with c = 0.01^2."""
    first, second = (np.full((32, 32, 3), level, dtype=np.uint8) for level in (51, 102))
    mask = np.ones((32, 32), dtype=bool)
    assert ssim(first, second, mask) == pytest.approx((2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4), rel=1e-4)
