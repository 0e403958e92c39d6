"""SA-Solver against diffusers, every state of whole loops, with the noise of one generator."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle, product
from typing import Any

import pytest
import torch

from tests.integrations.loops import TOLERANCE, error, in_float64, network, normals, pair, states

NAME = "SASolverScheduler"
SIGMAS: dict[str, dict[str, Any]] = {
    "schedule": {},
    "karras": {"use_karras_sigmas": True},
    "exponential": {"use_exponential_sigmas": True},
    "beta": {"use_beta_sigmas": True},
    "flow": {"use_flow_sigmas": True, "flow_shift": 3.0},
}
TAUS: list[Callable[[Any], float] | None] = [None, lambda t: 0.6, lambda t: 0.0, lambda t: float(t) / 1000]
LOOPS = [(1, 0), (5, 0), (10, 3), (20, 0), (21, 7)]
# Diffusers' integrals are differences of e^lambda that cancel; measured, the worst of all cases: 3e-7.
EXACT = 1e-6


def configs(sigmas: str) -> list[dict[str, Any]]:
    """Every pair of orders and algorithm, each with the next of the other options in turn.

    At sigmas other than the schedule's own, every third of them: options and sigmas meet in no place but the weights.
    """
    spacings, taus, lower = cycle(["linspace", "leading", "trailing"]), cycle(TAUS), cycle([True, True, False])
    kinds = cycle(["epsilon", "sample", "v_prediction", "sample", "epsilon"])
    keys = "predictor_order", "corrector_order", "algorithm_type"
    options = product([1, 2, 3, 4], [1, 2, 3, 4], ["data_prediction", "noise_prediction"])
    found = [
        {
            **dict(zip(keys, chosen, strict=True)),
            **SIGMAS[sigmas],
            "prediction_type": next(kinds),
            "timestep_spacing": next(spacings),
            "lower_order_final": next(lower),
            "tau_func": next(taus),
        }
        for chosen in options
    ]
    return found[:: 1 if sigmas == "schedule" else 3]


@pytest.mark.parametrize("sigmas", SIGMAS)
def test_in_float64(sigmas: str) -> None:
    """Every pair of orders, from every first step, at diffusers' own sigmas."""
    for config, (steps, first) in zip(configs(sigmas), cycle(LOOPS), strict=False):
        mine, theirs = pair(NAME, **config, thresholding=steps == 10 and config["algorithm_type"] == "data_prediction")
        expected = states(in_float64(theirs), steps, first=first, dtype=torch.float64)
        assert error(states(mine, steps, first=first, dtype=torch.float64), expected) < EXACT, (config, steps)


@pytest.mark.parametrize("sigmas", ["schedule", "karras", "exponential", "flow"])
def test_in_float32(sigmas: str) -> None:
    """Data prediction to order 2, which is what diffusers' integrals keep digits for in float32."""
    for order, corrector, tau, kind in product([1, 2], [1, 2], TAUS, ["epsilon", "sample"]):
        config = {"predictor_order": order, "corrector_order": corrector, "tau_func": tau, "prediction_type": kind}
        mine, theirs = pair(NAME, **config, **SIGMAS[sigmas])
        assert error(states(mine, 9), states(theirs, 9)) < TOLERANCE, config


@pytest.mark.parametrize("steps", [5, 6, 10, 20, 33, 50])
def test_default_in_float32(steps: int) -> None:
    mine, theirs = pair(NAME)
    assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE


def test_flow() -> None:
    mine, theirs = pair(NAME, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=2.0)
    assert error(states(mine, 12), states(theirs, 12)) < TOLERANCE


def test_tau_of_the_scheduler_may_change() -> None:
    """The function is the scheduler's attribute, which users set after it is made."""
    mine, theirs = pair(NAME)
    before = states(mine, 6)
    mine.tau_func = theirs.tau_func = TAUS[2]
    after = states(mine, 6)
    assert error(after, states(theirs, 6)) < TOLERANCE
    assert not torch.equal(after[-1], before[-1])


@pytest.mark.parametrize("tau", TAUS[:3])
@pytest.mark.parametrize("generators", [1, 2])
def test_generators_end_alike(generators: int, tau: Callable[[Any], float] | None) -> None:
    """A step draws from the generators even where it adds no noise."""
    ends = []
    for scheduler in pair(NAME, tau_func=tau):
        made = [torch.Generator().manual_seed(5 + k) for k in range(generators)]
        found = states(scheduler, 6, generator=made if generators > 1 else made[0])
        ends.append((found, [generator.get_state() for generator in made]))
    (mine, my_ends), (theirs, their_ends) = ends
    assert error(mine, theirs) < TOLERANCE
    assert all(torch.equal(a, b) for a, b in zip(my_ends, their_ends, strict=True))


def test_the_projects_own_noise() -> None:
    """With a seed the noise is drawn in the kernel: no generator moves, and each image has its own."""
    mine, _ = pair(NAME, tau_func=lambda t: 1.0)
    before = torch.get_rng_state()
    found = states(mine, 5, generator=None, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert error(states(mine, 5, generator=None, seed=3), found) == 0
    assert error(states(mine, 5, generator=None, seed=4), found) > 0.1


def test_learned_variance_is_left_out() -> None:
    """Diffusers draws noise for the variance's channels too, and then cannot add it; ours draws the image's."""
    mine, _ = pair(NAME, variance_type="learned_range")
    plain, _ = pair(NAME)
    halves = states(mine, 4, lambda x, t: torch.cat([network(x, t), normals(1)], dim=1))
    assert error(halves, states(plain, 4)) == 0
