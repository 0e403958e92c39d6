"""Multistep DPM-Solver and DPM-Solver++, EDM's too, against diffusers, every state of whole loops."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, product
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers.schedulers import scheduling_dpmsolver_multistep
from torch import Tensor

from tests.integrations.loops import SHAPE, TOLERANCE, error, in_float64, network, normals, pair, states
from tests.peers.doubles import Doubled

NAME, EDM = "DPMSolverMultistepScheduler", "EDMDPMSolverMultistepScheduler"
ALGORITHMS = ["dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"]
SOLVERS, FINALS = ["midpoint", "heun"], ["zero", "sigma_min"]
KINDS = ["epsilon", "sample", "v_prediction", "flow_prediction"]
LEVELS: list[dict[str, Any]] = [
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "leading", "steps_offset": 1},
    {"timestep_spacing": "trailing", "beta_schedule": "scaled_linear"},
    {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    {"timestep_spacing": "leading", "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1},
    {"use_karras_sigmas": True, "beta_schedule": "scaled_linear"},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"use_lu_lambdas": True},
    {"use_flow_sigmas": True, "flow_shift": 3.0},
]
SPACED = LEVELS[:3]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"euler_at_final": True},
    {"thresholding": True},
    {"thresholding": True, "sample_max_value": 2.0, "dynamic_thresholding_ratio": 0.9},
    {"thresholding": True, "sample_max_value": 0.5, "dynamic_thresholding_ratio": 0.7, "euler_at_final": True},
]
LOOPS = [(5, 0), (8, 0), (13, 4), (14, 0), (15, 3), (21, 7), (1, 0)]
# Float64 on both sides. Measured, the worst of all cases: 2e-11, at zero terminal SNR, where alpha begins at 1 / 4096.
EXACT = 1e-9
# Diffusers turns tensors into arrays in a way of before numpy 2, and warns of its own form in eps.
pytestmark = pytest.mark.filterwarnings("ignore:__array", "ignore:.*dpmsolver.*deprecated:FutureWarning")


def configs(levels: list[dict[str, Any]], options: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Every algorithm, order, solver, end and prediction that diffusers has, with the next of all else in turn."""
    keys = "algorithm_type", "solver_order", "solver_type", "final_sigmas_type", "prediction_type", "lower_order_final"
    turns = zip(cycle(levels), cycle(options), cycle(LOOPS))
    for chosen in product(ALGORITHMS, [1, 2, 3], SOLVERS, FINALS, KINDS, [True, False]):
        algorithm, order, _, final, kind, _ = chosen
        in_eps = final == "sigma_min" and kind != "flow_prediction" and (algorithm, order) != ("sde-dpmsolver", 3)
        if algorithm[-1] == "+" or in_eps:
            level, option, loop = next(turns)
            yield {**dict(zip(keys, chosen, strict=True)), **level, **option}, *loop


def repeats(config: dict[str, Any]) -> bool:
    """Whether the last sigma comes twice, where diffusers divides 0 by 0 or takes the root of what is below 0."""
    by_sigma = config.keys() & {"use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas", "use_lu_lambdas"}
    return bool(by_sigma) and config["final_sigmas_type"] == "sigma_min"


