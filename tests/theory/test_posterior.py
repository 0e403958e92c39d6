"""Section 2 of math.md: the posterior of a step, by Bayes' rule on a grid, and what a network is to predict."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

import fastdiff as fd
from fastdiff import prediction
from fastdiff.plan import Plan
from fastdiff.samplers import ddpm
from fastdiff.schedules import Schedule
from tests.samplers.levels import Levels, levels

Array = npt.NDArray[np.float64]

LINEAR = fd.schedules.linear(1000)
CASES = pytest.mark.parametrize(
    ("schedule", "steps"),
    [
        (LINEAR, 1000),
        (LINEAR, 13),
        (fd.schedules.cosine(1000), 50),
        (fd.schedules.karras(100), 13),
        (fd.schedules.flow(1000), 13),
    ],
    ids=["every step", "13 of 1000", "cosine", "karras", "flow"],
)


def log_normal_density(x: Array | float, mean: Array | float, variance: float) -> Array:
    """log N(x; mean, variance) but for its constant."""
    return np.asarray(-((x - mean) ** 2) / (2 * variance))


def moments(
    log_density: Callable[[Array], Array], low: float, high: float, grids: int = 3, points: int = 2001
) -> tuple[float, float]:
    """Mean and variance of a density on a grid, which further grids of 16 standard deviations then refine.

    The trapezoidal rule on a grid of two or more points per standard deviation is exact to rounding for Gaussians.
    """
    for _ in range(grids):
        x = np.linspace(low, high, points)
        log_p = log_density(x)
        p = np.exp(log_p - log_p.max())
        p /= p.sum()
        mean = float(p @ x)
        variance = float(p @ (x - mean) ** 2)
        low, high = mean - 8 * variance**0.5, mean + 8 * variance**0.5
    return mean, variance


def some_rows(plan: Plan) -> list[int]:
    """Six rows, without the last, whose target is clean data and whose posterior is a point."""
    return sorted({int(row) for row in np.linspace(0, len(plan) - 2, 6)})


def posterior(at: Levels, row: int, log_prior: Callable[[Array], Array], x: float, width: float) -> tuple[float, float]:
    """Moments of p(x_prev | x_t = x), by Bayes' rule: p(x_prev) q(x_t | x_prev)."""
    ratio = at.alpha[row] / at.alpha_prev[row]
    variance = at.sigma[row] ** 2 - ratio**2 * at.sigma_prev[row] ** 2
    return moments(lambda u: log_prior(u) + log_normal_density(x, ratio * u, variance), -width, width)


@CASES
@pytest.mark.parametrize(("x0", "surprise"), [(0.7, 0.0), (-1.0, 2.0)])
def test_bayes_rule(schedule: Schedule, steps: int, x0: float, surprise: float) -> None:
    """q(x_prev | x_t, x0) is proportional to q(x_t | x_prev) q(x_prev | x0), and is N(mu~, beta~).

    mu~ = sqrt(abar_prev) beta / (1 - abar) x0 + sqrt(1 - beta) (1 - abar_prev) / (1 - abar) x_t and
    beta~ = (1 - abar_prev) / (1 - abar) beta: the columns of DDPM's plan.
    """
    plan = ddpm(schedule, steps, spacing="trailing", clip=None, prediction="x0")
    at = levels(schedule, steps, "trailing")
    for row in some_rows(plan):
        x = at.alpha[row] * x0 + surprise * at.sigma[row]
        prior_mean, prior_sd = at.alpha_prev[row] * x0, at.sigma_prev[row]
        mean, variance = posterior(
            at,
            row,
            lambda u, m=prior_mean, s=prior_sd: log_normal_density(u, m, s**2),
            x,
            width=abs(prior_mean) + 12 * prior_sd,
        )
        sd = variance**0.5
        # The grid's truncation at 8 standard deviations, exp(-32) = 1e-14, and its rounding.
        assert plan.column("cx")[row] * x + plan.column("c0")[row] * x0 == pytest.approx(mean, rel=1e-9, abs=1e-9 * sd)
        assert plan.column("cz")[row] == pytest.approx(sd, rel=1e-9)


