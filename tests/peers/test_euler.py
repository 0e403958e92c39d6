"""Euler, Heun, KDPM2, their ancestral forms and LMS against diffusers, every state of whole loops, in float64.

The peers' states are x / alpha. Their tables, too, are computed in float64; see `doubles.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.plan import Plan
from fastdiff.samplers import sigmas
from fastdiff.schedules import Schedule
from tests.peers.doubles import doubled
from tests.peers.loops import PREDICTIONS, error, gaussian, network, ours, schedule_of, theirs

# Diffusers calls numpy's functions on tensors, and numpy deprecates how torch answers.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

T = 1000
SCHEDULE = schedule_of(T)

# Measured, the worst of all cases: 8e-14. The peers find 1 - abar >= 1e-4 by subtraction, which can lose 4 digits of
# float64's 16.
TOLERANCE = 1e-12

PEERS = {
    "euler": ("euler_discrete", "EulerDiscreteScheduler"),
    "heun": ("heun_discrete", "HeunDiscreteScheduler"),
    "kdpm2": ("k_dpm_2_discrete", "KDPM2DiscreteScheduler"),
    "lms": ("lms_discrete", "LMSDiscreteScheduler"),
    "euler_ancestral": ("euler_ancestral_discrete", "EulerAncestralDiscreteScheduler"),
    "kdpm2_ancestral": ("k_dpm_2_ancestral_discrete", "KDPM2AncestralDiscreteScheduler"),
}
# What users choose there and what it is here; "linspace" has times between the schedule's, whose sigmas we are given.
SPACINGS = {
    "leading": ({"timestep_spacing": "leading"}, {"spacing": "leading"}),
    "trailing": ({"timestep_spacing": "trailing"}, {"spacing": "trailing"}),
    "linspace": ({"timestep_spacing": "linspace"}, None),
    "karras": ({"timestep_spacing": "linspace", "use_karras_sigmas": True}, {"spacing": "karras"}),
    "exponential": ({"timestep_spacing": "linspace", "use_exponential_sigmas": True}, {"spacing": "exponential"}),
}
CASES = [
    (name, prediction, spacing)
    for name in PEERS
    for spacing in SPACINGS
    for prediction in PREDICTIONS
    if (prediction == "eps" or spacing == "trailing")
    and not (name == "euler_ancestral" and spacing in ("karras", "exponential"))  # the peer knows timesteps alone
    and not (name in ("euler_ancestral", "kdpm2", "kdpm2_ancestral") and prediction == "x0")  # the peer refuses
]


def over_alpha(plan: Plan, scheduler: Any) -> list[Tensor]:
    """Our states over alpha, from the peer's start: it begins with noise of another size than 1 where alpha > 0."""
    start = float(scheduler.init_noise_sigma) * plan.alpha[0]
    states = ours(replace(plan, init_scale=start), T)
    return [state / alpha for state, alpha in zip(states, plan.alpha[1:], strict=True)]


def peer(monkeypatch: pytest.MonkeyPatch, name: str, steps: int, draws: Iterable[int], **config: Any) -> Any:
    """A scheduler with set timesteps whose draws are `gaussian` of the given numbers."""
    scheduler = doubled(monkeypatch, *PEERS[name], SCHEDULE, **config)
    numbers = iter(draws)
    module = f"diffusers.schedulers.scheduling_{PEERS[name][0]}.randn_tensor"
    if "ancestral" in name:
        monkeypatch.setattr(module, lambda *_, **__: gaussian(next(numbers)))
    scheduler.set_timesteps(steps)
    scheduler.set_begin_index(0)
    return scheduler


