"""UniPC against diffusers, every state of whole loops."""

from __future__ import annotations

import inspect
from itertools import cycle, product
from typing import Any

import diffusers
import pytest
import torch

import fastdiff.integrations.diffusers as ours
from tests.integrations.loops import TOLERANCE, error, in_float64, pair, states

NAME = "UniPCMultistepScheduler"
SIGMAS: dict[str, dict[str, Any]] = {
    "schedule": {},
    "zero_snr": {"rescale_betas_zero_snr": True},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "flow": {"use_flow_sigmas": True, "flow_shift": 3.0},
}
PREDICTIONS = ["epsilon", "sample", "v_prediction"]
LOOPS = [(1, 0), (5, 0), (10, 3), (20, 0), (21, 7)]
# Diffusers' phi functions are differences that cancel in short steps, and alpha begins at 1e-6 on a flow; measured,
# the worst of all cases: 7e-7.
EXACT = 1e-5


def configs(sigmas: str) -> list[dict[str, Any]]:
    """Every option but those with which diffusers is not finite, each with the next of the spacings in turn.

    At sigmas other than the schedule's own, every fifth of them: options and sigmas meet in no place but the weights.
    """
    spacings, disabled = cycle(["linspace", "leading", "trailing"]), cycle([[], [0, 4], [8], list(range(21))])
    keys = "solver_order", "prediction_type", "solver_type", "predict_x0", "final_sigmas_type", "lower_order_final"
    finals, kinds = ["zero", "sigma_min"], [*PREDICTIONS, "flow_prediction"]
    options = product([1, 2, 3], kinds, ["bh1", "bh2"], [True, False], finals, [True, False])
    found = [dict(zip(keys, chosen, strict=True)) for chosen in options]
    kept = [
        {**config, "timestep_spacing": next(spacings), "disable_corrector": next(disabled), **SIGMAS[sigmas]}
        for config in found
        if config["predict_x0"] or config["prediction_type"] != "flow_prediction"
        if config["final_sigmas_type"] == "sigma_min"
        or (config["predict_x0"] and config["lower_order_final"] and config["solver_type"] == "bh2")
    ]
    return kept[:: 1 if sigmas == "schedule" else 5]


def repeats(config: dict[str, Any]) -> bool:
    """Whether the last sigma comes twice and the last step's order is 3, where diffusers divides 0 by 0."""
    own = not any(config.get(f"use_{name}_sigmas") for name in ("karras", "exponential", "beta", "flow"))
    ends = config["final_sigmas_type"] == "zero" or own
    return not ends and not config["lower_order_final"] and config["solver_order"] == 3


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_in_float64(sigmas: str) -> None:
    """Every option, from every first step, at diffusers' own sigmas."""
    for config, (steps, first) in zip(configs(sigmas), cycle(LOOPS), strict=False):
        mine, theirs = pair(NAME, **config, thresholding=steps == 10)
        expected = states(in_float64(theirs), steps, first=first, dtype=torch.float64)
        found = states(mine, steps, first=first, dtype=torch.float64)
        end = -1 if repeats(config) and steps > 1 else None
        assert error(found[:end], expected[:end]) < EXACT, (config, steps)


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_in_float32(sigmas: str) -> None:
    """Whole loops of what diffusers finds in float32: predict_x0, and not to order 3 at beta's close sigmas."""
    chosen = [c for c in configs(sigmas) if c["predict_x0"] and not (sigmas == "beta" and c["solver_order"] == 3)]
    for config, steps in zip(chosen, cycle([5, 8, 13, 20, 50]), strict=False):
        mine, theirs = pair(NAME, **config)
        end = -1 if repeats(config) else None
        assert error(states(mine, steps)[:end], states(theirs, steps)[:end]) < TOLERANCE, (config, steps)


def test_eps_in_float32() -> None:
    """The eps form, where the state is not mostly noise that cancels."""
    for order, kind, solver in product([1, 2, 3], PREDICTIONS, ["bh1", "bh2"]):
        config = {"solver_order": order, "prediction_type": kind, "solver_type": solver}
        mine, theirs = pair(NAME, **config, predict_x0=False, final_sigmas_type="sigma_min")
        assert error(states(mine, 12, first=3), states(theirs, 12, first=3)) < TOLERANCE, config


@pytest.mark.skipif(
    "sigmas" not in inspect.signature(diffusers.UniPCMultistepScheduler.set_timesteps).parameters,
    reason="this version of diffusers takes no sigmas",
)
@pytest.mark.parametrize("options", [{}, {"use_dynamic_shifting": True}, {"shift_terminal": 0.1}])
def test_custom_sigmas(options: dict[str, Any]) -> None:
    given = {
        "sigmas": torch.linspace(1.0, 0.05, 7).numpy(),
        **({"mu": 0.7} if "use_dynamic_shifting" in options else {}),
    }
    config = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "solver_order": 3, **options}
    mine, theirs = pair(NAME, **config)
    found = states(mine, None, timesteps_of={**given, "sigmas": given["sigmas"].copy()})
    assert len(found) == 7
    assert error(found, states(theirs, None, timesteps_of=given)) < TOLERANCE


@pytest.mark.parametrize("predict_x0", [True, False])
@pytest.mark.parametrize("solver", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_another_scheduler_predicts(solver: str, predict_x0: bool) -> None:
    """With solver_p UniC corrects the states to which that scheduler's steps lead, theirs or one of our own."""
    options = {"predict_x0": predict_x0, "disable_corrector": [2], "final_sigmas_type": "sigma_min"}
    for order, steps in [(1, 4), (2, 9), (3, 20)]:
        made = [
            scheduler(solver_p=getattr(diffusers, solver)(), solver_order=order, **options)
            for scheduler in (ours.UniPCMultistepScheduler, diffusers.UniPCMultistepScheduler)
        ]
        found, expected = (states(scheduler, steps) for scheduler in made)
        assert error(found, expected) < TOLERANCE


def test_steps_that_diffusers_does_not_finish_are_finite() -> None:
    """Onto clean data diffusers multiplies an infinite h by 0 where the order is above 1, or eps is predicted."""
    for config in ({"lower_order_final": False}, {"predict_x0": False}, {"solver_type": "bh1"}):
        mine, _ = pair(NAME, **config)
        assert all(state.isfinite().all() for state in states(mine, 6))
