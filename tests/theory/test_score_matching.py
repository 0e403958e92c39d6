"""Section 6 of math.md: explicit, implicit, sliced and denoising score matching agree up to constants.

The losses are the library's, for vector fields s(x) that have nothing to do with the score; expectations are sums that
stand for integrals over the density, a mixture of two-dimensional Gaussians. So constants are seen as constants.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fastdiff.models import GaussianMixture
from fastdiff.train.objectives.score_matching import denoising, explicit, implicit, sliced
from tests.theory.gaussian import nodes

Field = Callable[[Tensor], Tensor]

MEANS, WEIGHTS = torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=torch.float64), [0.3, 0.7]
COVARIANCES = torch.tensor([[[0.09, 0.05], [0.05, 0.16]], [[0.2, -0.1], [-0.1, 0.25]]], dtype=torch.float64)
MIXTURE = GaussianMixture(MEANS.numpy(), COVARIANCES.numpy(), WEIGHTS)
# As fine as the narrowest deviation, 0.25, needs for sums to be integrals to rounding. Only E|score|^2 is known to no
# more than 1e-6; it is the same sum on both sides.
AXIS = torch.linspace(-7, 7, 141, dtype=torch.float64)
GRID = torch.cartesian_prod(AXIS, AXIS)
LEVELS = pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.8, 0.6)], ids=["clean", "noised"])
SIGMAS = pytest.mark.parametrize("sigma", [0.1, 0.3, 0.7])
# Measured: 5e-12, where the noised density ends at the grid's edge.
CLOSE: dict[str, Any] = {"rel": 1e-10, "abs": 1e-10}


def field(seed: int) -> Field:
    """A smooth vector field that turns and that has sources, [B, 2] -> [B, 2]."""
    draw = torch.Generator().manual_seed(seed)
    a, w, c = torch.randn(3, 2, 2, generator=draw, dtype=torch.float64)
    b = torch.randn(2, generator=draw, dtype=torch.float64)
    return lambda x: torch.sin(x @ w + b) @ a + x @ c


FIELDS = [field(seed) for seed in range(4)]


def mean(values: Tensor, alpha: float, sigma: float) -> float:
    """E of values [grid] over the noised density."""
    density = MIXTURE.log_density(GRID, alpha, sigma).exp()
    return float(density @ values.detach()) * float(AXIS[1] - AXIS[0]) ** 2


def half_squared_score(alpha: float, sigma: float) -> float:
    """1/2 E|score|^2."""
    return mean(MIXTURE.score(GRID, alpha, sigma).square().sum(dim=1) / 2, alpha, sigma)


@LEVELS
def test_explicit_is_implicit_and_a_constant(alpha: float, sigma: float) -> None:
    """E 1/2 |s - score|^2 = E[1/2 |s|^2 + tr(ds/dx)] + 1/2 E|score|^2, for every s (Hyvarinen 2005, theorem 1).

    Integration by parts: E[s^T score] = int s^T grad p = -E[tr(ds/dx)].
    """
    score = MIXTURE.score(GRID, alpha, sigma)
    differences = [mean(explicit(s, GRID, score) - implicit(s, GRID), alpha, sigma) for s in FIELDS]
    assert differences == pytest.approx([half_squared_score(alpha, sigma)] * len(FIELDS), **CLOSE)


@LEVELS
@pytest.mark.parametrize("share", [-0.5, 0.1])
def test_implicit_is_least_at_the_score(alpha: float, sigma: float, share: float) -> None:
    """J(score + a f) - J(score) = a^2 / 2 E|f|^2 > 0: no score is needed to find the score."""

    def score(x: Tensor) -> Tensor:
        return MIXTURE.score(x, alpha, sigma)

    least = implicit(score, GRID)
    for f in FIELDS:
        more = implicit(lambda x, f=f: score(x) + share * f(x), GRID)
        expected = mean(share**2 / 2 * f(GRID).square().sum(dim=1), alpha, sigma)
        assert mean(more - least, alpha, sigma) == pytest.approx(expected, **CLOSE) and expected > 0


def directions(values: list[float]) -> Tensor:
    """All v whose elements are of these values, [n, 2]."""
    axis = torch.tensor(values, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_sliced_is_implicit_in_expectation(distribution: str) -> None:
    """E_v[v^T (ds/dx) v] = tr(ds/dx) for E[v v^T] = I, so that sliced is implicit at every x (Song et al. 2019).

    Both expectations are exact: all four signs, and Gauss-Hermite nodes in both directions, as v enters squared.
    """
    values, chances = (np.array([-1.0, 1.0]), np.array([0.5, 0.5])) if distribution == "rademacher" else nodes(3)
    x = MIXTURE.sample(100)
    for s in FIELDS:
        each = torch.stack([sliced(s, x, v.expand_as(x)) for v in directions(values.tolist())])
        expected = torch.from_numpy(np.outer(chances, chances).ravel()) @ each
        torch.testing.assert_close(expected, implicit(s, x), rtol=1e-13, atol=1e-13)  # nine terms
        assert (each - implicit(s, x)).abs().max() > 0.1  # one direction alone is another number


def pairs(sigma: float, count: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """Clean x, noised x + sigma eps, [n, 2], and their chances [n]: nodes for every component, direction and eps."""
    values, chances = (torch.from_numpy(a) for a in nodes(count))
    z = torch.cartesian_prod(*[values] * 4)
    chance = torch.cartesian_prod(*[chances] * 4).prod(dim=1)
    clean = torch.cat([m + z[:, :2] @ torch.linalg.cholesky(c).T for m, c in zip(MEANS, COVARIANCES, strict=True)])
    weights = torch.cat([weight * chance for weight in WEIGHTS])
    return clean, clean + sigma * z[:, 2:].repeat(len(MEANS), 1), weights


@SIGMAS
def test_denoising_is_explicit_of_the_noised_density_and_a_constant(sigma: float) -> None:
    """E 1/2 |s(x~) - (x - x~) / sigma^2|^2 = E 1/2 |s(x~) - score_sigma(x~)|^2 + C (Vincent 2011).

    For every s, with C = D / (2 sigma^2) - 1/2 E|score_sigma|^2: what of the noise x~ does not tell.
    """
    x, noised, chances = pairs(sigma)
    score = MIXTURE.score(GRID, 1.0, sigma)
    differences = [
        float(chances @ denoising(s, x, noised, sigma)) - mean(explicit(s, GRID, score), 1.0, sigma) for s in FIELDS
    ]
    constant = 2 / (2 * sigma**2) - half_squared_score(1.0, sigma)
    assert constant > 0
    assert differences == pytest.approx([constant] * len(FIELDS), **CLOSE)


@SIGMAS
def test_weight_of_denoising_makes_it_an_error_of_eps(sigma: float) -> None:
    """sigma^2 / 2 |s(x~) - (x - x~) / sigma^2|^2 = 1/2 |eps_hat - eps|^2 with eps_hat = -sigma s: that of L_simple."""
    x, eps = MIXTURE.sample(100), MIXTURE.sample(100, seed=1)
    for s in FIELDS:
        eps_hat = -sigma * s(x + sigma * eps)
        expected = (eps_hat - eps).square().sum(dim=1) / 2
        # x~ - x loses digits where sigma is small: 1e-16 / 0.1, relative to eps.
        torch.testing.assert_close(sigma**2 * denoising(s, x, x + sigma * eps, sigma), expected, rtol=1e-12, atol=1e-12)