@pytest.fixture
def doubled(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Diffusers' module with float64 in place of float32, whose steps would round each state."""
    module = scheduling_dpmsolver_multistep
    for library in ("np", "torch"):
        monkeypatch.setattr(module, library, Doubled(getattr(module, library)))
    return module


@pytest.mark.usefixtures("doubled")
def test_in_float64() -> None:
    """Every option, from every first step."""
    noise = normals(3).double()
    for config, steps, first in configs(LEVELS, OPTIONS):
        found, expected = (
            states(in_float64(scheduler), steps, first=first, dtype=torch.float64, variance_noise=noise)
            for scheduler in pair(NAME, **config)
        )
        end = -1 if repeats(config) and steps > 1 else None
        assert error(found[:end], expected[:end]) < EXACT, (config, steps)
        assert found[-1].isfinite().all()


def test_in_float32() -> None:
    """What diffusers finds in float32: all at the schedule's own levels, with noise from a generator."""
    for config, steps, first in configs(SPACED, OPTIONS[:2]):
        mine, theirs = pair(NAME, **config)
        assert error(states(mine, steps, first=first), states(theirs, steps, first=first)) < TOLERANCE, (config, steps)


def test_levels_and_thresholds_in_float32() -> None:
    """Levels by sigma and thresholds, to second order: the third divides rounding by the squares of short steps."""
    for config, steps, first in configs(LEVELS, OPTIONS):
        if config["solver_order"] < 3 and config["algorithm_type"][-1] == "+":
            mine, theirs = pair(NAME, **config)
            end = -1 if repeats(config) and steps > 1 else None
            found, expected = (states(scheduler, steps, first=first)[:end] for scheduler in (mine, theirs))
            assert error(found, expected) < TOLERANCE, (config, steps)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_all_counts(order: int) -> None:
    for steps in (*range(2, 19), 33, 49, 50):
        mine, theirs = pair(NAME, solver_order=order, algorithm_type="sde-dpmsolver++" if steps % 2 else "dpmsolver++")
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, steps


def test_timesteps_of_ones_own() -> None:
    given = {"timesteps": [990, 800, 650, 651, 400, 200, 100, 3]}
    for order, final in product([2, 3], FINALS):
        mine, theirs = pair(NAME, solver_order=order, final_sigmas_type=final)
        found = states(mine, None, timesteps_of=given)
        assert len(found) == 8
        assert error(found, states(theirs, None, timesteps_of=given)) < TOLERANCE


def test_noise_that_is_given() -> None:
    """It stands before the generator, which is not asked, and is not looked at by the ODE."""
    for algorithm in ("sde-dpmsolver++", "dpmsolver++"):
        mine, theirs = pair(NAME, algorithm_type=algorithm)
        noise, generator = normals(5).bfloat16(), torch.Generator().manual_seed(3)
        before = generator.get_state()
        found, expected = (
            states(scheduler, 6, generator=generator, variance_noise=noise) for scheduler in (mine, theirs)
        )
        assert error(found, expected) < TOLERANCE
        assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize(("name", "drawn"), [(NAME, torch.float32), (EDM, torch.bfloat16)])
def test_dtype_of_the_noise(name: str, drawn: torch.dtype) -> None:
    """Float32 whatever the model's output is, but that of x0 in EDM's: with the wrong one all noise is another."""
    mine, theirs = pair(name, algorithm_type="sde-dpmsolver++")
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(5)
    generators = [torch.Generator().manual_seed(4) for _ in range(3)]
    x, t = normals(0).bfloat16(), mine.timesteps[0]
    found, expected = (
        scheduler.step(0 * x, t, x, generator=generator).prev_sample.float()
        for scheduler, generator in zip((mine, theirs), generators, strict=False)
    )
    torch.randn(SHAPE, generator=generators[2], dtype=drawn)
    assert error([found], [expected]) < 4 * torch.finfo(torch.bfloat16).eps
    assert len({bytes(generator.get_state().numpy()) for generator in generators}) == 1


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_dtypes_that_differ(algorithm: str) -> None:
    """A float32 state and a half-precision network: the result's dtype is that of the prediction, as in diffusers."""
    for kind in KINDS[:3]:
        mine, theirs = pair(NAME, algorithm_type=algorithm, prediction_type=kind, final_sigmas_type="sigma_min")
        for scheduler in (mine, theirs):
            scheduler.set_timesteps(5)
        t, x = mine.timesteps[0], normals(0)
        found, expected = (scheduler.step(x.half(), t, x).prev_sample for scheduler in (mine, theirs))
        assert found.dtype == expected.dtype, kind


@pytest.mark.parametrize("kind", ["learned", "learned_range"])
def test_learned_variance_is_left_out(kind: str) -> None:
    def learned(x: Tensor, t: Tensor | float) -> Tensor:
        return torch.cat([network(x, t), 100 * x], dim=1)

    mine, theirs = pair(NAME, variance_type=kind)
    assert error(states(mine, 6, learned), states(theirs, 6, learned)) < TOLERANCE


def test_third_order_that_diffusers_does_not_have() -> None:
    """Of the SDE in eps, and of EDM's: diffusers raises, and here it is the formula of the ODE, with noise."""
    for name, algorithm in [(NAME, "sde-dpmsolver"), (EDM, "sde-dpmsolver++")]:
        mine, theirs = pair(name, algorithm_type=algorithm, solver_order=3, final_sigmas_type="sigma_min")
        with pytest.raises(UnboundLocalError):
            states(theirs, 20)
        assert all(state.isfinite().all() for state in states(mine, 20))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["karras", "exponential"])
def test_edm_in_float64(kind: str, schedule: str) -> None:
    """EDM's network and levels: every algorithm, order, solver and end, for data of several deviations."""
    turns = zip(cycle([0.5, 1.0, 0.7]), cycle([*LOOPS[:-1], (50, 0)]), cycle(OPTIONS))
    for algorithm, order, solver, final, lower in product(ALGORITHMS[:2], [1, 2, 3], SOLVERS, FINALS, [True, False]):
        if (algorithm, order) == ("sde-dpmsolver++", 3):
            continue
        deviation, (steps, first), option = next(turns)
        config = {"algorithm_type": algorithm, "solver_order": order, "solver_type": solver, "prediction_type": kind}
        levels = {"final_sigmas_type": final, "sigma_schedule": schedule, "sigma_data": deviation, "rho": 6.0}
        schedulers = pair(EDM, **config, **levels, lower_order_final=lower, **option)
        found, expected = (
            states(in_float64(scheduler), steps, first=first, dtype=torch.float64) for scheduler in schedulers
        )
        # The last sigma may come twice, where diffusers is not finite.
        end = -1 if final == "sigma_min" else None
        assert error(found[:end], expected[:end]) < EXACT, (config, levels, lower, option, steps)
        assert found[-1].isfinite().all()


@pytest.mark.parametrize("algorithm", ALGORITHMS[:2])
def test_edm_in_float32(algorithm: str) -> None:
    for order, schedule in product([1, 2], ["karras", "exponential"]):
        for steps in (5, 20, 50):
            mine, theirs = pair(EDM, algorithm_type=algorithm, solver_order=order, sigma_schedule=schedule)
            assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE


def test_input_of_edms_network() -> None:
    """Scaled by the sigma of its timestep, which may be asked for again; before `set_timesteps` by the last one."""
    mine, theirs = pair(EDM, sigma_data=0.8)
    assert error([mine.scale_model_input(normals(0), 0.0)], [theirs.scale_model_input(normals(0), 0.0)]) < TOLERANCE
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(4)
    for t in mine.timesteps:
        found, expected = (scheduler.scale_model_input(normals(0), t) for scheduler in (mine, theirs))
        assert error([found], [expected]) < TOLERANCE
        assert error([mine.scale_model_input(normals(0), t.clone())], [expected]) < TOLERANCE
        for scheduler in (mine, theirs):
            scheduler.step(normals(1), t, normals(0))
