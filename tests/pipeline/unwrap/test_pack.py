"""The packer's loops against their definitions, texel by texel."""

import numpy as np
import pytest

from pipeline.unwrap.kernels.pack import occupy, runs_of, touched_texels
from pipeline.unwrap.kernels.stretch import count_shared


@pytest.mark.parametrize("side", [0.4, 3.0, 12.0, 90.0])
def test_texels_that_a_chart_touches(side: float) -> None:
    """The spans of a face's rows end where a look at every texel says so."""
    rng = np.random.default_rng(int(side))
    for turn in range(30):
        uv = rng.uniform(0, side, (6, 2))
        uv = np.round(uv) if turn % 3 == 0 else uv  # edges through the corners of texels
        uv[0, 1] = uv[1, 1]  # a level edge
        corners = np.array([[0, 1, 2], [3, 4, 5], [1, 3, 5]])
        first, second = uv[corners][:, 1] - uv[corners][:, 0], uv[corners][:, 2] - uv[corners][:, 0]
        clockwise = first[:, 0] * second[:, 1] < first[:, 1] * second[:, 0]
        corners[clockwise] = corners[clockwise][:, ::-1]
        mask = touched_texels(corners, np.arange(3), uv)
        rows, columns = np.indices(mask.shape) + 0.5
        expected = np.zeros_like(mask)
        for face in uv[corners]:
            low, high = np.floor(face.min(axis=0)) + 0.5, np.floor(face.max(axis=0)) + 0.5
            inside = (columns >= low[0]) & (columns <= high[0]) & (rows >= low[1]) & (rows <= high[1])
            for k in range(3):
                (x, y), (ex, ey) = face[k], face[(k + 1) % 3] - face[k]
                inside &= ex * (rows - y) - ey * (columns - x) >= -0.5 * (abs(ex) + abs(ey)) - 1e-9
            expected |= inside
        np.testing.assert_array_equal(mask, expected)


@pytest.mark.parametrize("size", [0.8, 4.0, 30.0])
def test_grid_points_within_two_faces(size: float) -> None:
    """Whichever way round the faces run: as many as a look at every point counts."""
    rng, found = np.random.default_rng(int(size)), 0
    for turn in range(20):
        faces = rng.uniform(0, 2 * size, (9, 1, 2)) + rng.normal(0, size, (9, 3, 2))
        faces = np.round(2 * faces) / 2 if turn % 3 == 0 else faces  # edges through the points, faces without area
        faces[0, :, 1] = faces[0, 0, 1] + 1e-12 * turn
        uv = faces.reshape(-1, 2)
        low, extent = uv.min(axis=0), np.ceil(np.ptp(uv, axis=0)).astype(int) + 1
        x, y = np.meshgrid(*(np.arange(side) + 0.5 for side in extent))
        times = np.zeros(x.shape, int)
        for a, b, c in faces - low:
            products = [(q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0]) for p, q in ((a, b), (b, c), (c, a))]
            within = np.all([product > 1e-9 for product in products], axis=0)
            times += within | np.all([product < -1e-9 for product in products], axis=0)
        expected = int(np.maximum(times - 1, 0).sum())
        assert count_shared(np.arange(len(uv)).reshape(-1, 3), uv, 1.0) == expected
        found += expected
    assert found > 5


@pytest.mark.parametrize("padding", [0, 1, 3])
def test_tables_of_a_row_after_charts_were_placed(padding: int) -> None:
    """From every texel on, they name the next one that is taken and the next one that is free, whatever the order."""
    rng, width, height = np.random.default_rng(padding), 61, 40
    taken = np.zeros((height, width), bool)
    next_taken = np.full((height, width + 1), width, np.uint16)
    next_free = np.tile(np.arange(width + 1, dtype=np.uint16), (height, 1))
    for _ in range(25):
        mask = rng.random((rng.integers(1, 7), rng.integers(1, 15))) < 0.6
        x, y = rng.integers(0, width - mask.shape[1] + 1), rng.integers(0, height - mask.shape[0] + 1)
        for row, column in np.argwhere(mask) + np.array([y, x]):
            top, left = max(0, row - padding), max(0, column - padding)
            taken[top : row + padding + 1, left : column + padding + 1] = True
        occupy(next_taken, next_free, runs_of(mask), x, y, padding)
        for row in range(height):
            for column in range(width):
                ahead = taken[row, column:]
                assert next_taken[row, column] == (column + ahead.argmax() if ahead.any() else width)
                assert next_free[row, column] == (width if ahead.all() else column + ahead.argmin())
