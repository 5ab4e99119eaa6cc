import math

import numpy as np
import pytest

from training.metrics import mean_color_fill, psnr


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
