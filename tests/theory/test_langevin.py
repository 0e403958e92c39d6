"""Section 6 of math.md: Langevin dynamics, `x <- x + delta score(x) + sqrt(2 delta) w`, samples the score's density."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastdiff.models import GaussianMixture
from tests.theory.gaussian import log_density

Array = npt.NDArray[np.float64]

X = np.linspace(-10, 10, 401)
MIXTURE = GaussianMixture([[-1.5], [1.0]], [0.7, 0.5], [0.4, 0.6])


def stationary(score: Callable[[Array], Array], delta: float) -> Array:
    """Chances on the grid that a step leaves as they are: those after 2^24 steps, from anywhere."""
    steps = np.exp(log_density(X, (X + delta * score(X))[:, None], 2 * delta))
    steps /= steps.sum(axis=1, keepdims=True)
    for _ in range(24):
        steps = steps @ steps
        steps /= steps.sum(axis=1, keepdims=True)
    return np.asarray(steps[0])


@pytest.mark.parametrize("delta", [0.05, 0.5, 1.0])
def test_unit_gaussian(delta: float) -> None:
    """For score -x the variance v <- (1 - delta)^2 v + 2 delta settles at 1 / (1 - delta / 2): 1 for small steps."""
    p = stationary(lambda x: -x, delta)
    # Measured: 1e-10, as the grid ends at 7 standard deviations of the widest.
    assert [p @ X, p @ X**2] == pytest.approx([0.0, 1 / (1 - delta / 2)], abs=1e-9)


def test_stationary_density_is_that_of_the_score() -> None:
    """For a mixture's score, the stationary density is the mixture's own, with an error of order delta."""
    points = torch.from_numpy(X)[:, None]
    density = MIXTURE.log_density(points).exp().numpy()
    score = MIXTURE.score(points)[:, 0].numpy()
    gaps = [abs(stationary(lambda x: score, delta) / (X[1] - X[0]) - density).max() for delta in (0.02, 0.01, 0.005)]
    assert gaps[-1] < 0.005 < 0.4 < density.max()
    # First order: half the step, half the error, up to a relative error of the order of the step over 0.5^2.
    assert [gaps[0] / gaps[1], gaps[1] / gaps[2]] == pytest.approx([2, 2], rel=0.1)
