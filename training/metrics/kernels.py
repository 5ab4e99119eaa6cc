"""Squared distances between two sets of images under a kernel, pooled by mesh: KID and CMMD, and how sure they are."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Float64

from training.metrics.distribution import Interval

CMMD_SIGMA = 10.0
"""Width of CMMD's kernel (Jayasumana 2024)."""
FEWEST = 3
"""Meshes that an interval needs."""
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cubic(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    """KID's (x y / d + 1)^3 (Binkowski 2018)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian(x: Float64[np.ndarray, "n d"], y: Float64[np.ndarray, "m d"]) -> Float64[np.ndarray, "n m"]:
    """CMMD's, of embeddings scaled to length 1."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))
    return np.exp((x @ y.T - 1) / CMMD_SIGMA**2)


def kernel_distance_by_mesh(
    made: Sequence[Float[np.ndarray, "_ d"]], true: Sequence[Float[np.ndarray, "_ d"]], kernel: Kernel
) -> Interval:
    """The squared MMD of all images made against all true ones; entry i of both is of mesh i. Only pairs of different
    meshes count: images of one mesh depend on each other, made and true ones most of all, and would bias the estimate.
    The interval is the jackknife's over meshes.

    Raises:
        ValueError: fewer than `FEWEST` meshes.
    """
    meshes = len(made)
    if meshes < FEWEST:
        raise ValueError(f"a distance of sets needs {FEWEST} meshes, not {meshes}")
    gaps = np.zeros((meshes, meshes))
    wide = [[part.astype(np.float64) for part in side] for side in (made, true)]
    for i in range(meshes):
        for j in range(i):
            within = kernel(wide[0][i], wide[0][j]).mean() + kernel(wide[1][i], wide[1][j]).mean()
            across = kernel(wide[0][i], wide[1][j]).mean() + kernel(wide[1][i], wide[0][j]).mean()
            gaps[i, j] = gaps[j, i] = within - across
    total = gaps.sum()
    value = float(total / (meshes * (meshes - 1)))
    left = (total - 2 * gaps.sum(axis=1)) / ((meshes - 1) * (meshes - 2))
    half = 1.96 * float(np.sqrt((meshes - 1) / meshes * np.square(left - left.mean()).sum()))
    return Interval(value=value, low=value - half, high=value + half)
