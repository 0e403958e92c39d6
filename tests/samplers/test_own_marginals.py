"""Samplers that leave the forward process, or ask networks that know where paths end: what they do instead."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.models import GaussianMixture
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level, at_index
from fastdiff.schedules import Schedule
from tests.samplers.propagate import marginals

# Rows round a few times, at the scale of states of up to 10.
ATOL = 1e-11
SYSTEMS = pytest.mark.parametrize(
    "schedule",
    [fd.schedules.scaled_linear(100), fd.schedules.karras(100, 0.1, 10.0)],
    ids=["vp", "ve"],
)


# --- distilled networks


def consistency_function(schedule: Schedule, m: float, s: float, end: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Where the path through x has sigma / alpha = end, in units of the data, for data N(m, s^2).

    Along a path (x / alpha - m) / sqrt(s^2 + (sigma / alpha)^2) stays.
    """

    def model(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma, _ = (torch.from_numpy(scale)[:, None] for scale in schedule.at_time(t.numpy()))
        return m + (x / alpha - m) * math.hypot(s, end) / torch.hypot(torch.tensor(s), sigma / alpha)

    return model


def ddim_target(schedule: Schedule, m: float, s: float, lands: Level) -> Callable[[Tensor, Tensor], Tensor]:
    """The x0 with which DDIM lands where the path through x has its `lands`, for data N(m, s^2)."""
    path = consistency_function(schedule, m, s, lands.ratio)

    def model(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma, _ = (torch.from_numpy(scale)[:, None] for scale in schedule.at_time(t.numpy()))
        share = lands.ratio * alpha / sigma  # x' / alpha' = (1 - share) x0 + share x / alpha
        return torch.where(share < 1, (path(x, t) - share * x / alpha) / (1 - share), 0.0)

    return model


@SYSTEMS
@pytest.mark.parametrize("s", [0.0, 0.5])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("consistency", {"final": "zero"}),
        ("consistency", {"final": "sigma_min"}),
        ("lcm", {"timestep_scaling": None}),
        ("tcd", {"gamma": 1.0, "final": "sigma_min"}),
    ],
)
def test_distilled(schedule: Schedule, s: float, name: str, options: dict[str, Any]) -> None:
    """With the exact network every state of a distilled sampler is distributed as its level says, in few steps, too."""
    m, first = 0.7, at_index(schedule, 0)
    lands = first.ratio if options.get("final") == "sigma_min" else 0.0
    model = ddim_target(schedule, m, s, first) if name == "tcd" else consistency_function(schedule, m, s, lands)
    for steps in (1, 2, 5):
        plan = fd.samplers.make(name, schedule, steps=steps, spacing="trailing", prediction="x0", clip=None, **options)
        mean, deviation = marginals(plan, model, plan.alpha[0] * m, math.hypot(plan.alpha[0] * s, plan.sigma[0]))
        np.testing.assert_allclose(mean, plan.alpha[1:] * m, rtol=0, atol=ATOL)
        np.testing.assert_allclose(deviation, np.hypot(plan.alpha[1:] * s, plan.sigma[1:]), rtol=0, atol=ATOL)


# --- Langevin dynamics, on data of one point m: the score is -(x - alpha m) / sigma^2


M = 0.7
Array = npt.NDArray[np.float64]


def from_afar(plan: Plan, schedule: Schedule) -> tuple[Array, Array]:
    """Mean and variance of every state from a start at mean 2 and deviation 0.1."""
    model = GaussianMixture([[M]], [0.0]).network(schedule)
    mean, deviation = marginals(plan, model, 2.0, 0.1)
    return np.append(2.0, mean), np.append(0.1, deviation) ** 2


def langevin_steps(mean: float, variance: float, target: float, sigma: float, r: float, n: int) -> tuple[float, float]:
    """After n steps x <- (1 - r) x + r target + sqrt(2 r) sigma z: geometric series."""
    settled = sigma**2 / (1 - r / 2)
    return target + (1 - r) ** n * (mean - target), settled + (1 - r) ** (2 * n) * (variance - settled)


@SYSTEMS
@pytest.mark.parametrize("r", [0.1, 0.7, 1.5])
def test_langevin(schedule: Schedule, r: float) -> None:
    """At one level, from anywhere, to N(alpha m, sigma^2 / (1 - r / 2)), r the step over sigma^2."""
    plan = fd.samplers.langevin(schedule, steps=20, sigma=0.5, step_size=r, clip=None)
    mean, variance = from_afar(plan, schedule)
    for n in range(21):
        expected = langevin_steps(2.0, 0.01, plan.alpha[0] * M, plan.sigma[0], r, n)
        assert (mean[n], variance[n]) == pytest.approx(expected, abs=ATOL)


@SYSTEMS
def test_annealed_langevin(schedule: Schedule) -> None:
    """The same at every level, in units of the data from level to level, and at the end the point itself."""
    r, n = 0.1, 3
    plan = fd.samplers.annealed_langevin(schedule, steps=4, per_level=n, step_size=r, spacing="trailing", clip=None)
    mean, variance = from_afar(plan, schedule)
    expected = 2.0, 0.01
    for row in range(0, 4 * n, n):
        expected = langevin_steps(*expected, plan.alpha[row] * M, plan.sigma[row], r, n)
        scale = (plan.alpha[row + n] if row < 3 * n else plan.alpha[row]) / plan.alpha[row]
        expected = scale * expected[0], scale**2 * expected[1]
        assert (mean[row + n], variance[row + n]) == pytest.approx(expected, abs=ATOL)
    assert (mean[-1], variance[-1]) == pytest.approx((M, 0.0), abs=ATOL)


@SYSTEMS
def test_predictor_corrector(schedule: Schedule) -> None:
    """With q(x | x') = N(a x', beta): a Langevin step of r = 2 (snr a)^2, (2 - a) x + beta score + sqrt(beta) z."""
    snr = 0.16
    plan = fd.samplers.predictor_corrector(schedule, steps=5, snr=snr, spacing="trailing", clip=None)
    mean, variance = from_afar(plan, schedule)
    expected = 2.0, 0.01
    for row in range(0, 10, 2):
        target, sigma = plan.alpha[row] * M, plan.sigma[row]
        a = plan.alpha[row] / plan.alpha[row + 2]
        beta = sigma**2 - a**2 * plan.sigma[row + 2] ** 2
        expected = langevin_steps(*expected, target, sigma, 2 * (snr * a) ** 2, 1)
        drawn = beta if row < 8 else 0.0
        slope = 2 - a - beta / sigma**2
        expected = slope * expected[0] + beta / sigma**2 * target, slope**2 * expected[1] + drawn
        assert (mean[row + 2], variance[row + 2]) == pytest.approx(expected, abs=ATOL)
