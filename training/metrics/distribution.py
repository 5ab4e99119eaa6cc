"""Sets of images against sets of images, through the features of a fixed network; and how sure a figure is."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Count, mean and summed squared deviations of features. Those of parts, joined, are those of the whole: shards and
    ranks can be counted apart."""

    count: int
    mean: Float64[np.ndarray, " d"]
    scatter: Float64[np.ndarray, "d d"]

    @classmethod
    def of(cls, features: Float[np.ndarray, "n d"]) -> "Moments":
        wide = features.astype(np.float64)
        mean = wide.mean(axis=0)
        return cls(count=len(wide), mean=mean, scatter=(wide - mean).T @ (wide - mean))

    def join(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        gap = other.mean - self.mean
        return Moments(
            count=count,
            mean=self.mean + gap * (other.count / count),
            scatter=self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count),
        )

    @property
    def covariance(self) -> Float64[np.ndarray, "d d"]:
        return self.scatter / max(self.count - 1, 1)


def frechet_distance(first: Moments, second: Moments) -> float:
    """FID (Heusel 2017), of Inception or CLIP features alike: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))."""
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ second.covariance @ root), 0.0)).sum()
    gap = first.mean - second.mean
    return float(gap @ gap + np.trace(first.covariance) + np.trace(second.covariance) - 2 * cross)


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A figure and its 95 % confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(
    rows: np.ndarray,
    statistic: Callable[[np.ndarray], float] = lambda rows: float(np.mean(rows)),
    *,
    seed: int = 0,
    resamples: int = 1000,
) -> Interval:
    """Percentile bootstrap over the rows (one per mesh: views of one mesh are not independent)."""
    if not len(rows):
        raise ValueError("no rows to take a statistic of")
    rng = np.random.default_rng(seed)
    found = [statistic(rows[rng.integers(0, len(rows), len(rows))]) for _ in range(resamples)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Interval(value=statistic(rows), low=float(low), high=float(high))


def pooled(parts: Iterable[Float[np.ndarray, "_ d"]]) -> Moments:
    """Moments of features that come in parts, one part in memory at a time."""
    total: Moments | None = None
    for part in parts:
        total = Moments.of(part) if total is None else total.join(Moments.of(part))
    if total is None:
        raise ValueError("no features at all")
    return total
