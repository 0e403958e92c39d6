"""Section 1 of math.md: score = -eps / sigma, Tweedie's formula, and what each prediction says of them.

The data is a mixture of Gaussians, whose functions are closed forms; each is compared with what defines it: integrals
over the clean data, as sums on a fine grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastdiff as fd
from fastdiff import prediction
from fastdiff.models import GaussianMixture
from fastdiff.schedules import Schedule
from tests.theory.gaussian import log_density

Array = npt.NDArray[np.float64]

WEIGHTS, CENTRES, WIDTHS = [0.4, 0.6], [-1.0, 0.5], [0.2, 0.5]
MIXTURE = GaussianMixture(np.array(CENTRES)[:, None], WIDTHS, WEIGHTS)
# The trapezoidal rule is exact to rounding where the smallest deviation, sigma or 0.2, spans a few points.
GRID = np.linspace(-6, 6, 20_001)
DENSITY = sum(
    w * np.exp(log_density(GRID, m, s**2)) * (GRID[1] - GRID[0])
    for w, m, s in zip(WEIGHTS, CENTRES, WIDTHS, strict=True)
)
LINEAR = fd.schedules.linear(1000)
SYSTEMS = pytest.mark.parametrize(
    "schedule", [LINEAR, fd.schedules.karras(1000), fd.schedules.flow(1000)], ids=["vp", "ve", "flow"]
)
LEVELS = (0, 100, 400, 700, 990)


def column(*values: float) -> Tensor:
    """Values as points [B, 1] of the mixture."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def log_p(x: float, alpha: float, sigma: float) -> float:
    """log of p(x_t) = int p(x0) N(x_t; alpha x0, sigma^2)."""
    return float(np.log(DENSITY @ np.exp(log_density(x, alpha * GRID, sigma**2))))


def expected_x0(x: float, alpha: float, sigma: float) -> float:
    """E[x0 | x_t] by Bayes' rule."""
    log_likelihood = log_density(x, alpha * GRID, sigma**2)
    p = DENSITY * np.exp(log_likelihood - log_likelihood.max())
    return float(p @ GRID / p.sum())


def some_x(alpha: float, sigma: float) -> list[float]:
    """Points across the noised data."""
    return [float(u * np.sqrt(0.7 * alpha**2 + sigma**2)) for u in (-1.0, 0.2, 1.5)]


@SYSTEMS
@pytest.mark.parametrize("level", LEVELS)
def test_score_is_minus_eps_over_sigma(schedule: Schedule, level: int) -> None:
    """d/dx log p(x_t) = -E[eps | x_t] / sigma_t: the slope of the density by differences, eps by Bayes' rule."""
    alpha, sigma = schedule.alpha[level], schedule.sigma[level]
    for x in some_x(alpha, sigma):
        h = 2e-3 * np.hypot(sigma, 0.2 * alpha)
        near, far = (
            (log_p(x + step, alpha, sigma) - log_p(x - step, alpha, sigma)) / (2 * step) for step in (h, 2 * h)
        )
        slope = (4 * near - far) / 3  # an error of h^4, 1e-11 of the score's own scale
        eps = (x - alpha * expected_x0(x, alpha, sigma)) / sigma
        scale = 1 / np.hypot(sigma, 0.2 * alpha)
        assert slope == pytest.approx(-eps / sigma, rel=1e-9, abs=1e-9 * scale)
        point = column(x)
        assert MIXTURE.log_density(point, alpha, sigma).item() == pytest.approx(log_p(x, alpha, sigma), rel=1e-9)
        assert MIXTURE.score(point, alpha, sigma).item() == pytest.approx(-eps / sigma, rel=1e-9, abs=1e-9 * scale)


