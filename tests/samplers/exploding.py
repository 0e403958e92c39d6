"""What the tests of methods in s = sigma / alpha share: a denoiser of x / alpha, and runs of a plan in x / alpha."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.plan import Plan
from fastdiff.samplers import sigmas
from fastdiff.schedules import Schedule
from tests.samplers.loops import gaussian, trajectory

OfSigma = Callable[[Tensor, float], Tensor]
SHAPE = (3, 5)

SCHEDULES = {
    "vp": fd.schedules.linear(1000),
    "ve": fd.schedules.karras(1000).with_unit_input(),
    "flow": Schedule(np.linspace(0.999, 0.01, 500), 1 - np.linspace(0.999, 0.01, 500)),  # up to some signal
}
EVERY_SYSTEM = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

# Measured, the worst of all tests: 1e-14. A level is found from its ratio and its ratio again from the level, which
# costs last digits, and a few dozen steps carry them on.
TOLERANCE = 1e-12


def network(x: Tensor, t: Tensor) -> Tensor:
    """A nonlinear x0-prediction in which features mix and the time counts."""
    return torch.tanh(x / 2 + x.roll(1, dims=1) / 4 + t[:, None] / 1000 - 0.3)


def denoiser(schedule: Schedule, clip: float = math.inf) -> OfSigma:
    """D(x / alpha, s), the network's x0, clipped, at a level that may lie between the schedule's."""

    def denoise(x: Tensor, s: float) -> Tensor:
        time, alpha, _, scale_in = (float(value) for value in schedule.at_lambda(-math.log(s)))
        return network(scale_in * alpha * x, torch.full((len(x),), time, dtype=torch.float64)).clamp(-clip, clip)

    return denoise


def slope(schedule: Schedule, clip: float = math.inf) -> OfSigma:
    """d(x / alpha) / ds = (x / alpha - D) / s (Karras et al. 2022, eq. 3)."""
    denoise = denoiser(schedule, clip)
    return lambda x, s: (x - denoise(x, s)) / s


def levels(schedule: Schedule, steps: int) -> list[float]:
    """Karras' s over the whole schedule, and 0."""
    s = sigmas.karras(steps, schedule.sigma[0] / schedule.alpha[0], schedule.sigma[-1] / schedule.alpha[-1])
    return [*s.tolist(), 0.0]


def start(plan: Plan) -> Tensor:
    """x / alpha before the first row."""
    return gaussian(*SHAPE, seed=12345) * plan.sigma[0] / plan.alpha[0]


def states(plan: Plan) -> list[Tensor]:
    """x / alpha after each row, for the network as an x0-prediction; row i draws the noise `gaussian(seed=i)`."""
    found, _ = trajectory(network, plan, start(plan) * plan.alpha[0])
    return list(found / torch.from_numpy(plan.alpha[1:].copy())[:, None, None])


def noise(row: int) -> Tensor:
    """What a row draws."""
    return gaussian(*SHAPE, seed=row)


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference after any step, relative to the largest value there."""
    errors = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, expected, strict=True)]
    return float(np.max(errors))  # NaN where one is


def ends(plan: Plan, steps: int, found: list[Tensor]) -> list[Tensor]:
    """The states at the ends of steps of two rows, but of one for the last."""
    assert len(plan) == 2 * steps - 1
    return [*found[1::2], found[-1]]
