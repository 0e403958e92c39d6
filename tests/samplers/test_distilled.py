"""LCM, TCD and consistency sampling against their papers' loops, on a nonlinear network in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.samplers import spacing
from fastdiff.schedules import Schedule
from tests.samplers.loops import LINEAR, T, denoiser, gaussian, trajectory

SYSTEMS = {"vp": LINEAR, "ve": fd.schedules.karras(T, sigma_min=0.01), "flow": fd.schedules.flow(T)}
EVERY_SYSTEM = pytest.mark.parametrize("schedule", SYSTEMS.values(), ids=SYSTEMS)
EVERY_COUNT = pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])

# A few roundings a step; the network forgives most of them.
TOLERANCE = 1e-12


def ours(name: str, schedule: Schedule, steps: int, **options: Any) -> Tensor:
    """The states after every row, of a network that predicts x0, clipped nowhere."""
    plan = fd.samplers.make(name, schedule, steps=steps, clip=None, prediction="x0", **options)
    return trajectory(denoiser(schedule, "x0"), plan, start(schedule))[0]


def start(schedule: Schedule) -> Tensor:
    return float(schedule.sigma[-1]) * gaussian(3, 5, seed=99)


def x0_of(schedule: Schedule, x: Tensor, t: int) -> Tensor:
    return denoiser(schedule, "x0")(x, torch.full((3,), float(t)))


def assert_close(states: Tensor, expected: list[Tensor]) -> None:
    scale = torch.stack(expected).abs().max()
    assert (states - torch.stack(expected)).abs().max() <= TOLERANCE * scale


@EVERY_SYSTEM
@EVERY_COUNT
def test_lcm(schedule: Schedule, steps: int) -> None:
    """Luo et al. 2023, Algorithm 3: boundary condition, x0, and noise but at the end."""
    scaling = 0.003  # small, so that c_skip counts at every level
    times = spacing.distilled(T, steps, 50).tolist()
    x, expected = start(schedule), []
    for row, (t, after) in enumerate(pairwise([*times, None])):
        scaled = scaling * t
        c_skip, c_out = 0.25 / (scaled**2 + 0.25), scaled / math.sqrt(scaled**2 + 0.25)
        x = c_skip * x + c_out * x0_of(schedule, x, t)
        if after is not None:
            x = schedule.alpha[after] * x + schedule.sigma[after] * gaussian(3, 5, seed=row)
        expected.append(x)
    assert_close(ours("lcm", schedule, steps, timestep_scaling=scaling), expected)


@EVERY_SYSTEM
@EVERY_COUNT
@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(schedule: Schedule, steps: int, gamma: float) -> None:
    """Zheng et al. 2024, Algorithm 4: to level floor((1 - gamma) t') along eps, and up to t' with noise."""
    times = spacing.distilled(T, steps, 50).tolist()
    x, expected = start(schedule), []
    for row, (t, after) in enumerate(pairwise([*times, None])):
        x0 = x0_of(schedule, x, t)
        if after is None:
            expected.append(x0)
            continue
        s = round((1 - gamma) * after - 0.499999)  # floor, for what is whole but for rounding too
        eps = (x - schedule.alpha[t] * x0) / schedule.sigma[t]
        share = schedule.alpha[after] / schedule.alpha[s]
        noise = math.sqrt(max(schedule.sigma[after] ** 2 - (share * schedule.sigma[s]) ** 2, 0))
        x = share * (schedule.alpha[s] * x0 + schedule.sigma[s] * eps) + noise * gaussian(3, 5, seed=row)
        expected.append(x)
    assert_close(ours("tcd", schedule, steps, gamma=gamma), expected)


@pytest.mark.parametrize("final", ["zero", "sigma_min"])
@EVERY_COUNT
def test_consistency(final: str, steps: int) -> None:
    """Song et al. 2023, Algorithm 1, in its own coordinates; final="zero" has epsilon = 0."""
    schedule = SYSTEMS["ve"]
    epsilon = 0.0 if final == "zero" else schedule.sigma[0]
    times = spacing.spaced(T, steps, "trailing").tolist()
    x, expected = start(schedule), []
    for row, (t, after) in enumerate(pairwise([*times, None])):
        x = x0_of(schedule, x, t)
        if after is not None:
            x = x + math.sqrt(schedule.sigma[after] ** 2 - epsilon**2) * gaussian(3, 5, seed=row)
        expected.append(x)
    assert_close(ours("consistency", schedule, steps, final=final, spacing="trailing"), expected)


@EVERY_SYSTEM
@EVERY_COUNT
def test_special_cases(schedule: Schedule, steps: int) -> None:
    """TCD with gamma 0 is DDIM; LCM without a boundary condition is consistency sampling."""
    times = spacing.distilled(T, steps, 50).tolist()
    options: dict[str, Any] = {"prediction": "v"}
    tcd, ddim = fd.samplers.tcd(schedule, steps, 0.0, **options), fd.samplers.ddim(schedule, timesteps=times, **options)
    assert tcd.columns == ddim.columns
    np.testing.assert_allclose(tcd.table, ddim.table, rtol=1e-15)
    lcm = fd.samplers.lcm(schedule, steps, timestep_scaling=None, **options)
    multistep = fd.samplers.consistency(schedule, timesteps=times, **options)
    assert lcm.columns == multistep.columns
    np.testing.assert_array_equal(lcm.table, multistep.table)


@EVERY_SYSTEM
@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_tcd_keeps_the_marginals(schedule: Schedule, gamma: float) -> None:
    """Between the schedule's levels too: the variances of eps and z add up to sigma'^2."""
    sigmas = fd.samplers.sigmas.exponential(9, 0.05, 50.0)
    plan = fd.samplers.tcd(schedule, gamma=gamma, sigmas=sigmas, prediction="v")
    np.testing.assert_allclose(np.hypot(plan.column("ce"), plan.column("cz")), plan.sigma[1:], rtol=1e-14)
    np.testing.assert_array_equal(plan.column("c0"), plan.alpha[1:])
    assert (plan.column("cz") > 0).any() == (gamma > 0)


def test_levels() -> None:
    """Those of 50 are 19, 39, ..., 999; a list, sigmas or a spacing replace them."""
    assert spacing.distilled(1000, 4, 50).tolist() == [999, 759, 499, 259]
    assert spacing.distilled(10, 3, 5).tolist() == [9, 7, 3]
    for options in ({"timesteps": [900, 400]}, {"spacing": "trailing"}, {"sigmas": [3.0, 0.5]}):
        plan = fd.samplers.lcm(LINEAR, 2, **options)
        np.testing.assert_array_equal(plan.t, fd.samplers.ddim(LINEAR, 2, **options).t)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("lcm", {"steps": 51}, "steps must be a whole number in 1..50, got 51"),
        ("tcd", {"steps": 0}, "steps must be a whole number in 1..50, got 0"),
        ("tcd", {"original_steps": 2000}, "original_steps must be a whole number in 1..1000, got 2000"),
        ("lcm", {"timestep_scaling": 0.0}, "timestep_scaling must be > 0 and finite, got 0.0"),
        ("tcd", {"gamma": 1.1}, "gamma must be >= 0 and <= 1, got 1.1"),
        ("tcd", {"gamma": math.nan}, "gamma must be >= 0 and <= 1, got nan"),
        ("tcd", {"gamma": "0.3"}, "gamma must be >= 0 and <= 1, got '0.3'"),
        ("consistency", {"gamma": 1.0}, "unknown option of consistency 'gamma'"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], message: str) -> None:
    """Each wrong argument gets one line that names it."""
    with pytest.raises(InputError, match=message) as caught:
        fd.samplers.make(name, LINEAR, **options)
    assert "\n" not in str(caught.value)


def test_tcd_needs_times_that_rise() -> None:
    """Where the ODE part ends is found by its time."""
    with pytest.raises(InputError, match="tcd needs a schedule whose times rise with the index"):
        fd.samplers.tcd(LINEAR.with_time(-LINEAR.time))
