"""DDIM inversion, RePaint and predictor-corrector against diffusers, in float64."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.plan import Plan
from fastdiff.samplers import spacing
from fastdiff.schedules import Schedule
from tests.peers.doubles import doubled
from tests.peers.loops import SHAPE, error, gaussian, network, ours, schedule_of, theirs

T = 1000
SCHEDULE = schedule_of(T)
INVERSE = ("ddim_inverse", "DDIMInverseScheduler")

# The peers find 1 - abar >= 1e-4 by subtraction, which can lose 4 digits of float64's 16. Measured, the worst of all
# cases: 1e-14.
TOLERANCE = 1e-12


@pytest.mark.parametrize(("steps", "spacing"), [(7, "leading"), (50, "leading"), (50, "trailing"), (1000, "leading")])
def test_ddim_inversion(steps: int, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state, from clean data; where T is no multiple of the steps, the peer's trailing has wrong gaps.

    Without a clip: the peer clips the x0 of the level that it comes from, ours that of the level to go to.
    """
    scheduler = doubled(monkeypatch, *INVERSE, SCHEDULE, timestep_spacing=spacing, clip_sample=False)
    scheduler.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    scheduler.set_timesteps(steps)
    plan = fd.samplers.ddim_inversion(SCHEDULE, steps, spacing=spacing, clip=None)
    assert error(ours(replace(plan, init_scale=1.0), T), theirs(scheduler, T)) < TOLERANCE


def test_inverse_peer_says_one_network_in_two_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of the peer: the same network said as eps and as v gives two encodings, as v is read at the wrong level.

    Ours reads it at the level the network is asked for, where v = alpha eps - sigma x0 is exact.
    """
    eps_of = network(T)

    def v_of(x: Tensor, t: float) -> Tensor:
        alpha, sigma = SCHEDULE.alpha[int(t)], SCHEDULE.sigma[int(t)]
        return (eps_of(x, t) - sigma * x) / alpha

    def encoded(prediction: str, model: Any) -> tuple[Tensor, Tensor]:
        scheduler = doubled(
            monkeypatch,
            *INVERSE,
            SCHEDULE,
            clip_sample=False,
            prediction_type={"eps": "epsilon", "v": "v_prediction"}[prediction],
        )
        scheduler.initial_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
        scheduler.set_timesteps(20)
        theirs = gaussian(0)
        for t in scheduler.timesteps.tolist():
            theirs = scheduler.step(model(theirs, t), t, theirs).prev_sample
        plan = fd.samplers.ddim_inversion(SCHEDULE, 20, prediction=prediction, clip=None)
        found = fd.sample(lambda x, t: model(x, float(t[0])), plan, SHAPE, dtype=torch.float64, x_init=gaussian(0))
        return found, theirs

    (eps, peer_eps), (v, peer_v) = encoded("eps", eps_of), encoded("v", v_of)
    assert error([eps, v], [peer_eps, eps]) < TOLERANCE
    assert error([peer_v], [peer_eps]) > 1e-3


# --- RePaint


def repaint_peer(
    monkeypatch: pytest.MonkeyPatch, schedule: Schedule, steps: int, jump_length: int, jump_samples: int
) -> list[Tensor]:
    """The states that the peer asks the network about, and the last, without noise; nothing is known of the image."""
    scheduler = doubled(monkeypatch, "repaint", "RePaintScheduler", schedule, eta=1.0)
    free = torch.zeros(SHAPE, dtype=torch.float64)
    monkeypatch.setattr("diffusers.schedulers.scheduling_repaint.randn_tensor", lambda *_, **__: free)
    scheduler.set_timesteps(steps, jump_length, jump_samples)
    model, x, last, states = network(len(schedule)), gaussian(10_000), math.inf, []
    for t in scheduler.timesteps.tolist():
        if t < last:
            states.append(x)
            x = scheduler.step(model(x, t), t, x, free, free).prev_sample
        else:
            x = scheduler.undo_step(x, last)
        last = t
    return [*states[1:], x]


def repaint_plan(schedule: Schedule, steps: int, jump_length: int, jump_samples: int) -> Plan:
    """A plan that jumps from where the peer does, from clean data: a further level, which is all but that.

    It ends with one row more, from there. The peer clips x0 and leaves eps alone.
    """
    alpha, sigma = np.append(1.0, schedule.alpha), np.append(1e-14, schedule.sigma)
    longer = Schedule(alpha, sigma, time=np.arange(-1, len(schedule)))
    times = [*(spacing.spaced(len(schedule), steps, "leading") + 1), 0]
    return fd.samplers.repaint(longer, None, jump_length, jump_samples, timesteps=times, clip=1.0, rederive_eps=False)


def repaint_ours(schedule: Schedule, steps: int, jump_length: int, jump_samples: int) -> list[Tensor]:
    """Our states without noise."""
    plan = repaint_plan(schedule, steps, jump_length, jump_samples)
    model, states = network(len(schedule)), []
    fd.sample(
        lambda x, t: model(x, float(t[0])),
        plan,
        SHAPE,
        dtype=torch.float64,
        noise=lambda stream, draw, shape: gaussian(10_000) * (stream == "init"),
        callback=lambda row, x, x0: states.append(x.clone()),
    )
    return states[:-1]


@pytest.mark.parametrize(("steps", "jump_length", "jump_samples"), [(20, 3, 2), (11, 2, 3), (13, 5, 1), (33, 10, 4)])
def test_repaint(steps: int, jump_length: int, jump_samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps down and jumps up over every level, without noise; tests/samplers has the variances, after the paper.

    The peer jumps from finished data, where the paper jumps from the cleanest level with noise.
    """
    case = (fd.schedules.linear(steps, 0.01, 0.3), steps, jump_length, jump_samples)
    assert error(repaint_ours(*case), repaint_peer(monkeypatch, *case)) < TOLERANCE


