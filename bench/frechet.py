"""Frechet distance between Gaussians fitted to two sets of samples (Heusel et al. 2017; Dowson & Landau 1982)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def distance(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return the distance of the samples a [N, D] and b [M, D], N and M at least 2, computed in float64.

    The estimate is biased upwards by an amount that falls with N and M, so compare only distances that share both.
    """
    return between_gaussians(*moments(a), *moments(b))


def moments(samples: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Return the mean [D] and the unbiased covariance [D, D] of samples [N, D], float64."""
    x = np.asarray(samples, dtype=np.float64)
    return x.mean(axis=0), np.cov(x, rowvar=False)


def between_gaussians(mean1: Floats, covariance1: Floats, mean2: Floats, covariance2: Floats) -> float:
    """Return `|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))` of means [D] and covariances [D, D], singular or not.

    `tr (C1 C2)^(1/2)` is the sum of the singular values of `C1^(1/2) C2^(1/2)`: real, and as exact where a covariance
    is singular as elsewhere, which the square root of the product is not.
    """
    overlap = np.linalg.svd(_root(covariance1) @ _root(covariance2), compute_uv=False).sum()
    gap = mean1 - mean2
    return float(gap @ gap + np.trace(covariance1) + np.trace(covariance2) - 2 * overlap)


def _root(covariance: Floats) -> Floats:
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    root: Floats = (vectors * np.sqrt(values.clip(min=0))) @ vectors.T
    return root
