"""Section 2 of math.md: the posterior of a step, by Bayes' rule on a grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

import fastdiff as fd
from fastdiff.plan import Plan
from fastdiff.samplers import ddpm
from fastdiff.schedules import Schedule
from tests.samplers.levels import Levels, levels
from tests.theory.gaussian import log_density

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


def moments(log_p: Callable[[Array], Array], low: float, high: float) -> tuple[float, float]:
    """Mean and variance of a density on a grid, which two further grids of 16 standard deviations refine.

    The trapezoidal rule on a grid of two or more points per standard deviation is exact to rounding for Gaussians.
    """
    for _ in range(3):
        x = np.linspace(low, high, 2001)
        values = log_p(x)
        p = np.exp(values - values.max())
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
    return moments(lambda u: log_prior(u) + log_density(x, ratio * u, variance), -width, width)


def posterior_of(at: Levels, row: int, x0: float, x: float) -> tuple[float, float]:
    """Mean and standard deviation of q(x_prev | x_t = x, x0), whose prior is q(x_prev | x0)."""
    prior_mean, prior_sd = at.alpha_prev[row] * x0, at.sigma_prev[row]
    mean, variance = posterior(
        at, row, lambda u: log_density(u, prior_mean, prior_sd**2), x, width=abs(prior_mean) + 12 * prior_sd
    )
    return mean, variance**0.5


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
        mean, sd = posterior_of(at, row, x0, x)
        # The grid's truncation at 8 standard deviations, exp(-32) = 1e-14, and its rounding.
        assert plan.column("cx")[row] * x + plan.column("c0")[row] * x0 == pytest.approx(mean, rel=1e-9, abs=1e-9 * sd)
        assert plan.column("cz")[row] == pytest.approx(sd, rel=1e-9)


@pytest.mark.parametrize("steps", [1000, 13])
def test_mean_needs_the_one_step_alpha(steps: int) -> None:
    """Both forms of mu~ by Bayes' rule again: in x0, and mu~ = (x_t - beta / sqrt(1 - abar) eps) / sqrt(1 - beta).

    Some notes print sqrt(abar_t) for sqrt(1 - beta_t) in them. The mean in x0 then has too little of x_t, and that in
    eps is too large by 1 / sqrt(abar_prev): neither is the posterior's at any step.
    """
    at = levels(LINEAR, steps, "trailing")
    x0, eps = 0.7, -1.3
    for row in some_rows(ddpm(LINEAR, steps, spacing="trailing")):
        x = at.alpha[row] * x0 + at.sigma[row] * eps
        mean, sd = posterior_of(at, row, x0, x)
        abar, abar_prev = at.alpha[row] ** 2, at.alpha_prev[row] ** 2
        beta = 1 - abar / abar_prev
        of_x0, of_x = abar_prev**0.5 * beta / (1 - abar) * x0, (1 - abar_prev) / (1 - abar) * x
        without_eps = x - beta / (1 - abar) ** 0.5 * eps
        posterior_mean = pytest.approx(mean, rel=1e-9, abs=1e-9 * sd)  # as above
        step, printed = (1 - beta) ** 0.5, abar**0.5
        assert [of_x0 + step * of_x, without_eps / step] == [posterior_mean, posterior_mean]
        assert of_x0 + printed * of_x != posterior_mean
        assert without_eps / printed != posterior_mean


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
        mean, variance = posterior(at, row, lambda u: log_density(u, 0.0, 1.0), x, width=12.0)
        # As above: the grid.
        assert large.column("cz")[row] ** 2 == pytest.approx(variance, rel=1e-9)
        by_plan = large.column("cx")[row] * x + large.column("c0")[row] * at.alpha[row] * x
        assert by_plan == pytest.approx(mean, rel=1e-9)
        assert small.column("cz")[row] ** 2 < variance
