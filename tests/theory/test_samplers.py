"""Sections 4 and 5 of math.md: DDPM as a member of DDIM's and of the sigma-space family, and formulas misprinted."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.plan import Plan
from fastdiff.samplers import ddim, ddpm, sigma_space
from fastdiff.schedules import Schedule
from tests.samplers.levels import Levels, levels

Array = npt.NDArray[np.float64]

LINEAR = fd.schedules.linear(1000)
SCHEDULES = {
    "linear": LINEAR,
    "cosine": fd.schedules.cosine(1000),
    "karras": fd.schedules.karras(1000),
    "flow": fd.schedules.flow(1000),
}
EVERY_SYSTEM = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
STEPS = pytest.mark.parametrize("steps", [13, 1000])
OPTIONS: dict[str, Any] = {"spacing": "trailing", "prediction": "x0", "clip": None}


def update(plan: Plan, at: Levels) -> tuple[Array, Array, Array]:
    """Coefficients of x_t, x0_hat and z in x_prev, float64 [rows] each, with eps = (x_t - alpha x0_hat) / sigma."""
    ce = plan.column("ce")
    x, x0 = plan.column("cx") + ce / at.sigma, plan.column("c0") - ce * at.alpha / at.sigma
    return x, x0, plan.column("cz")


def same(first: Plan, second: Plan, at: Levels) -> None:
    """Hold two plans to be one sampler."""
    for a, b in zip(update(first, at), update(second, at), strict=True):
        # beta, a difference of squares, loses the digits that they share: at most 4 on these levels.
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)


@EVERY_SYSTEM
@STEPS
def test_eta_one_is_ddpm(schedule: Schedule, steps: int) -> None:
    """DDIM with s = sqrt((1 - abar_prev) / (1 - abar)) sqrt(1 - abar / abar_prev), eta = 1, is DDPM with beta~."""
    at = levels(schedule, steps, "trailing")
    same(ddim(schedule, steps, 1.0, **OPTIONS), ddpm(schedule, steps, "small", **OPTIONS), at)


@STEPS
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_s_has_the_ratio_of_both_levels(steps: int, eta: float) -> None:
    """The last factor of s is sqrt(1 - abar / abar_prev), that of one step; some notes print sqrt(1 - abar).

    That would make `s = eta sqrt(1 - abar_prev)`: at eta = 1 all of the next level's noise is new, and x_prev forgets
    the direction of x_t, which DDPM's mean does not.
    """
    at = levels(LINEAR, steps, "trailing")
    abar, abar_prev = at.alpha**2, at.alpha_prev**2
    s = eta * np.sqrt((1 - abar_prev) / (1 - abar)) * np.sqrt(1 - abar / abar_prev)
    printed = eta * np.sqrt((1 - abar_prev) / (1 - abar)) * np.sqrt(1 - abar)
    np.testing.assert_allclose(ddim(LINEAR, steps, eta, **OPTIONS).column("cz"), s, rtol=1e-9)  # as above
    np.testing.assert_allclose(printed, eta * np.sqrt(1 - abar_prev), rtol=1e-14)
    assert (printed[:-1] > s[:-1]).all()
    by_x, _, by_z = update(ddpm(LINEAR, steps, "small", **OPTIONS), at)
    assert (by_x[:-1] > 0).all() and (by_z[:-1] ** 2 < at.sigma_prev[:-1] ** 2).all()


@STEPS
def test_first_coefficient_is_no_ratio(steps: int) -> None:
    """The factor of x0_hat is sqrt(abar_prev), 1 in the last row; the printed sqrt(abar_prev / abar) is larger."""
    at = levels(LINEAR, steps, "trailing")
    plan = ddim(LINEAR, steps, **OPTIONS)
    np.testing.assert_array_equal(plan.column("c0"), at.alpha_prev)
    assert plan.column("c0")[-1] == 1
    assert (plan.column("c0") < at.alpha_prev / at.alpha).all()


@STEPS
def test_sigma_hat(steps: int) -> None:
    """s = sqrt(1 - abar / abar_prev) is the `sigma-hat` row of DDIM's Table 1: eta = 1 with noise of variance beta."""
    at = levels(LINEAR, steps, "trailing")
    hat, one = (ddim(LINEAR, steps, eta, **OPTIONS) for eta in ("sigma-hat", 1.0))
    s = np.sqrt(1 - (at.alpha / at.alpha_prev) ** 2)
    np.testing.assert_allclose(hat.column("cz")[:-1], s[:-1], rtol=1e-9)  # as above; the last row draws nothing
    for column in ("c0", "ce"):
        np.testing.assert_array_equal(hat.column(column), one.column(column))
    same(hat, ddpm(LINEAR, steps, "large", **OPTIONS), at)


# --- variance-exploding coordinates (Permenter & Yuan 2024)


def lower_sigma(sigma: float, sigma_prev: float, mu: float) -> float:
    """sigma' = (sigma_prev / sigma^mu)^(1 / (1 - mu))."""
    return float((sigma_prev / sigma**mu) ** (1 / (1 - mu)))


@given(mu=st.floats(0, 0.9), sigma=st.floats(0.01, 100), share=st.floats(0.01, 1))
def test_lower_sigma(mu: float, sigma: float, share: float) -> None:
    """sigma_prev = sigma^mu sigma'^(1 - mu), a geometric mean, and sigma' <= sigma_prev <= sigma.

    A step goes down to sigma' and comes up again to sigma_prev, by noise of variance sigma_prev^2 - sigma'^2.
    """
    sigma_prev = share * sigma
    lower = lower_sigma(sigma, sigma_prev, mu)
    assert sigma**mu * lower ** (1 - mu) == pytest.approx(sigma_prev, rel=1e-12)  # powers of a few roundings each
    assert lower <= sigma_prev * (1 + 1e-12) and sigma_prev <= sigma


@EVERY_SYSTEM
@pytest.mark.parametrize("mu", [0.0, 0.3, 0.5])
def test_sigma_space(schedule: Schedule, mu: float) -> None:
    """x <- x + (sigma' - sigma) eps + sqrt(sigma_prev^2 - sigma'^2) z in x / alpha: the table of the sampler."""
    plan, at = sigma_space(schedule, 13, mu, **OPTIONS), levels(schedule, 13, "trailing")
    by_x, by_x0, by_z = update(plan, at)
    with np.errstate(divide="ignore"):
        sigma, sigma_prev = at.sigma / at.alpha, at.sigma_prev / at.alpha_prev
    for row in range(len(plan)):
        lower = lower_sigma(sigma[row], sigma_prev[row], mu)
        # Of x0 + sigma eps, what is kept of x is sigma' / sigma.
        expected = lower / sigma[row], 1 - lower / sigma[row], (sigma_prev[row] ** 2 - lower**2) ** 0.5
        found = by_x[row] * at.alpha[row], by_x0[row], by_z[row]
        assert [value / at.alpha_prev[row] for value in found] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@EVERY_SYSTEM
def test_mu_of_ddim_and_of_ddpm(schedule: Schedule) -> None:
    """mu = 0 is DDIM: sigma' = sigma_prev; mu = 1/2 is DDPM: sigma' = sigma_prev^2 / sigma and the noise is beta~."""
    at = levels(schedule, 13, "trailing")
    same(sigma_space(schedule, 13, 0.0, **OPTIONS), ddim(schedule, 13, 0.0, **OPTIONS), at)
    same(sigma_space(schedule, 13, 0.5, **OPTIONS), ddpm(schedule, 13, "small", **OPTIONS), at)
