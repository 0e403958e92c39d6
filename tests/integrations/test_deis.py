"""DEIS against diffusers, every state of whole loops."""

from __future__ import annotations

from itertools import cycle, product
from typing import Any

import pytest
import torch

from fastdiff.errors import InputError
from tests.integrations.loops import TOLERANCE, error, in_float64, pair, states

NAME = "DEISMultistepScheduler"
SIGMAS: dict[str, dict[str, Any]] = {
    "schedule": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "flow": {"use_flow_sigmas": True, "flow_shift": 3.0},
}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
# How many steps, and which is the first.
LOOPS = [(1, 0), (5, 0), (14, 0), (15, 3), (21, 7)]
# Diffusers integrates powers of logarithms, whose large values cancel; measured, the worst of all cases: 2e-10.
EXACT = 1e-9
# Diffusers calls numpy's functions on tensors, and turns tensors into arrays, in ways of before numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")


def configs(sigmas: str) -> list[dict[str, Any]]:
    """Every order, prediction and way to end, each with the next of the spacings in turn."""
    kinds = ["epsilon", "flow_prediction"] if sigmas == "flow" else PREDICTIONS
    spacings = cycle(["linspace", "leading", "trailing"])
    keys = "solver_order", "prediction_type", "lower_order_final", "thresholding"
    options = product([1, 2, 3], kinds, [False, True], [False, True])
    return [
        {**dict(zip(keys, chosen, strict=True)), "timestep_spacing": next(spacings), **SIGMAS[sigmas]}
        for chosen in options
    ]


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_in_float64(sigmas: str) -> None:
    """Every option, from every first step, at diffusers' own sigmas."""
    for config, (steps, first) in zip(configs(sigmas), cycle(LOOPS), strict=False):
        mine, theirs = pair(NAME, **config)
        expected = states(in_float64(theirs), steps, first=first, dtype=torch.float64)
        assert error(states(mine, steps, first=first, dtype=torch.float64), expected) < EXACT, (config, steps)


@pytest.mark.parametrize("sigmas", ["schedule", "karras", "exponential", "flow"])
def test_in_float32(sigmas: str) -> None:
    """Whole loops, but for order 3 in many steps and at beta's sigmas, so close that diffusers' weights lose digits."""
    for config, steps in zip(configs(sigmas), cycle([5, 9, 14, 15, 20, 50, 6]), strict=False):
        if steps > 15 and config["solver_order"] == 3:
            continue
        mine, theirs = pair(NAME, **config)
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, (config, steps)


def test_largest_bound_below_one() -> None:
    """Thresholding with a largest bound below 1 divides by that."""
    mine, theirs = pair(NAME, thresholding=True, sample_max_value=0.5)
    assert error(states(mine, 8), states(theirs, 8)) < TOLERANCE


@pytest.mark.parametrize(
    ("kind", "flow"), [("v_prediction", True), ("flow_prediction", False)], ids=["v_of_flow", "flow_of_no_flow"]
)
def test_predictions_of_other_levels_are_refused(kind: str, flow: bool) -> None:
    mine, _ = pair(NAME, prediction_type=kind, use_flow_sigmas=flow)
    with pytest.raises(InputError, match=f"set use_flow_sigmas={not flow}"):
        states(mine, 5)


def test_other_solvers_names_are_read_as_diffusers_does() -> None:
    mine, theirs = pair(NAME, algorithm_type="dpmsolver++", solver_type="midpoint", solver_order=2)
    assert mine.config.solver_type == theirs.config.solver_type == "logrho"
    assert error(states(mine, 6), states(theirs, 6)) < TOLERANCE
