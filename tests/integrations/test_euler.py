"""Euler's methods in sigma against diffusers, every state of whole loops, with the noise of one generator."""

from __future__ import annotations

import importlib
from itertools import cycle, product
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.errors import InputError
from tests.integrations.loops import SHAPE, TOLERANCE, error, network, normals, pair, states
from tests.peers.doubles import Doubled

EULER, ANCESTRAL = "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
SPACINGS = ["linspace", "leading", "trailing"]
SIGMAS: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_karras_sigmas": True, "sigma_min": 0.05, "sigma_max": 50.0},
    {"use_exponential_sigmas": True, "final_sigmas_type": "sigma_min"},
    {"use_beta_sigmas": True},
    {"interpolation_type": "log_linear"},
    {"final_sigmas_type": "sigma_min"},
    {"rescale_betas_zero_snr": True},
    {"timestep_type": "continuous", "beta_schedule": "scaled_linear", "steps_offset": 1},
]
# Diffusers turns tensors into arrays in a way of before numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array")


@pytest.mark.parametrize("predicts", PREDICTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_state(predicts: str, spacing: str) -> None:
    for sigmas, steps in zip(SIGMAS, cycle([5, 13, 20])):
        mine, theirs = pair(EULER, prediction_type=predicts, timestep_spacing=spacing, **sigmas)
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, (sigmas, steps)


@pytest.mark.parametrize("name", [EULER, ANCESTRAL])
def test_all_counts(name: str) -> None:
    for steps, spacing in zip(range(5, 51, 3), cycle(SPACINGS)):
        mine, theirs = pair(name, timestep_spacing=spacing)
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, steps


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_state_of_ancestral(spacing: str) -> None:
    for predicts, rescales in product(["epsilon", "v_prediction"], [False, True]):
        config = {"prediction_type": predicts, "timestep_spacing": spacing, "rescale_betas_zero_snr": rescales}
        mine, theirs = pair(ANCESTRAL, **config)
        for steps, first in [(5, 0), (13, 6), (20, 0)]:
            found, expected = (states(scheduler, steps, first=first) for scheduler in (mine, theirs))
            assert error(found, expected) < TOLERANCE, (config, steps)


@pytest.mark.parametrize(
    ("name", "predicts", "levels", "steps"),
    [
        (EULER, "v_prediction", {"rescale_betas_zero_snr": True}, 1),
        (EULER, "sample", {"rescale_betas_zero_snr": True}, 1),
        (ANCESTRAL, "v_prediction", {"rescale_betas_zero_snr": True}, 1),
        (EULER, "v_prediction", {"beta_schedule": "squaredcos_cap_v2"}, 5),
    ],
)
def test_from_next_to_no_signal(
    name: str, predicts: str, levels: dict[str, Any], steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From sigma in the thousands to x of size 1, diffusers keeps 3 digits; in float64 it is ours to the tolerance."""
    mine, theirs = pair(name, prediction_type=predicts, timestep_spacing="trailing", **levels)
    found, rounded = states(mine, steps), states(theirs, steps)
    monkeypatch.setattr(importlib.import_module(type(theirs).__module__), "torch", Doubled(torch))
    exact = states(theirs, steps, dtype=torch.float64)
    assert exact[0].dtype == torch.float64
    assert error(rounded, exact) > TOLERANCE > error(found, exact)


@pytest.mark.parametrize("given", [{"sigmas": [14.0, 9.0, 4.0, 1.5, 0.3, 0.0]}, {"timesteps": [901, 777, 300, 42, 0]}])
def test_own_levels(given: dict[str, Any]) -> None:
    mine, theirs = pair(EULER)
    assert error(states(mine, None, timesteps_of=given), states(theirs, None, timesteps_of=given)) < TOLERANCE


# --- churn


@pytest.mark.parametrize("predicts", [*PREDICTIONS, "original_sample"])
@pytest.mark.parametrize("spacing", ["linspace", "leading"])
def test_churn(predicts: str, spacing: str) -> None:
    """State and x0, which diffusers finds after it has added the noise."""
    churns = [{"s_churn": 2.0}, {"s_churn": 80.0, "s_noise": 1.003}, {"s_churn": 9.0, "s_tmin": 0.1, "s_tmax": 5.0}]
    for churn, steps in zip(churns, [5, 13, 20], strict=True):
        schedulers = pair(EULER, prediction_type=predicts, timestep_spacing=spacing)
        (found, x0s), (expected, their_x0s) = (churned(scheduler, steps, churn) for scheduler in schedulers)
        assert error(found, expected) < TOLERANCE
        assert error(x0s, their_x0s) < TOLERANCE
        assert error(found, states(schedulers[1], steps)) > 100 * TOLERANCE


def churned(scheduler: Any, steps: int, churn: dict[str, float]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The states of a loop, and x0 in each step."""
    scheduler.set_timesteps(steps)
    generator, found = torch.Generator().manual_seed(7), []
    x = normals(0) * float(scheduler.init_noise_sigma)
    for t in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, t), t)
        found.append(scheduler.step(out, t, x, **churn, generator=generator))
        x = found[-1].prev_sample
    return [step.prev_sample for step in found], [step.pred_original_sample for step in found]


def test_churn_that_begins_and_ends() -> None:
    """Churn is said in each step, and may be in some alone."""
    finals = []
    for scheduler in pair(EULER):
        scheduler.set_timesteps(9)
        x, generator = normals(0) * float(scheduler.init_noise_sigma), torch.Generator().manual_seed(1)
        for i, t in enumerate(scheduler.timesteps):
            out = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(out, t, x, s_churn=3.0 * (3 <= i < 6), generator=generator).prev_sample
        finals.append((x, generator.get_state()))
    assert error([finals[0][0]], [finals[1][0]]) < TOLERANCE
    assert torch.equal(finals[0][1], finals[1][1])


def test_churn_in_reduced_precision() -> None:
    mine, theirs = pair(EULER)
    churn = {"s_churn": 3.0, "s_tmax": 1.0}  # no noise in the first rows, noise in the last
    found, expected = (states(scheduler, 8, dtype=torch.bfloat16, **churn) for scheduler in (mine, theirs))
    assert error(found, expected) < 4 * torch.finfo(torch.bfloat16).eps


def test_churn_is_not_negative() -> None:
    mine, _ = pair(EULER)
    with pytest.raises(InputError, match="s_churn"):
        states(mine, 5, s_churn=-1.0)


def test_unknown_prediction() -> None:
    mine, _ = pair(EULER, prediction_type="score")
    with pytest.raises(InputError, match="prediction_type"):
        states(mine, 5)


def test_gradients_flow_through_a_step() -> None:
    """As in diffusers, for guidance by a gradient of x0."""
    grads = []
    for scheduler in pair(EULER):
        scheduler.set_timesteps(5)
        x = (normals(0) * 5).requires_grad_()
        t = scheduler.timesteps[2]
        found = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
        grads.append(torch.autograd.grad(found.prev_sample.square().sum() + found.pred_original_sample.sum(), x)[0])
    assert error(grads[:1], grads[1:]) < TOLERANCE
    assert grads[0].shape == SHAPE
    assert np.isfinite(grads[0].numpy()).all()