@SYSTEMS
@pytest.mark.parametrize("level", LEVELS)
def test_tweedie(schedule: Schedule, level: int) -> None:
    """E[x0 | x_t] = (x_t + sigma_t^2 score) / alpha_t and E[eps | x_t] = -sigma_t score(x_t)."""
    alpha, sigma = schedule.alpha[level], schedule.sigma[level]
    for x in some_x(alpha, sigma):
        x0 = expected_x0(x, alpha, sigma)
        score = MIXTURE.score(column(x), alpha, sigma).item()
        # The grid's rounding; 1 / alpha, at most 150, multiplies that of x.
        assert (x + sigma**2 * score) / alpha == pytest.approx(x0, rel=1e-9, abs=1e-9)
        assert -sigma * score == pytest.approx((x - alpha * x0) / sigma, rel=1e-9, abs=1e-9 * max(1, alpha / sigma))


@SYSTEMS
@pytest.mark.parametrize("name", prediction.names())
def test_every_prediction_says_the_same(schedule: Schedule, name: str) -> None:
    """Each is linear in (x0, eps), so that its best guess, E[out | x_t], gives back E[x0 | x_t] and E[eps | x_t].

    Not where a consistency network is not heard: at sigma_min its x0 is x / alpha by definition.
    """
    for level in LEVELS:
        alpha, sigma = schedule.alpha[[level]], schedule.sigma[[level]]
        c = prediction.coefficients(name, alpha, sigma, schedule.step_sigma[[level]])
        if name == "consistency" and c.po == 0:
            continue
        for x in some_x(alpha.item(), sigma.item()):
            x0 = expected_x0(x, alpha.item(), sigma.item())
            score = MIXTURE.score(column(x), alpha.item(), sigma.item()).item()
            out = c.t0 * x0 + c.te * (x - alpha * x0) / sigma
            assert (c.px * x + c.po * out).item() == pytest.approx(x0, rel=1e-9, abs=1e-9)  # as above
            scale = max(1.0, (alpha / sigma).item())
            assert (c.ex * x + c.eo * out).item() == pytest.approx(-sigma.item() * score, rel=1e-9, abs=1e-9 * scale)


@pytest.mark.parametrize("level", [1, 50, 199])
def test_one_step_noise(level: int) -> None:
    """E[eps_step | z_l] = sigma_l / sqrt(1 - alpha_l^2) E[eps | z_l]: what the decoder of progressive VAEs learns.

    z_l = sqrt(1 - sigma_l^2) z_{l-1} + sigma_l eps_step, by Bayes' rule over z_{l-1}.
    """
    schedule = fd.schedules.progressive_vae(200)
    alpha, sigma, step = schedule.alpha[level], schedule.sigma[level], schedule.step_sigma[level]
    kept = (1 - step**2) ** 0.5
    prior = MIXTURE.log_density(column(*GRID), schedule.alpha[level - 1], schedule.sigma[level - 1]).numpy()
    for z in some_x(alpha, sigma):
        log_posterior = prior + log_density(z, kept * GRID, step**2)
        p = np.exp(log_posterior - log_posterior.max())
        expected = p @ (z - kept * GRID) / step / p.sum()
        eps = MIXTURE.eps(column(z), alpha, sigma).item()
        assert expected == pytest.approx(step / sigma * eps, rel=1e-9, abs=1e-9)  # the grid, as above
        learnt = prediction.coefficients("eps_step", schedule.alpha, schedule.sigma, schedule.step_sigma)
        assert expected == pytest.approx(learnt.te[level] * eps, rel=1e-9, abs=1e-9)


@settings(deadline=None)
@given(t=st.integers(0, 999), x=st.floats(-4, 4))
def test_variance_exploding_score(t: int, x: float) -> None:
    """x_VE = x_VP / alpha, sigma_VE = sigma_VP / alpha: E[x0 | x] and E[eps | x] stay, score_VE = alpha score_VP."""
    exploding = LINEAR.to_variance_exploding()
    preserved, exploded = (
        [f(column(x / scale), s.alpha[t], s.sigma[t]).item() for f in (MIXTURE.x0, MIXTURE.eps, MIXTURE.score)]
        for s, scale in ((LINEAR, 1.0), (exploding, LINEAR.alpha[t]))
    )
    x0, eps, score = preserved
    # Roundings, relative to the terms of x - alpha x0, which 1 / sigma <= 100 multiplies in eps, and twice in score.
    assert exploded == pytest.approx([x0, eps, LINEAR.alpha[t] * score], rel=1e-10, abs=1e-10)
