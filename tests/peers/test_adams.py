"""DEIS, PNDM, PLMS and iPNDM against diffusers, every step of them, in float64."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.schedules import Schedule
from tests.peers.loops import PREDICTIONS, SPACINGS, error, in_float64, ours, schedule_of, theirs

# Diffusers calls numpy's functions on tensors, and numpy deprecates how torch answers.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

T = 1000
SCHEDULE = schedule_of(T)
STEPS = [5, 13, 20]  # 13 does not divide T

# Measured, the worst of all cases: 1e-12. The peers integrate powers of logarithms, whose large values cancel.
TOLERANCE = 1e-11


# --- DEIS


def deis_peer(steps: int, order: int, spacing: str, prediction: str = "eps", **config: Any) -> Any:
    """Diffusers' DEIS with our sigmas in float64."""
    scheduler = diffusers.DEISMultistepScheduler(
        num_train_timesteps=T,
        solver_order=order,
        timestep_spacing=spacing,
        prediction_type=PREDICTIONS[prediction],
        **config,
    )
    scheduler.set_timesteps(steps)
    ratio = SCHEDULE.sigma / SCHEDULE.alpha
    scheduler.sigmas = torch.from_numpy(ratio[[*scheduler.timesteps.tolist(), 0]])
    return scheduler


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("steps", STEPS)
def test_deis(order: int, spacing: str, prediction: str, steps: int) -> None:
    """Every order: the polynomials in log rho; under 15 steps the peer's order falls at the end if it is asked to.

    The peer lands on the schedule's cleanest level, and its leading and linspace are those of one step more.
    """
    for lower in (False, True):
        scheduler = deis_peer(steps, order, spacing, prediction, lower_order_final=lower)
        plan = fd.samplers.deis(
            SCHEDULE,
            order=order,
            timesteps=scheduler.timesteps.tolist(),
            lower_order_final=lower and steps < 15,
            final="sigma_min",
            clip=None,
            prediction=prediction,
        )
        assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_deis_between_levels(name: str) -> None:
    """Levels between the schedule's. The peer's last step goes nowhere: from the last sigma to the same."""
    steps = 10
    ratio = SCHEDULE.sigma / SCHEDULE.alpha
    sigmas = fd.samplers.sigmas.SPACINGS[name](steps, ratio[0], ratio[-1])
    plan = fd.samplers.deis(SCHEDULE, sigmas=sigmas[:-1], final="sigma_min", clip=None)
    scheduler = deis_peer(steps, 3, "linspace", lower_order_final=False, **{f"use_{name}_sigmas": True})
    # Its network is given whole timesteps; ours, and here its own, the times of these sigmas.
    times = fd.samplers.ddim(SCHEDULE, sigmas=sigmas).t
    assert np.abs(times - scheduler.timesteps.numpy()).max() < 1
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, sigmas[-1]))
    states = theirs(scheduler, T, times)
    assert error(ours(plan, T), states[:-1]) < TOLERANCE
    assert torch.equal(states[-1], states[-2])


# --- PNDM and PLMS


def pndm_peer(steps: int, spacing: str, prediction: str, **config: Any) -> list[Tensor]:
    scheduler = in_float64(
        diffusers.PNDMScheduler(
            num_train_timesteps=T,
            timestep_spacing=spacing,
            prediction_type=PREDICTIONS[prediction],
            **config,
        ),
        SCHEDULE,
    )
    scheduler.set_timesteps(steps)
    return theirs(scheduler, T)


@pytest.mark.parametrize("steps", [5, 10, 50])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_plms(steps: int, prediction: str) -> None:
    """Skip_prk_steps, where steps divides T and the peer's gap is right: Heun's step, then orders 2, 3 and 4.

    It takes v for eps before the mean, ours is of eps: with v only its first states are the same, see below.
    """
    plan = fd.samplers.plms(SCHEDULE, steps, spacing="leading", clip=None, prediction=prediction)
    expected = pndm_peer(steps, "leading", prediction, skip_prk_steps=True)
    states = ours(plan, T)
    assert len(plan) == steps + 1
    if prediction == "eps":
        assert error(states, expected) < TOLERANCE
    else:
        assert error(states[:1], expected[:1]) < TOLERANCE
        assert error(states, expected) > 1e-3


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_pndm(steps: int) -> None:
    """F-PNDM: three Runge-Kutta steps, then four eps at a time."""
    plan = fd.samplers.pndm(SCHEDULE, steps, spacing="leading", clip=None)
    expected = pndm_peer(steps, "leading", "eps")
    assert len(plan) == steps + 9
    assert error(ours(plan, T), expected) < TOLERANCE


# --- iPNDM


def ipndm_levels(start: float, steps: int) -> Schedule:
    """The peer's own levels, sigma = sin^2 of an even angle; its network is given t = 2 / pi atan(sigma / alpha)."""
    sigma = np.sin(np.linspace(0, start, steps + 1)[1:] * math.pi / 2) ** 2
    alpha = np.sqrt(1 - sigma**2)
    return Schedule(alpha, sigma, time=np.arctan2(sigma, alpha) * 2 / math.pi)


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 20])
def test_ipndm(steps: int) -> None:
    """The order rises from 1 to 4. From sigma < 1: at 1 the peer divides by 1e-8 for alpha = 0, see below."""
    schedule = ipndm_levels(0.99, steps)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(steps)
    scheduler.alphas = torch.from_numpy(np.append(schedule.alpha[::-1], 1.0))
    scheduler.betas = torch.from_numpy(np.append(schedule.sigma[::-1], 0.0))
    plan = fd.samplers.ipndm(schedule, None, clip=None, prediction="v")
    assert error(ours(plan, 1), theirs(scheduler, 1, plan.t)) < TOLERANCE


def test_ipndm_peer_loses_the_first_x0() -> None:
    """A defect of the peer: from pure noise it takes 0 for x0, whatever its network said; ours takes -v."""
    plan = fd.samplers.ipndm(ipndm_levels(1.0, 5), None, clip=None, prediction="v")
    assert (plan.column("px")[0], plan.column("po")[0]) == (0, -1)
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(5)
    x, v = torch.full((1, 1), 0.5), torch.full((1, 1), -0.8)
    after = scheduler.step(v, scheduler.timesteps[0], x).prev_sample
    torch.testing.assert_close(after, scheduler.betas[1] * x)  # sigma' eps, in float32
