"""DPM-Solver, DPM-Solver++, UniPC and SA-Solver against diffusers, every step of whole loops, in float64."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import cycle, product
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff import samplers
from fastdiff.plan import Plan
from fastdiff.samplers import spacing
from fastdiff.schedules import Schedule
from tests.peers.doubles import doubled
from tests.peers.loops import PREDICTIONS, error, gaussian, ours, schedule_of, theirs

# The peer finds 1 - abar >= 1e-4 by subtraction, which can lose 4 digits of float64's 16. Measured, the worst of all
# cases: 3e-13.
TOLERANCE = 1e-11

T = 1000
SCHEDULE = schedule_of(T)
SPACINGS = ["linspace", "leading", "trailing"]
FINALS = ["zero", "sigma_min"]
PREDICTS = {"x0": "dpmsolver++", "eps": "dpmsolver"}
MULTISTEP = ("dpmsolver_multistep", "DPMSolverMultistepScheduler")
SINGLESTEP = ("dpmsolver_singlestep", "DPMSolverSinglestepScheduler")
UNIPC = ("unipc_multistep", "UniPCMultistepScheduler")
SA = ("sasolver", "SASolverScheduler")
EDM = ("edm_dpmsolver_multistep", "EDMDPMSolverMultistepScheduler")
COSINE = ("cosine_dpmsolver_multistep", "CosineDPMSolverMultistepScheduler")
SDE = ("dpmsolver_sde", "DPMSolverSDEScheduler")
# The peer turns tensors into arrays in a way of before numpy 2, and warns of its own form in eps.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword"),
    pytest.mark.filterwarnings("ignore:.*dpmsolver.*deprecated:FutureWarning"),
]


def timesteps(steps: int, name: str) -> list[int]:
    """Diffusers' timesteps: but for trailing, those of one step more, without the last."""
    if name == "trailing":
        return spacing.spaced(T, steps, name).tolist()
    return spacing.spaced(T, steps + 1, name)[:-1].tolist()


