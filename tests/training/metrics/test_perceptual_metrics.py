"""LPIPS with weights for which its value is known, and kernel distances against their definition."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics

from schemas.errors import UserError
from training.metrics.kernels import cubic, gaussian, kernel_distance_by_mesh
from training.metrics.lpips import CHANNELS, SCALE, SHIFT, AlexFeatures, Lpips

WHOLE = np.ones((64, 48), bool)


def plain(value: int) -> np.ndarray:
    return np.full((*WHOLE.shape, 3), value, np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The first layer's features are (red of the pixel in the middle of its window, 1, 0, ...); the linear weights see
    the first of them alone, twofold."""
    folder = tmp_path_factory.mktemp("weights")
    state = {name: torch.zeros_like(value) for name, value in AlexFeatures().state_dict().items()}
    state["features.0.weight"][0, 0, 5, 5] = 1.0
    state["features.0.bias"][1] = 1.0
    torch.save(state | {"classifier.1.weight": torch.zeros(2, 2)}, folder / "alexnet.pth")
    linear = {f"lin{layer}.model.1.weight": torch.zeros(1, c, 1, 1) for layer, c in enumerate(CHANNELS)}
    linear["lin0.model.1.weight"][0, 0] = 2.0
    torch.save(linear, folder / "alex.pth")
    return folder / "alexnet.pth", folder / "alex.pth"


def first_feature(value: int) -> float:
    """The first feature of a plain picture, after scaling to length 1."""
    red = max(0.0, (value / 127.5 - 1 - SHIFT[0]) / SCALE[0])
    return red / (red**2 + 1) ** 0.5


@pytest.mark.parametrize(("one", "other"), [(255, 180), (200, 0), (140, 141)])
def test_lpips_of_plain_pictures_is_that_of_the_definition(weights: tuple[Path, Path], one: int, other: int) -> None:
    backbone, linear = weights
    expected = 2 * (first_feature(one) - first_feature(other)) ** 2
    assert Lpips(backbone, linear=linear)(plain(one), plain(other), WHOLE) == pytest.approx(expected, rel=1e-4)


def test_lpips_looks_at_covered_pixels_alone(weights: tuple[Path, Path]) -> None:
    distance, mask = Lpips(weights[0], linear=weights[1]), WHOLE.copy()
    mask[:, 24:] = False
    other = plain(255)
    other[~mask] = 7
    assert distance(plain(255), other, mask) == 0.0
    assert distance(plain(255), other, WHOLE) > 0.1
    with pytest.raises(ValueError, match="LPIPS over 0 pixels"):
        distance(plain(1), plain(1), WHOLE & False)
    half = plain(255)
    half[:32] = 0  # the upper half differs: half of the distance, but for windows across the border
    whole = distance(plain(255), plain(0), WHOLE)
    assert distance(plain(255), half, WHOLE) == pytest.approx(whole / 2, rel=0.1)


def test_the_published_linear_weights_are_at_hand_and_other_files_are_refused(
    weights: tuple[Path, Path], tmp_path: Path
) -> None:
    backbone, linear = weights
    shipped = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    assert Lpips(backbone).linear[0].shape == (1, 64, 1, 1) and shipped.is_file()
    assert all((weight >= 0).all() for weight in Lpips(backbone).linear)
    with pytest.raises(UserError, match="no AlexNet weights"):
        Lpips(linear)
    with pytest.raises(UserError, match="no linear weights"):
        Lpips(backbone, linear=backbone)
    (tmp_path / "x.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"x\.pth: cannot be read"):
        Lpips(tmp_path / "x.pth")


def test_a_kernel_distance_by_mesh_is_the_mean_over_pairs_of_meshes() -> None:
    rng = np.random.default_rng(1)
    made, true = ([rng.normal(shift, 1.0, (count, 4)) for count in (2, 3, 1, 2)] for shift in (0.0, 0.5))
    for kernel in (cubic, gaussian):
        gaps = [
            np.mean([[kernel(a[None], b[None])[0, 0] for b in second] for a in first]) * sign
            for i in range(4)
            for j in range(4)
            if i != j
            for first, second, sign in ((made[i], made[j], 1), (true[i], true[j], 1), (made[i], true[j], -2))
        ]
        assert kernel_distance_by_mesh(made, true, kernel).value == pytest.approx(sum(gaps) / 12)


def test_point_masses_are_as_far_apart_as_the_kernel_says() -> None:
    """CMMD of two points at distance r: 2 (1 - exp(-r^2 / 2 sigma^2))."""
    east, north = np.array([[2.0, 0.0]]), np.array([[0.0, 5.0]])  # at distance sqrt(2) once they have length 1
    found = kernel_distance_by_mesh([east] * 4, [north] * 4, gaussian)
    assert found.value == pytest.approx(2 * (1 - np.exp(-2 / 200)))
    assert found.low == pytest.approx(found.value) == found.high
    assert kernel_distance_by_mesh([east] * 3, [3 * east] * 3, gaussian).value == pytest.approx(0.0, abs=1e-12)


def test_the_interval_of_a_kernel_distance_covers_the_truth_as_often_as_it_says() -> None:
    """Two distributions a mean apart; the truth from fifty times as many samples."""
    rng = np.random.default_rng(2)
    one, two, other = (rng.normal(shift, 1.0, (4000, 3)) for shift in (0.0, 0.0, 0.7))
    apart = rng.normal(0.7, 1.0, (4000, 3))
    truth = cubic(one, two).mean() + cubic(other, apart).mean() - 2 * cubic(one, other).mean()
    hits = 0
    for _ in range(200):
        made, true = (list(rng.normal(shift, 1.0, (40, 2, 3))) for shift in (0.0, 0.7))
        found = kernel_distance_by_mesh(made, true, cubic)
        hits += found.low <= truth <= found.high
    assert 0.88 * 200 <= hits <= 200
