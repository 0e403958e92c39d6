"""Heun and the midpoint methods against plain loops: Karras et al. 2022, Algorithm 2, and k-diffusion's DPM2."""

from __future__ import annotations

import math

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.samplers import heun, kdpm2, kdpm2_ancestral
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, TOLERANCE, ends, error, levels, noise, slope, start, states

STEPS = 8
CHURNS = pytest.mark.parametrize("churn", [(0.0, 0.0, math.inf, 1.0), (2.0, 0.05, 20.0, 1.01)])


@EVERY_SYSTEM
@CHURNS
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("method", [heun, kdpm2])
def test_is_the_papers_loop(method, schedule: Schedule, churn: tuple[float, ...], clip: float | None) -> None:
    """Raise the level by noise, ask twice, and step; the last step is Euler's."""
    plan = method(schedule, STEPS, *churn, prediction="x0", clip=clip)
    amount, low, high, scale = churn
    s, direction = levels(schedule, STEPS), slope(schedule, clip or math.inf)
    x, expected = start(plan), []
    for i in range(STEPS):
        gamma = min(amount / STEPS, math.sqrt(2) - 1) if low <= s[i] <= high else 0.0
        hat = s[i] * (1 + gamma)
        if i:
            x = x + math.sqrt(hat**2 - s[i] ** 2) * scale * noise(2 * i - 1)
            expected.append(x)
        first = direction(x, hat)
        if not s[i + 1]:
            x = x - hat * first
        elif method is heun:
            second = direction(x + (s[i + 1] - hat) * first, s[i + 1])
            x = x + (s[i + 1] - hat) * (first + second) / 2
        else:
            middle = math.exp((math.log(hat) + math.log(s[i + 1])) / 2)
            x = x + (s[i + 1] - hat) * direction(x + (middle - hat) * first, middle)
    assert error(ends(plan, STEPS, states(plan)), [*expected, x]) < TOLERANCE


@EVERY_SYSTEM
def test_ancestral_midpoint(schedule: Schedule) -> None:
    """Down to s_down by the midpoint between s and s_down, and up by noise."""
    plan = kdpm2_ancestral(schedule, STEPS, eta=0.8, prediction="x0", clip=None)
    s, direction = levels(schedule, STEPS), slope(schedule)
    x, expected = start(plan), []
    for i in range(STEPS - 1):
        up = 0.8 * math.sqrt(s[i + 1] ** 2 * (s[i] ** 2 - s[i + 1] ** 2) / s[i] ** 2)
        down = math.sqrt(s[i + 1] ** 2 - up**2)
        middle = math.sqrt(s[i] * down)
        stage = x + (middle - s[i]) * direction(x, s[i])
        x = x + (down - s[i]) * direction(stage, middle) + up * noise(2 * i + 1)
        expected.append(x)
    expected.append(x - s[-2] * direction(x, s[-2]))
    assert error(ends(plan, STEPS, states(plan)), expected) < TOLERANCE
    assert kdpm2_ancestral(schedule, STEPS, eta=0.0).table.tolist() == kdpm2(schedule, STEPS).table.tolist()


@pytest.mark.parametrize("method", [heun, kdpm2, kdpm2_ancestral])
def test_rows(method) -> None:
    """Two rows a step, but one onto clean data and one from pure noise; with final="sigma_min" two at the end too."""
    schedule = fd.schedules.linear(1000)
    assert [len(method(schedule, steps)) for steps in (1, 2, 10)] == [1, 3, 19]
    assert len(method(schedule, 10, final="sigma_min")) == 20
    zero = method(schedule.zero_terminal_snr(), 10, spacing="trailing", prediction="v")
    assert len(zero) == 18
    np.testing.assert_array_equal(zero.alpha[:2] > 0, [False, True])