def every_spacing(*options: Sequence[Any]) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Every combination of the options, each with the next of the spacings in turn."""
    return zip(cycle(SPACINGS), product(*options), strict=False)


def compare(scheduler: Any, plan: Plan) -> float:
    """The largest error of a plan's states against those of a scheduler."""
    scheduler.set_timesteps(len(plan))
    scheduler.set_begin_index(0)
    return error(ours(plan, T), theirs(scheduler, T, plan.t))


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_multistep(steps: int, predicts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders 1 to 3 of both forms and both solvers, in every spacing, with every way to end."""
    for name, (final, order, solver, lower, euler) in every_spacing(
        *(FINALS, [1, 2, 3], ["midpoint", "heun"], [False, True], [False, True])
    ):
        if (predicts, final) == ("eps", "zero"):
            continue  # refused by the peer
        config = {"solver_order": order, "solver_type": solver, "timestep_spacing": name, "final_sigmas_type": final}
        ending = {"lower_order_final": lower, "euler_at_final": euler, "algorithm_type": PREDICTS[predicts]}
        scheduler = doubled(monkeypatch, *MULTISTEP, SCHEDULE, **config, **ending)
        # The peer lowers the order in loops of less than 15 steps alone.
        endings = {"lower_order_final": lower and steps < 15, "euler_at_final": euler, "final": final}
        plan = samplers.dpmpp(
            *(SCHEDULE, steps, order, solver, predicts),
            **{"third": "peers", "timesteps": timesteps(steps, name), "clip": None, **endings},
        )
        assert compare(scheduler, plan) < TOLERANCE, (config, ending)


@pytest.mark.parametrize("steps", [2, 7, 20])
@pytest.mark.parametrize("final", FINALS)
def test_multistep_sde(steps: int, final: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SDE-DPM-Solver++ of order 1 and 2, with the same noise."""
    for name, (prediction, order, solver) in every_spacing(list(PREDICTIONS), [1, 2], ["midpoint", "heun"]):
        config = {"solver_order": order, "solver_type": solver, "timestep_spacing": name, "final_sigmas_type": final}
        kinds = {"algorithm_type": "sde-dpmsolver++", "prediction_type": PREDICTIONS[prediction]}
        scheduler = doubled(monkeypatch, *MULTISTEP, SCHEDULE, **config, **kinds, lower_order_final=False)
        options = {"timesteps": timesteps(steps, name), "final": final, "clip": None, "prediction": prediction}
        plan = samplers.dpmpp(SCHEDULE, steps, order, solver, eta=1.0, lower_order_final=False, **options)
        assert compare(scheduler, plan) < TOLERANCE, (config, kinds)


def test_third_order_sde_of_the_peer_has_a_wrong_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    """A defect of the peer: `- 0.5` for `+ 0.5` takes alpha D2 from each step of order 3.

    D2, the second divided difference of x0, is of order h^2: its third order is a first one.
    """
    options = {"timesteps": timesteps(3, "linspace"), "final": "sigma_min", "clip": None, "lower_order_final": False}
    plan = samplers.dpmpp(SCHEDULE, 3, 3, third="peers", eta=1.0, **options)
    config = {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": False}
    scheduler = doubled(monkeypatch, *MULTISTEP, SCHEDULE, **config, algorithm_type="sde-dpmsolver++")
    scheduler.set_timesteps(3)
    states, peers = ours(plan, T), theirs(scheduler, T, plan.t)
    assert error(states[:2], peers[:2]) < TOLERANCE
    x0 = scheduler.model_outputs
    h = np.diff(np.log(plan.alpha / plan.sigma))
    slopes = [(x0[1] - x0[0]) / h[0], (x0[2] - x0[1]) / h[1]]
    D2 = (slopes[1] - slopes[0]) / (h[0] + h[1]) * h[2] ** 2
    assert error([states[2]], [peers[2] + plan.alpha[3] * D2]) < TOLERANCE


@pytest.mark.parametrize("name", ["karras", "exponential", "beta", "lu"])
def test_multistep_at_sigmas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels by sigma: where they lie, and the steps between them."""
    config = {"use_lu_lambdas" if name == "lu" else f"use_{name}_sigmas": True, "solver_order": 2}
    plan = samplers.dpmpp_2m(SCHEDULE, 12, spacing="exponential" if name == "lu" else name, clip=None)
    scheduler = doubled(monkeypatch, *MULTISTEP, SCHEDULE, **config)
    assert compare(scheduler, plan) < TOLERANCE


def test_multistep_on_a_flow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rectified flow with a shift: alpha = 1 - sigma."""
    config = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction", "solver_order": 2}
    scheduler = doubled(monkeypatch, *MULTISTEP, SCHEDULE, **config)
    scheduler.set_timesteps(9)
    sigma = scheduler.sigmas[:-1].numpy()
    plan = samplers.dpmpp_2m(fd.schedules.flow(T), sigmas=sigma / (1 - sigma), prediction="flow", clip=None)
    # The peer begins with noise of deviation 1 where the level's is sigma.
    assert compare(scheduler, replace(plan, init_scale=1.0)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 6, 12, 13, 20])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_singlestep(steps: int, predicts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders 1 to 3 of both forms and both solvers; the peer knows one spacing, and has its own order 3."""
    for final, order, solver in product(FINALS, [1, 2, 3], ["midpoint", "heun"]):
        if (predicts, final) == ("eps", "zero"):
            continue  # refused by the peer
        # Steps that are no multiple of the order end with what is left, which the peer calls lower_order_final; where
        # that leaves two for order 3, it has both its ways.
        lower = final == "zero" or steps % order > 0
        config = {"solver_order": order, "solver_type": solver, "final_sigmas_type": final, "lower_order_final": lower}
        scheduler = doubled(monkeypatch, *SINGLESTEP, SCHEDULE, **config, algorithm_type=PREDICTS[predicts])
        options = {"timesteps": timesteps(steps, "linspace"), "final": final, "clip": None, "third": "peers"}
        plan = samplers.dpmpp_single(SCHEDULE, steps, order, solver, predicts, **options)
        assert compare(scheduler, plan) < TOLERANCE, config


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("predicts", PREDICTS)
def test_unipc(steps: int, predicts: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Orders 1 to 3 of both forms and both B(h), with and without the corrector, in every spacing."""
    for name, (disabled, final, order, solver, lower) in every_spacing(
        *([[], [0, 2], list(range(steps))], FINALS, [1, 2, 3], ["bh1", "bh2"], [False, True])
    ):
        if final == "zero" and (predicts == "eps" or not lower or solver == "bh1"):
            continue  # the peer is not finite there: h is infinite, and it multiplies it by 0
        config = {"solver_order": order, "solver_type": solver, "timestep_spacing": name, "final_sigmas_type": final}
        kinds = {"predict_x0": predicts == "x0", "lower_order_final": lower, "disable_corrector": disabled}
        scheduler = doubled(monkeypatch, *UNIPC, SCHEDULE, **config, **kinds)
        options = {"timesteps": timesteps(steps, name), "final": final, "clip": None}
        plan = samplers.unipc(SCHEDULE, steps, order, solver, predicts, disabled, lower, **options)
        assert compare(scheduler, plan) < TOLERANCE, (config, kinds)


@pytest.mark.parametrize("name", ["karras", "exponential", "beta"])
def test_unipc_at_sigmas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels by sigma."""
    scheduler = doubled(monkeypatch, *UNIPC, SCHEDULE, **{f"use_{name}_sigmas": True}, solver_order=3)
    plan = samplers.unipc(SCHEDULE, 12, 3, spacing=name, clip=None)
    assert compare(scheduler, plan) < TOLERANCE


@pytest.mark.parametrize("steps", [2, 3, 16])
def test_sa_solver(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pair of orders with data prediction, in every spacing, for the ODE and two SDEs, with the same noise.

    The peer always lands on its cleanest level, and gives tau its own times.
    """
    for name, (order, corrector, lower) in every_spacing([1, 2, 3], [1, 2, 3, 4], [False, True]):
        levels = timesteps(steps, name)
        for tau in (0.0, 0.6, None):
            config = {"predictor_order": order, "corrector_order": corrector, "timestep_spacing": name}
            tau_func = None if tau is None else lambda t, tau=tau: tau  # its own: 1 for 200 <= t <= 800
            scheduler = doubled(monkeypatch, *SA, SCHEDULE, **config, lower_order_final=lower, tau_func=tau_func)
            if tau is None:
                bounds = {"tau_min": ratio(199.5), "tau_max": ratio(800.5)}
            else:
                bounds = {"tau": tau, "tau_min": 0.0, "tau_max": np.inf}
            plan = samplers.sa_solver(
                *(SCHEDULE, steps, order, corrector),
                **{**bounds, "lower_order_final": lower, "timesteps": levels, "final": "sigma_min", "clip": None},
            )
            assert compare(scheduler, plan) < TOLERANCE, (config, lower, tau)


def test_sa_solver_at_sigmas(monkeypatch: pytest.MonkeyPatch) -> None:
    """Levels by sigma, where the peer lands on the last level twice: its last step does nothing."""
    scheduler = doubled(monkeypatch, *SA, SCHEDULE, use_karras_sigmas=True, tau_func=lambda t: 1.0)
    scheduler.set_timesteps(8)
    whole = {"tau_min": 0.0, "tau_max": np.inf, "final": "sigma_min", "lower_order_final": False, "clip": None}
    plan = samplers.sa_solver(SCHEDULE, 7, **whole)
    peers = theirs(scheduler, T, [*plan.t, 0.0])
    assert error(ours(plan, T), peers[:-1]) < TOLERANCE


def ratio(time: float) -> float:
    """sigma / alpha at a time of the schedule."""
    alpha, sigma, *_ = SCHEDULE.at_time(time)
    return float(sigma / alpha)


# --- schedulers of their own coordinates


@pytest.mark.parametrize("name", ["karras", "exponential"])
def test_edm_multistep(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """EDM's network and levels: orders 1 to 3, and the SDE."""
    steps = 9
    spaced = {"karras": samplers.sigmas.karras, "exponential": samplers.sigmas.exponential}
    sigma = spaced[name](steps, 0.002, 80.0)
    time = np.log(sigma) / 4
    schedule = Schedule(np.ones(steps), sigma[::-1], time[::-1]).with_unit_input(0.5)
    for order, solver, eta in [(1, "midpoint", 0.0), (2, "heun", 0.0), (3, "midpoint", 0.0), (2, "midpoint", 1.0)]:
        config = {"solver_order": order, "solver_type": solver, "sigma_schedule": name, "lower_order_final": False}
        kind = {"algorithm_type": "sde-dpmsolver++" if eta else "dpmsolver++"}
        scheduler = doubled(monkeypatch, *EDM, schedule, **config, **kind)
        scheduler.set_timesteps(steps)
        scheduler.sigmas = torch.from_numpy(np.append(sigma, 0.0))  # float32 otherwise
        plan = samplers.dpmpp(
            *(schedule, steps, order, solver, "x0", eta, False),
            third="peers",
            timesteps=range(steps)[::-1],
            clip=None,
            prediction="edm",
        )
        # The peer begins with noise of its highest level and of data.
        plan = replace(plan, init_scale=float(scheduler.init_noise_sigma))
        assert error(ours(plan, T), theirs(scheduler, T, plan.t)) < TOLERANCE, (config, kind)


@pytest.fixture
def no_brownian_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    """What some of diffusers' files import to draw Brownian motions, which the tests here give themselves."""
    monkeypatch.setitem(sys.modules, "torchsde", ModuleType("torchsde"))


@pytest.mark.usefixtures("no_brownian_tree")
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_cosine_multistep(solver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """2M SDE with v prediction: the peer's state is x / alpha of a variance-preserving schedule."""
    steps = 9
    sigma = samplers.sigmas.exponential(steps, 0.3, 500.0)
    time = np.arctan(sigma) * 2 / np.pi
    norm = np.hypot(1.0, sigma)
    schedule = Schedule((1 / norm)[::-1], (sigma / norm)[::-1], time[::-1])
    scheduler = doubled(monkeypatch, *COSINE, schedule, solver_type=solver)
    scheduler.set_timesteps(steps)
    scheduler.sigmas = torch.from_numpy(np.append(sigma, 0.0))  # float32 otherwise
    scheduler.noise_sampler = lambda now, after: gaussian(scheduler.step_index)
    plan = samplers.dpmpp_2m_sde(schedule, solver=solver, timesteps=range(steps)[::-1], clip=None, prediction="v")
    peers = theirs(scheduler, T, plan.t)
    states = [x / alpha for x, alpha in zip(ours(plan, T), plan.alpha[1:], strict=True)]
    assert error(states, peers) < TOLERANCE


def brownian(scheduler: Any, now: Tensor, after: Tensor) -> Tensor:
    """The normalised increment of a motion in sigma over a first stage, or over a step, from both of its parts."""
    row = scheduler.step_index
    if scheduler.state_in_first_order:
        return gaussian(row)
    middle = (now * after).sqrt()
    parts = (now - middle).sqrt() * gaussian(row - 1) + (middle - after).sqrt() * gaussian(row)
    return parts / (now - after).sqrt()


@pytest.mark.usefixtures("no_brownian_tree")
@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_sde(steps: int, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """DPM++ SDE, its state x / alpha, with one Brownian motion behind the noise of both stages."""
    for config in [*({"timestep_spacing": name} for name in SPACINGS), {"use_karras_sigmas": True}]:
        scheduler = doubled(monkeypatch, *SDE, SCHEDULE, **config, prediction_type=PREDICTIONS[prediction])
        scheduler.set_timesteps(steps)
        scheduler.noise_sampler = partial(brownian, scheduler)
        sigmas = scheduler.sigmas[:-1].unique().flip(0)
        plan = samplers.dpmpp_sde(SCHEDULE, sigmas=sigmas.numpy(), clip=None, prediction=prediction)
        # The peer begins with noise of its highest level, or of that and of data.
        plan = replace(plan, init_scale=float(scheduler.init_noise_sigma) * plan.alpha[0])
        states = [x / alpha for x, alpha in zip(ours(plan, T), plan.alpha[1:], strict=True)]
        assert error(states, theirs(scheduler, T, plan.t)) < TOLERANCE, config
