"""What the proofs share: densities and KL divergences of Gaussians, and expectations over normal noise."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Number = Array | float


def log_density(x: Number, mean: Number, variance: Number) -> Array:
    """log N(x; mean, variance)."""
    return np.asarray(-((x - mean) ** 2) / (2 * variance) - np.log(2 * np.pi * variance) / 2)


def kl(m1: Number, v1: Number, m2: Number, v2: Number) -> Array:
    """KL(N(m1, v1) || N(m2, v2)) = log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, v = s^2."""
    return np.asarray(np.log(v2 / v1) / 2 + (v1 + (m1 - m2) ** 2) / (2 * v2) - 0.5)


def nodes(count: int) -> tuple[Array, Array]:
    """Values and chances [count] that stand for eps ~ N(0, 1).

    Gauss-Hermite: expectations of polynomials of degree 2 count - 1 are exact, those of entire functions nearly.
    """
    values, weights = np.polynomial.hermite_e.hermegauss(count)
    return values, weights / weights.sum()
