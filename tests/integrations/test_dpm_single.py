"""Singlestep DPM-Solver and DPM-Solver++ against diffusers, every state of whole loops, those of stages too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.loops import TOLERANCE, error, in_float64, network, normals, pair, states

NAME = "DPMSolverSinglestepScheduler"
ALGORITHMS = ["dpmsolver++", "sde-dpmsolver++", "dpmsolver"]
KINDS = ["epsilon", "sample", "v_prediction", "flow_prediction"]
LEVELS: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_flow_sigmas": True, "flow_shift": 3.0},
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"thresholding": True},
    {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9},
    {"thresholding": True, "sample_max_value": 0.5, "dynamic_thresholding_ratio": 0.7},
    {"dynamic_thresholding_ratio": 0.7},
]
# Counts that each order divides, and that it does not; beginnings with each stage of a step.
LOOPS = [(6, 0), (7, 0), (8, 0), (12, 4), (13, 5), (15, 3), (20, 0), (1, 0), (2, 0), (3, 0), (50, 0)]
# Float64 on both sides. Measured, the worst of all cases: 3e-11.
EXACT = 1e-9
# Diffusers turns tensors into arrays in a way of before numpy 2, and warns of its own form in eps.
pytestmark = pytest.mark.filterwarnings("ignore:__array", "ignore:.*dpmsolver.*deprecated:FutureWarning")


def configs() -> Iterator[tuple[dict[str, Any], int, int]]:
    """Every algorithm, order, solver, end and prediction that diffusers has, with the next of all else in turn."""
    keys = "algorithm_type", "solver_order", "solver_type", "final_sigmas_type", "prediction_type", "lower_order_final"
    turns = zip(cycle(LEVELS), cycle(OPTIONS), cycle(LOOPS))
    finals, solvers = ["zero", "sigma_min"], ["midpoint", "heun"]
    for chosen in product(ALGORITHMS, [1, 2, 3], solvers, finals, KINDS, [True, False]):
        algorithm, _, _, final, kind, _ = chosen
        if algorithm[-1] == "+" or (final == "sigma_min" and kind != "flow_prediction"):
            level, option, loop = next(turns)
            # The form in eps raises where diffusers would look up the level to threshold at.
            option = option if algorithm[-1] == "+" else {}
            yield {**dict(zip(keys, chosen, strict=True)), **level, **option}, *loop


def repeats(config: dict[str, Any]) -> bool:
    """Whether the last sigma comes twice, where diffusers divides 0 by 0 or takes the root of what is below 0."""
    by_sigma = config.keys() & {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"}
    return bool(by_sigma) and config["final_sigmas_type"] == "sigma_min"


def test_in_float64() -> None:
    """Every option, from every first stage."""
    for config, steps, first in configs():
        found, expected = (
            states(in_float64(scheduler), steps, first=first, dtype=torch.float64) for scheduler in pair(NAME, **config)
        )
        end = -1 if repeats(config) and steps > 1 else None
        assert error(found[:end], expected[:end]) < EXACT, (config, steps)
        assert found[-1].isfinite().all()


def test_in_float32() -> None:
    """What diffusers finds in float32: neither differences of third order nor x0 under a threshold, nor eps from x0."""
    for config, steps, first in configs():
        if config["solver_order"] < 3 and (
            config["algorithm_type"][-1] == "+" or config["prediction_type"] == KINDS[0]
        ):
            mine, theirs = pair(NAME, **{**config, "thresholding": False})
            end = -1 if repeats(config) and steps > 1 else None
            found, expected = (states(scheduler, steps, first=first)[:end] for scheduler in (mine, theirs))
            assert error(found, expected) < TOLERANCE, (config, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_all_counts(order: int) -> None:
    for steps in (*range(1, 19), 33, 49, 50):
        mine, theirs = pair(NAME, solver_order=order)
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, steps
        assert mine.order_list == theirs.order_list
        assert mine.config.lower_order_final == theirs.config.lower_order_final


def test_beginning_with_each_stage() -> None:
    for order, first in product([2, 3], range(7)):
        mine, theirs = pair(NAME, solver_order=order, algorithm_type="sde-dpmsolver++")
        assert error(states(mine, 9, first=first), states(theirs, 9, first=first)) < TOLERANCE, (order, first)


def test_timesteps_of_ones_own() -> None:
    given = {"timesteps": [990, 800, 650, 500, 400, 200, 100, 3]}
    for order, final in product([2, 3], ["zero", "sigma_min"]):
        mine, theirs = pair(NAME, solver_order=order, final_sigmas_type=final, lower_order_final=order == 3)
        found = states(mine, None, timesteps_of=given)
        assert len(found) == 8
        assert error(found, states(theirs, None, timesteps_of=given)) < TOLERANCE


def test_loops_that_share_a_scheduler() -> None:
    """Each has its own order list and its own start of a step."""
    mine, _ = pair(NAME, solver_order=3)
    expected = [states(mine, steps)[-1] for steps in (6, 8)]
    loops = []
    for steps in (6, 8):
        mine.set_timesteps(steps)
        loops.append(mine.timesteps)
    x = [normals(0), normals(0)]
    for turn in range(8):
        for k, timesteps in enumerate(loops):
            if turn < len(timesteps):
                t = timesteps[turn]
                x[k] = mine.step(network(x[k], t), t, x[k]).prev_sample
    assert error(x, expected) == 0


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variance_is_left_out(kind: str) -> None:
    def learned(x: Tensor, t: Tensor | float) -> Tensor:
        return torch.cat([network(x, t), 100 * x], dim=1)

    mine, theirs = pair(NAME, variance_type=kind)
    assert error(states(mine, 6, learned), states(theirs, 6, learned)) < TOLERANCE


def test_dtypes_that_differ() -> None:
    """Noise in the dtype of x0, and the result in that of state and output together."""
    for kind, algorithm in product(KINDS[:3], ALGORITHMS):
        schedulers = pair(NAME, prediction_type=kind, algorithm_type=algorithm, final_sigmas_type="sigma_min")
        generators = [torch.Generator().manual_seed(3) for _ in schedulers]
        found = []
        for scheduler, generator in zip(schedulers, generators, strict=True):
            scheduler.set_timesteps(5)
            t, x = scheduler.timesteps[0], normals(0)
            found.append(scheduler.step(x.bfloat16(), t, x, generator=generator).prev_sample)
        assert found[0].dtype == found[1].dtype
        assert error(found[:1], found[1:]) < 4 * torch.finfo(torch.bfloat16).eps
        assert torch.equal(*(generator.get_state() for generator in generators))


def test_thresholds_in_eps() -> None:
    """Where diffusers raises, x0 is bounded: one step from the last level lands where the bounded x0 leads."""
    mine, theirs = pair(NAME, algorithm_type="dpmsolver", final_sigmas_type="sigma_min", thresholding=True)
    with pytest.raises(RuntimeError):
        states(theirs, 5)
    bounded = pair(NAME, solver_order=1, final_sigmas_type="sigma_min", thresholding=True)[0]
    # To first order both forms are DDIM.
    first = pair(NAME, algorithm_type="dpmsolver", solver_order=1, final_sigmas_type="sigma_min", thresholding=True)[0]
    assert error(states(first, 5), states(bounded, 5)) < TOLERANCE
    assert all(state.isfinite().all() for state in states(mine, 5))
