"""Distances between distributions, where the right value is known in closed form."""

import numpy as np
import pytest

from training.metrics.distribution import Moments, bootstrap, frechet_distance, pooled


def gaussian(mean: np.ndarray, deviation: np.ndarray) -> Moments:
    return Moments(count=1001, mean=np.asarray(mean, float), scatter=1000 * np.diag(np.square(deviation)))


def test_frechet_distance_of_gaussians_is_the_closed_form():
    first = gaussian(np.zeros(3), np.array([1.0, 2.0, 3.0]))
    second = gaussian(np.array([1.0, -2.0, 0.5]), np.array([2.0, 2.0, 1.0]))
    expected = (1 + 4 + 0.25) + (1 + 0 + 4)  # squared gap of means, and of standard deviations
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-10)


def test_frechet_distance_does_not_depend_on_the_basis():
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a, b = rng.normal(size=(400, 6)) * np.arange(1, 7), rng.normal(size=(300, 6)) + 0.5
    plain = frechet_distance(Moments.of(a), Moments.of(b))
    assert frechet_distance(Moments.of(a @ turn), Moments.of(b @ turn)) == pytest.approx(plain, rel=1e-9)


def test_moments_of_parts_are_those_of_the_whole():
    features = np.random.default_rng(1).normal(3.0, 2.0, (1000, 5)).astype(np.float32)
    whole, parts = Moments.of(features), pooled(np.split(features, [10, 11, 600]))
    assert parts.count == whole.count == 1000
    np.testing.assert_allclose(parts.mean, features.mean(axis=0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(parts.covariance, np.cov(features.astype(np.float64).T), rtol=1e-10)


def test_the_interval_of_a_mean_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(200):
        interval = bootstrap(rng.normal(5.0, 2.0, 40), seed=trial, resamples=300)
        hits += interval.low <= 5.0 <= interval.high
    assert 0.88 * 200 <= hits <= 0.99 * 200
    rows = rng.normal(size=(50, 3))
    largest = bootstrap(rows, lambda r: float(r.max()), seed=1, resamples=100)
    assert largest.low <= largest.value == largest.high == rows.max()
    assert bootstrap(rows, seed=4) == bootstrap(rows, seed=4)
