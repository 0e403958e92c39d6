"""Euler's method with EDM's preconditioning against diffusers, every state of whole loops."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch

from tests.integrations.loops import TOLERANCE, error, network, normals, pair, states

NAME = "EDMEulerScheduler"
CONFIGS: list[dict[str, Any]] = [
    {"sigma_schedule": schedule, "final_sigmas_type": final, **data}
    for schedule in ("karras", "exponential")
    for final in ("zero", "sigma_min")
    for data in ({}, {"sigma_data": 1.0, "rho": 5.0, "sigma_min": 0.01, "sigma_max": 20.0})
]
CHURNS: list[dict[str, float]] = [
    {},
    {"s_churn": 3.0},
    {"s_churn": 40.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003},
]


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("churn", CHURNS)
def test_every_state(predicts: str, churn: dict[str, float]) -> None:
    for config, (steps, first) in zip(CONFIGS, cycle([(5, 0), (13, 5), (18, 0)])):
        mine, theirs = pair(NAME, prediction_type=predicts, **config)
        found, expected = (states(scheduler, steps, first=first, **churn) for scheduler in (mine, theirs))
        assert error(found, expected) < TOLERANCE, (config, steps)


def test_all_counts() -> None:
    mine, theirs = pair(NAME)
    for steps in range(5, 51, 3):
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, steps


def test_own_ramp() -> None:
    """What `set_timesteps` takes for sigmas is, with Karras' levels, where they lie between largest and smallest."""
    mine, theirs = pair(NAME)
    given = {"sigmas": torch.tensor([0.0, 0.1, 0.4, 0.5, 0.9])}
    assert error(states(mine, 5, timesteps_of=given), states(theirs, 5, timesteps_of=given)) < TOLERANCE


@pytest.mark.parametrize("churn", CHURNS)
def test_x0_that_is_given(churn: dict[str, float]) -> None:
    """With `pred_original_sample` the network's output does not count."""
    found = []
    for scheduler in pair(NAME):
        scheduler.set_timesteps(6)
        x, generator = normals(0) * float(scheduler.init_noise_sigma), torch.Generator().manual_seed(3)
        for t in scheduler.timesteps[:5]:
            scaled = scheduler.scale_model_input(x, t)
            given = 0.3 * network(scaled, t)
            result = scheduler.step(scaled, t, x, **churn, generator=generator, pred_original_sample=given)
            x = result.prev_sample
            assert torch.equal(result.pred_original_sample, given)
        found.append((x, generator.get_state()))
    assert error([found[0][0]], [found[1][0]]) < TOLERANCE
    assert torch.equal(found[0][1], found[1][1])


def test_x0_of_each_step() -> None:
    mine, theirs = pair(NAME, prediction_type="v_prediction", sigma_data=0.7)
    for churn in CHURNS:
        x0s = []
        for scheduler in (mine, theirs):
            scheduler.set_timesteps(4)
            t, x = scheduler.timesteps[2], normals(1)
            out = network(scheduler.scale_model_input(x, t), t)
            x0s.append(scheduler.step(out, t, x, **churn, generator=torch.manual_seed(1)).pred_original_sample)
        assert error(x0s[:1], x0s[1:]) < TOLERANCE