def test_repaint_peer_jumps_too_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of the peer where it leaves out levels: it adds the noise of T // steps levels, but of later ones.

    Without jumps the two agree; the first jump, which should lead from 760 to 920, adds the betas of 800..959.
    """
    case = (SCHEDULE, 25, 4)
    assert error(repaint_ours(*case, 1), repaint_peer(monkeypatch, *case, 1)) < TOLERANCE
    states, expected = repaint_ours(*case, 2), repaint_peer(monkeypatch, *case, 2)
    plan = repaint_plan(*case, 2)
    jump = int(np.argmax(np.diff(plan.t) > 0))
    assert error(states[:jump], expected[:jump]) < TOLERANCE
    assert error(states[jump : jump + 1], expected[jump : jump + 1]) > 1e-3
    low, high = int(plan.t[jump]) - 40, int(plan.t[jump + 1])
    assert (low, high) == (760, 920)
    ours, theirs = (SCHEDULE.alpha[high + late] / SCHEDULE.alpha[low + late] for late in (0, 39))
    torch.testing.assert_close(states[jump] / ours, expected[jump] / theirs, rtol=1e-12, atol=0)


# --- predictor-corrector


@pytest.mark.parametrize("corrector_steps", [0, 1, 2])
def test_predictor_corrector(corrector_steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Song et al. 2021 in variance-exploding coordinates, as diffusers' pipeline runs them.

    Its step has the norms of score and noise, whose quotient is sigma in the mean: the network's output is given the
    norm that makes it sigma here. The last predictor's mean is the sample. The peer rounds its steps to float32.
    """
    levels, snr = 8, 0.16
    schedule = fd.schedules.geometric(levels, 0.01, 50.0)
    scheduler = doubled(monkeypatch, "sde_ve", "ScoreSdeVeScheduler", schedule, snr=snr)
    scheduler.discrete_sigmas = torch.from_numpy(schedule.sigma.copy())
    scheduler.timesteps = torch.linspace(1, 0, levels, dtype=torch.float64)
    rows = count()

    def score(x: Tensor, level: int, row: int) -> Tensor:
        """A score whose norm, averaged over the batch, is that of the row's noise over sigma."""
        out = network(levels)(x, level)
        norms = [torch.linalg.vector_norm(value, dim=(1, 2, 3)).mean() for value in (gaussian(row), out)]
        return -out * norms[0] / norms[1] / schedule.sigma[level]

    x, expected, row = gaussian(10_000) * 50.0, [], 0
    for i, level in enumerate(range(levels - 1, -1, -1)):
        for _ in range(corrector_steps):
            x = scheduler.step_correct(score(x, level, row), x).prev_sample
            expected.append(x)
            row += 1
        timestep = (level + 0.5) / (levels - 1)  # the peer rounds down
        step = scheduler.step_pred(score(x, level, row), timestep, x)
        x = step.prev_sample if i < levels - 1 else step.prev_sample_mean
        expected.append(x)
        row += 1

    plan = fd.samplers.predictor_corrector(
        schedule, None, corrector_steps, snr, prediction="score", clip=None, spacing="trailing"
    )
    states: list[Tensor] = []
    fd.sample(
        lambda x, t: score(x, int(t[0]), next(rows)),
        plan,
        SHAPE,
        dtype=torch.float64,
        noise=lambda stream, draw, _: gaussian(10_000 if stream == "init" else draw),
        callback=lambda row, x, x0: states.append(x.clone()),
    )
    assert error(states, expected) < 1e-7
