"""Heun's method in a schedule's own coordinates, and flow matching's Euler method as DDIM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.schedules import Schedule
from tests.samplers.loops import LINEAR, T, denoiser, gaussian, trajectory

FLOW = fd.schedules.flow(T, shift=3.0)
SYSTEMS = {"vp": LINEAR, "ve": fd.schedules.karras(T), "flow": FLOW, "zero-snr": LINEAR.zero_terminal_snr()}

# A few roundings a step.
TOLERANCE = 1e-13


def velocity(schedule: Schedule, x: Tensor, level: int) -> tuple[Tensor, Tensor]:
    """x0 and eps at a level of the schedule."""
    x0 = denoiser(schedule, "x0")(x, torch.full((len(x),), float(level)))
    return x0, (x - schedule.alpha[level] * x0) / schedule.sigma[level]


@pytest.mark.parametrize("schedule", SYSTEMS.values(), ids=SYSTEMS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_heun(schedule: Schedule, steps: int) -> None:
    """The mean of the slopes at both ends of a step, dx = x0 d alpha + eps d sigma; the last step is Euler's."""
    levels = fd.samplers.spacing.spaced(T, steps, "trailing").tolist()
    x = float(schedule.sigma[-1]) * gaussian(3, 5)
    expected = []
    for now, after in zip(levels, [*levels[1:], None], strict=True):
        x0, eps = velocity(schedule, x, now)
        if after is None:
            expected.append(x0)
            continue
        alpha, sigma = schedule.alpha[after] - schedule.alpha[now], schedule.sigma[after] - schedule.sigma[now]
        euler = x + alpha * x0 + sigma * eps
        x0_there, eps_there = velocity(schedule, euler, after)
        x = x + alpha * (x0 + x0_there) / 2 + sigma * (eps + eps_there) / 2
        expected += [euler, x]
    plan = fd.samplers.flow_heun(schedule, steps, clip=None, prediction="v")
    states, _ = trajectory(denoiser(schedule, "v"), plan, float(schedule.sigma[-1]) * gaussian(3, 5))
    assert len(plan) == 2 * steps - 1
    scale = torch.stack(expected).abs().amax(dim=(1, 2), keepdim=True)
    assert ((states - torch.stack(expected)).abs() <= TOLERANCE * scale).all()


@pytest.mark.parametrize("steps", [1, 7])
def test_euler_is_ddim(steps: int) -> None:
    """x + (t' - t)(eps - x0) on rectified flow, from pure noise; alpha = 1 - t, sigma = t."""
    plan = fd.samplers.ddim(FLOW, steps, spacing="trailing", clip=None, prediction="flow")
    t = np.append(FLOW.sigma[plan.t.astype(int)], 0.0)
    # x0 = x - t v and eps = x + (1 - t) v
    for column, expected in (("px", np.ones(steps)), ("po", -t[:-1]), ("c0", 1 - t[1:]), ("ce", t[1:])):
        np.testing.assert_allclose(plan.column(column), expected, rtol=1e-15, atol=1e-16)
    np.testing.assert_allclose(plan.column("eo")[:-1], 1 - t[:-2], rtol=1e-15, atol=1e-16)


def test_times_of_a_shifted_flow() -> None:
    """The default, "trailing", visits t = i / S as the schedule's shift moves it."""
    plan = fd.samplers.flow_heun(FLOW, 5, prediction="flow")
    t = np.arange(5, 0, -1) / 5
    np.testing.assert_allclose(plan.sigma[[0, 1, 3, 5, 7]], 3 * t / (1 + 2 * t), rtol=1e-15)
