"""Heun and the midpoint methods against diffusers, every state of whole loops, those between two stages too."""

from __future__ import annotations

import importlib
from itertools import cycle, product
from typing import Any

import pytest
import torch

from tests.integrations.loops import TOLERANCE, error, network, normals, pair, states
from tests.peers.doubles import Doubled

HEUN, ANCESTRAL = "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler"
NAMES = [HEUN, "KDPM2DiscreteScheduler", ANCESTRAL]
SPACINGS = ["linspace", "leading", "trailing"]
SIGMAS: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"beta_schedule": "scaled_linear", "steps_offset": 1},
]
# A schedule that is soon set up: these schedulers begin with all its levels.
SHORT = {"num_train_timesteps": 100, "beta_start": 0.01, "beta_end": 0.2}
# Diffusers turns tensors into arrays in a way of before numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array")


@pytest.mark.parametrize(
    ("name", "predicts"),  # diffusers refuses "sample" where the slope is taken halfway
    [*product(NAMES, ["epsilon", "v_prediction"]), (HEUN, "sample")],
)
def test_every_state(name: str, predicts: str) -> None:
    """At every second pair of sigmas and spacing."""
    pairs = list(product(SIGMAS, SPACINGS))[::2]
    for (sigmas, spacing), (steps, first) in zip(pairs, cycle([(5, 0), (13, 6), (9, 0), (17, 0), (8, 4)])):
        config = {"prediction_type": predicts, "timestep_spacing": spacing, **sigmas, **SHORT}
        mine, theirs = pair(name, **config)
        found, expected = (states(scheduler, steps, first=first) for scheduler in (mine, theirs))
        assert error(found, expected) < TOLERANCE, (config, steps)


@pytest.mark.parametrize("name", NAMES)
def test_all_counts(name: str) -> None:
    """With diffusers' own levels."""
    mine, theirs = pair(name)
    for steps in range(6, 51, 4):
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, steps


@pytest.mark.parametrize("name", NAMES)
def test_one_step(name: str) -> None:
    """One step lands on x0 = x - sigma eps."""
    mine, _ = pair(name, timestep_spacing="trailing", **SHORT)
    final = states(mine, 1, model=lambda x, t: torch.tanh(x))
    sigma = float(mine.sigmas[0])
    x = normals(0) * sigma
    assert error(final, [x - sigma * torch.tanh(x / (sigma**2 + 1) ** 0.5)]) < TOLERANCE


def test_ancestral_over_wide_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to sigma'^2 / sigma, which diffusers finds as sqrt(sigma'^2 - noise^2): in float32 few digits are left.

    In float64 it is ours to the tolerance.
    """
    levels = {"num_train_timesteps": 250, "beta_start": 0.004, "beta_end": 0.08}
    config = {"prediction_type": "v_prediction", "use_beta_sigmas": True, **levels}
    mine, theirs = pair(ANCESTRAL, **config)
    found, rounded = (states(scheduler, 8) for scheduler in (mine, theirs))
    module = importlib.import_module(type(theirs).__module__)
    draw, single = module.randn_tensor, torch.float32
    monkeypatch.setattr(
        module, "randn_tensor", lambda shape, dtype, **source: draw(shape, dtype=single, **source).to(dtype)
    )
    for library in ("np", "torch"):
        monkeypatch.setattr(module, library, Doubled(getattr(module, library)))
    exact = states(theirs, 8, dtype=torch.float64)
    assert exact[0].dtype == torch.float64
    assert error(rounded, exact) > TOLERANCE > error(found, exact)


@pytest.mark.parametrize("predicts", ["epsilon", "v_prediction", "sample"])
def test_clipping(predicts: str) -> None:
    for bound, steps in [(0.2, 7), (1.0, 12)]:
        mine, theirs = pair(HEUN, clip_sample=True, clip_sample_range=bound, prediction_type=predicts)
        expected = states(theirs, steps)
        assert error(states(mine, steps), expected) < TOLERANCE
        assert float(expected[-1].abs().max()) == pytest.approx(bound, rel=1e-5)


def test_own_timesteps() -> None:
    mine, theirs = pair(HEUN)
    given = {"timesteps": [950, 721, 400, 33, 0]}
    assert error(states(mine, None, timesteps_of=given), states(theirs, None, timesteps_of=given)) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_x0_of_each_row(name: str) -> None:
    """x0 belongs to the level at which the network was asked, between two levels too."""
    found = []
    for scheduler in pair(name, **SHORT):
        scheduler.set_timesteps(6)
        torch.manual_seed(0)
        x, x0s = normals(0) * float(scheduler.init_noise_sigma), []
        for t in scheduler.timesteps:
            result = scheduler.step(network(scheduler.scale_model_input(x, t), t), t, x)
            x = result.prev_sample
            x0s.append(result.pred_original_sample)
        found.append(x0s)
    assert error(*found) < TOLERANCE
