"""The two numbers of Permenter & Yuan 2024, against the paper's updates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.samplers import ddim, euler_ancestral, gradient_estimation, sigma_space
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, TOLERANCE, error, levels, noise, slope, start, states

STEPS = 8


@EVERY_SYSTEM
@pytest.mark.parametrize("mu", [0.0, 0.3, 0.5, 0.8])
def test_is_the_papers_loop(schedule: Schedule, mu: float) -> None:
    """x + (sigma' - sigma) eps + sqrt(sigma_prev^2 - sigma'^2) z, sigma' = (sigma_prev / sigma^mu)^(1 / (1 - mu))."""
    plan = sigma_space(schedule, STEPS, mu, prediction="x0", clip=None)
    s, eps = levels(schedule, STEPS), slope(schedule)
    x, expected = start(plan), []
    for i in range(STEPS):
        down = (s[i + 1] / s[i] ** mu) ** (1 / (1 - mu))
        x = x + (down - s[i]) * eps(x, s[i]) + math.sqrt(s[i + 1] ** 2 - down**2) * noise(i)
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
@pytest.mark.parametrize("gamma", [1.0, 1.5, 2.0])
def test_gradient_estimation_is_the_papers_loop(schedule: Schedule, gamma: float) -> None:
    """x + (sigma' - sigma) eps_bar with eps_bar = gamma eps_t + (1 - gamma) eps_{t+1}, at first eps_t."""
    plan = gradient_estimation(schedule, STEPS, gamma, prediction="x0", clip=None)
    s, eps = levels(schedule, STEPS), slope(schedule)
    x, expected, before = start(plan), [], None
    for i in range(STEPS):
        now = eps(x, s[i])
        x = x + (s[i + 1] - s[i]) * (now if before is None else gamma * now + (1 - gamma) * before)
        expected.append(x)
        before = now
    assert error(states(plan), expected) < TOLERANCE


def test_special_cases() -> None:
    """mu = 0 and gamma = 1 are DDIM, mu = 1/2 is DDPM with beta~: the ancestral step of eta = 1."""
    schedule = fd.schedules.linear(1000)
    ode = ddim(schedule, 13, spacing="trailing")
    for plan in (
        sigma_space(schedule, 13, 0.0, spacing="trailing"),
        gradient_estimation(schedule, 13, 1.0, spacing="trailing"),
    ):
        for column in ("c0", "ce", "cz", "ch0"):
            np.testing.assert_allclose(plan.column(column), ode.column(column), rtol=1e-14)  # a last digit
    half, ddpm = sigma_space(schedule, 13, 0.5, spacing="trailing"), euler_ancestral(schedule, 13, spacing="trailing")
    np.testing.assert_allclose(half.table, ddpm.table, rtol=1e-12)  # some last digits


@given(st.floats(0, 0.99), st.floats(1e-3, 1e3), st.floats(1e-3, 0.999))
def test_keeps_the_level(mu: float, now: float, share: float) -> None:
    """What goes down and what comes up add to the next level's variance, for any mu and any two levels."""
    plan = sigma_space(fd.schedules.karras(100), mu=mu, sigmas=[now, now * share])
    assert math.hypot(plan.column("ce")[0], plan.column("cz")[0]) == pytest.approx(
        now * share, rel=1e-12
    )  # last digits


def test_bad_numbers() -> None:
    """mu = 1 would need an infinite step down; gamma must be a number."""
    for mu in (-0.1, 1.0, math.nan):
        with pytest.raises(InputError, match=f"mu must be >= 0 and < 1, got {mu}"):
            sigma_space(fd.schedules.linear(1000), 4, mu)
    for gamma in (math.inf, math.nan):
        with pytest.raises(InputError, match=f"gamma must be finite, got {gamma}"):
            gradient_estimation(fd.schedules.linear(1000), 4, gamma)