@pytest.mark.parametrize(("name", "prediction", "spacing"), CASES)
def test_every_state(name: str, prediction: str, spacing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full states after each row, those between two stages too. The network is asked at the same times."""
    config, options = SPACINGS[spacing]
    for steps in (5, 13):  # 13 does not divide T
        # The midpoint method draws in its second rows.
        draws = count(1, 2) if name == "kdpm2_ancestral" else count()
        scheduler = peer(monkeypatch, name, steps, draws, prediction_type=PREDICTIONS[prediction], **config)
        levels = options or {"sigmas": list(dict.fromkeys(scheduler.sigmas.tolist()))[:-1]}
        plan = fd.samplers.make(name, SCHEDULE, steps=steps, prediction=prediction, clip=None, **levels)
        assert error(over_alpha(plan, scheduler), theirs(scheduler, T, plan.t)) < TOLERANCE


@pytest.mark.parametrize("name", ["euler", "heun", "kdpm2", "lms", "euler_ancestral"])
def test_one_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step lands on x0 (the peer of kdpm2_ancestral fails)."""
    scheduler = peer(monkeypatch, name, 1, count(), timestep_spacing="trailing")
    plan = fd.samplers.make(name, SCHEDULE, steps=1, clip=None, spacing="trailing")
    assert error(over_alpha(plan, scheduler), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("order", [1, 2, 3])
def test_lms_orders(order: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each order of LMS."""
    scheduler = peer(monkeypatch, "lms", 13, (), timestep_spacing="trailing")
    plan = fd.samplers.lms(SCHEDULE, 13, order, clip=None, spacing="trailing")
    assert error(over_alpha(plan, scheduler), theirs(scheduler, T, order=order)) < TOLERANCE


def test_final_sigma_min_and_clip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Euler may land on the cleanest level, and Heun clip its x0."""
    scheduler = peer(monkeypatch, "euler", 13, (), timestep_spacing="trailing", final_sigmas_type="sigma_min")
    plan = fd.samplers.euler(SCHEDULE, 13, clip=None, spacing="trailing", final="sigma_min")
    assert error(over_alpha(plan, scheduler), theirs(scheduler, T)) < TOLERANCE
    scheduler = peer(monkeypatch, "heun", 13, (), timestep_spacing="trailing", clip_sample=True, clip_sample_range=0.3)
    plan = fd.samplers.heun(SCHEDULE, 13, clip=0.3, spacing="trailing")
    assert error(over_alpha(plan, scheduler), theirs(scheduler, T)) < TOLERANCE


# --- churn


def churned_peer(scheduler: Any, raised: list[float], churn: dict[str, float], early: bool) -> Tensor:
    """The last state of diffusers' Euler with churn.

    It has the network's output given, and only then raises the level. `early` leaves it so; else the output is that at
    the raised level, which the paper asks for: the peer will add the same noise then.
    """
    model = network(T)
    x, drawn = gaussian(10_000) * float(scheduler.init_noise_sigma), 0
    for i, t in enumerate(scheduler.timesteps):
        sigma, hat = float(scheduler.sigmas[i]), raised[i]
        scheduler.scale_model_input(x, t)
        at, time = (x, sigma) if early or hat == sigma else (x + math.sqrt(hat**2 - sigma**2) * gaussian(drawn), hat)
        drawn += hat != sigma
        level, _, _, _ = SCHEDULE.at_lambda(-math.log(time))
        out = model(at / math.sqrt(time**2 + 1), float(level))
        x = scheduler.step(
            out, t, x, s_churn=churn["churn"], s_tmin=churn["churn_min"], s_tmax=churn["churn_max"]
        ).prev_sample
    return x


def test_churn_is_the_peers_but_for_when_it_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Diffusers asks the network before it adds the noise that raises the level, at the lower level: not the paper's.

    Given the output that belongs to the raised state, it makes the paper's step and ours.
    """
    churn = {"churn": 3.0, "churn_min": 0.1, "churn_max": 10.0}
    plan = fd.samplers.euler(SCHEDULE, 13, clip=None, spacing="trailing", **churn)
    ratio = (plan.sigma[:-1] / plan.alpha[:-1]).tolist()
    before = fd.samplers.euler(SCHEDULE, 13, clip=None, spacing="trailing")
    rises = np.flatnonzero(~np.isclose(plan.sigma / plan.alpha, before.sigma / before.alpha))
    assert 3 <= len(rises) < 12
    # The noise that raises level i is drawn by row i - 1 here, by the peer in the order of its levels.
    numbers = {int(row) - 1: draw for draw, row in enumerate(rises)}

    def start() -> Any:
        scheduler = doubled(monkeypatch, *PEERS["euler"], SCHEDULE, timestep_spacing="trailing")
        scheduler.set_timesteps(13)
        scheduler.set_begin_index(0)
        return scheduler

    scheduler = start()
    model = network(T)
    x_init = gaussian(10_000) * float(scheduler.init_noise_sigma) * plan.alpha[0]
    final = fd.sample(
        lambda x, t: model(x, float(t[0])),
        plan,
        x_init.shape,
        dtype=torch.float64,
        x_init=x_init,
        noise=lambda _, row, shape: gaussian(numbers.get(row, 0)),
    )
    assert error([final], [churned_peer(scheduler, ratio, churn, early=False)]) < TOLERANCE
    assert error([final], [churned_peer(start(), ratio, churn, early=True)]) > 1e-3


# --- EDM


@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_edm_euler(spacing: str, final: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDM's preconditioning and times, log(sigma) / 4.

    With final_sigmas_type="sigma_min" the peer's last step goes from sigma_min to itself, which is no step.
    """
    sigma = getattr(sigmas, spacing)(13, 0.002, 80.0)[::-1]
    schedule = Schedule(np.ones(13), sigma, time=0.25 * np.log(sigma)).with_unit_input(0.5)
    config = {"sigma_schedule": spacing, "final_sigmas_type": final}
    scheduler = doubled(monkeypatch, "edm_euler", "EDMEulerScheduler", schedule, **config)
    scheduler.set_timesteps(13)
    scheduler.set_begin_index(0)
    idle = final == "sigma_min"
    table = np.append(sigma[::-1], sigma[0] if idle else 0.0)
    torch.testing.assert_close(scheduler.sigmas, torch.from_numpy(table), rtol=1e-6, atol=0)  # float32 here and there
    scheduler.sigmas, scheduler.timesteps = torch.from_numpy(table), torch.from_numpy(schedule.time[::-1].copy())
    expected = theirs(scheduler, T)
    if idle:
        assert torch.equal(expected.pop(), expected[-1])
    visited = range(12, -1 + idle, -1)
    plan = fd.samplers.euler(schedule, prediction="edm", clip=None, timesteps=visited, final=final)
    states = ours(replace(plan, init_scale=float(scheduler.init_noise_sigma)), T)
    assert error(states, expected) < TOLERANCE