@pytest.mark.parametrize("steps", [1000, 13])
def test_mean_in_eps_needs_the_one_step_alpha(steps: int) -> None:
    """mu~ = (x_t - beta / sqrt(1 - abar) eps) / sqrt(1 - beta), by Bayes' rule again.

    Some notes print sqrt(abar_t) for sqrt(1 - beta_t): that mean is too large by 1 / sqrt(abar_prev).
    """
    at = levels(LINEAR, steps, "trailing")
    plan = ddpm(LINEAR, steps, spacing="trailing", clip=None)
    x0, eps = 0.7, -1.3
    for row in some_rows(plan):
        x = at.alpha[row] * x0 + at.sigma[row] * eps
        prior_mean, prior_sd = at.alpha_prev[row] * x0, at.sigma_prev[row]
        mean, _ = posterior(
            at,
            row,
            lambda u, m=prior_mean, s=prior_sd: log_normal_density(u, m, s**2),
            x,
            width=abs(prior_mean) + 12 * prior_sd,
        )
        beta = 1 - (at.alpha[row] / at.alpha_prev[row]) ** 2
        numerator = x - beta / at.sigma[row] * eps
        assert numerator / (1 - beta) ** 0.5 == pytest.approx(mean, rel=1e-9, abs=1e-9)  # as above
        assert numerator / at.alpha[row] == pytest.approx(mean / at.alpha_prev[row], rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("steps", [1000, 13])
def test_small_and_large_are_the_two_extremes_of_data(steps: int) -> None:
    """The reverse step p(x_prev | x_t) has variance beta~ if the data is one point, beta if it is N(0, 1).

    Ho et al. 2020, section 3.2: the two choices bound the entropy of the reverse process. Both means are mu~ with
    the exact E[x0 | x_t]: the point itself, and alpha_t x_t.
    """
    at = levels(LINEAR, steps, "trailing")
    small, large = (ddpm(LINEAR, steps, v, "trailing", clip=None, prediction="x0") for v in ("small", "large"))
    x = 0.8
    for row in some_rows(small):
        mean, variance = posterior(at, row, lambda u: log_normal_density(u, 0.0, 1.0), x, width=12.0)
        # As above: the grid.
        assert large.column("cz")[row] ** 2 == pytest.approx(variance, rel=1e-9)
        by_plan = large.column("cx")[row] * x + large.column("c0")[row] * at.alpha[row] * x
        assert by_plan == pytest.approx(mean, rel=1e-9)
        assert small.column("cz")[row] ** 2 < variance


# --- what a network is to predict: Tweedie's formula

# Data: 0.4 N(-1, 0.2^2) + 0.6 N(0.5, 0.5^2).
WEIGHTS, CENTRES, WIDTHS = (np.array(values) for values in ([0.4, 0.6], [-1.0, 0.5], [0.2, 0.5]))


def log_mixture(x0: Array) -> Array:
    """Log density of the data."""
    p = WEIGHTS / WIDTHS * np.exp(-((x0[:, None] - CENTRES) ** 2) / (2 * WIDTHS**2))
    return np.log(np.maximum(p.sum(axis=1), np.finfo(np.float64).tiny))


def score(x: float, alpha: float, sigma: float) -> float:
    """d/dx log p(x_t): the mixture with centres alpha m and variances alpha^2 s^2 + sigma^2."""
    variance = alpha**2 * WIDTHS**2 + sigma**2
    p = WEIGHTS / np.sqrt(variance) * np.exp(-((x - alpha * CENTRES) ** 2) / (2 * variance))
    return float((p * (alpha * CENTRES - x) / variance).sum() / p.sum())


@pytest.mark.parametrize(
    "schedule", [LINEAR, fd.schedules.karras(1000), fd.schedules.flow(1000)], ids=["vp", "ve", "flow"]
)
@pytest.mark.parametrize("x_over_sd", [-1.0, 0.2, 1.5])
def test_tweedie(schedule: Schedule, x_over_sd: float) -> None:
    """E[x0 | x_t] = (x_t + sigma^2 score) / alpha, for data of two Gaussians and E[x0 | x_t] by Bayes on a grid.

    Every prediction is linear in (x0, eps): its own best guess, E[out | x_t], gives back the same E[x0 | x_t].
    """
    for level in (0, 100, 400, 700, 990):
        alpha, sigma = schedule.alpha[level], schedule.sigma[level]
        x = x_over_sd * (alpha**2 * 0.7 + sigma**2) ** 0.5
        # One grid, as two Gaussians may lie many standard deviations apart.
        x0, _ = moments(
            lambda u, a=alpha, s=sigma, x=x: log_mixture(u) + log_normal_density(x, a * u, s**2),
            -6.0,
            6.0,
            grids=1,
            points=20_001,
        )
        eps = -sigma * score(x, alpha, sigma)
        # The grid as above; 1 / alpha, at most 150, multiplies its rounding.
        assert (x - sigma * eps) / alpha == pytest.approx(x0, rel=1e-8, abs=1e-8)
        for name in prediction.names():
            c = prediction.coefficients(name, np.array([alpha]), np.array([sigma]), schedule.step_sigma[[level]])
            out = c.t0 * x0 + c.te * (x - alpha * x0) / sigma
            assert (c.px * x + c.po * out).item() == pytest.approx(x0, rel=1e-9, abs=1e-9)
            assert (c.ex * x + c.eo * out).item() == pytest.approx(eps, rel=1e-8, abs=1e-8 * max(1.0, alpha / sigma))
