"""DEIS and the PNDM family against their papers' loops, on a nonlinear network in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.models import GaussianMixture
from fastdiff.samplers.levels import Level, at_ratio, visited
from fastdiff.schedules import Schedule
from tests.samplers.loops import gaussian, trajectory

T = 40
SYSTEMS = {
    "vp": fd.schedules.linear(T, 1e-3, 0.4),
    "ve": fd.schedules.karras(T, 0.02, 20.0),
    "flow": Schedule(fd.schedules.flow(T + 1).alpha[:-1], fd.schedules.flow(T + 1).sigma[:-1]),  # ends above alpha = 0
}
EVERY_SYSTEM = pytest.mark.parametrize("schedule", SYSTEMS.values(), ids=SYSTEMS)
PNDM = {"pndm": "runge_kutta", "plms": "heun", "ipndm": "euler"}

# Measured, the worst of all cases: 3e-15. A plan's coefficients are sums of a few rounded terms.
TOLERANCE = 1e-13


def network(x: Tensor, t: float | Tensor) -> Tensor:
    """A nonlinear eps."""
    level = torch.as_tensor(t, dtype=torch.float64).reshape(-1, 1) / T
    return 1.2 * torch.tanh(0.9 * x + 0.3 * x.roll(1, dims=1) - 0.5 * level + 0.2)


def ours(name: str, schedule: Schedule, **options: Any) -> Tensor:
    """The states after every row."""
    plan = fd.samplers.make(name, schedule, clip=None, **options)
    return trajectory(network, plan, start(schedule))[0]


def start(schedule: Schedule) -> Tensor:
    return float(schedule.sigma[-1]) * gaussian(3, 4)


def transfer(x: Tensor, eps: Tensor, now: Level, after: Level) -> Tensor:
    """PNDM's phi: DDIM from one level to another along eps (Liu et al. 2022, eq. 9)."""
    return after.alpha * (x - now.sigma * eps) / now.alpha + after.sigma * eps


def assert_close(states: Tensor, expected: list[Tensor]) -> None:
    expected_states = torch.stack(expected)
    scale = expected_states.abs().amax(dim=(1, 2))
    assert ((states - expected_states).abs().amax(dim=(1, 2)) <= TOLERANCE * scale).all()


# --- DEIS


def time(schedule: Schedule, rho: float) -> float:
    """The network's time, linear from level to level in log rho, or in sigma for a flow."""
    if schedule is SYSTEMS["flow"]:
        return float(np.interp(rho / (1 + rho), schedule.sigma, schedule.time))
    return float(np.interp(math.log(rho), -schedule.lambda_, schedule.time))


BASES: dict[str, Callable[[Schedule, float], float]] = {
    "t": time,
    "rho": lambda schedule, rho: rho,
    "log_rho": lambda schedule, rho: math.log(rho),
}


def integral(schedule: Schedule, basis: str, points: list[float], k: int, start: float, end: float) -> float:
    """The integral of the k-th Lagrange polynomial, piece by piece between the schedule's levels."""

    def polynomial(rho: float) -> float:
        x = BASES[basis](schedule, rho)
        return math.prod((x - point) / (points[k] - point) for j, point in enumerate(points) if j != k)

    ratio = schedule.sigma / schedule.alpha
    edges = [end, *ratio[(end * (1 + 1e-9) < ratio) & (ratio < start * (1 - 1e-9))], start]
    pieces = zip(edges[1:], edges[:-1], strict=True)
    return sum(scipy.integrate.quad(polynomial, high, low, epsabs=0, epsrel=1e-13)[0] for high, low in pieces)


def deis_loop(schedule: Schedule, levels: list[Level], order: int, basis: str) -> list[Tensor]:
    """Zhang & Chen 2022, Algorithm 1, in the coordinates x / alpha. Onto clean data log rho and t have no place."""
    x, kept, states = start(schedule), [], []
    for i, (now, after) in enumerate(pairwise(levels)):
        kept = [network(x, now.time), *kept][: order if after.sigma or basis == "rho" else 1]
        points = [BASES[basis](schedule, level.ratio) for level in levels[i::-1][: len(kept)]]
        if len(kept) == 1:
            moved = (after.ratio - now.ratio) * kept[0]
        else:
            ends = now.ratio, after.ratio
            moved = sum(integral(schedule, basis, points, k, *ends) * eps for k, eps in enumerate(kept))
        x = after.alpha * (x / now.alpha + moved)
        states.append(x)
    return states


@EVERY_SYSTEM
@pytest.mark.parametrize("basis", BASES)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_deis(schedule: Schedule, basis: str, order: int) -> None:
    """The polynomials through the last eps, integrated by another quadrature, at the schedule's levels."""
    timesteps = [39, 33, 28, 20, 12, 5, 2]
    states = ours("deis", schedule, order=order, basis=basis, timesteps=timesteps)
    assert_close(states, deis_loop(schedule, visited(schedule, None, timesteps=timesteps), order, basis))


def test_lower_order_final() -> None:
    """The order falls to 1 at the end, however late that is."""
    options = {"timesteps": [39, 30, 20, 12, 5], "final": "sigma_min", "clip": None}
    full, lower = (fd.samplers.deis(SYSTEMS["vp"], lower_order_final=lower, **options) for lower in (False, True))
    past = [[int((plan.column(f"ch{k}") != 0)[row]) for k in range(2)] for plan in (full, lower) for row in range(5)]
    assert [sum(row) for row in past] == [0, 1, 2, 2, 2, 0, 1, 2, 1, 0]


@EVERY_SYSTEM
def test_order_1_is_ddim(schedule: Schedule) -> None:
    """With one eps each of them is DDIM."""
    ddim = fd.samplers.ddim(schedule, 7, spacing="trailing")
    for name in ("deis", "ipndm"):
        plan = fd.samplers.make(name, schedule, steps=7, order=1, spacing="trailing")
        # Both columns are sums of two terms of the size of 1.
        np.testing.assert_allclose(plan.column("c0"), ddim.column("c0"), rtol=1e-15)
        np.testing.assert_allclose(plan.column("ce"), ddim.column("ce"), rtol=1e-15)
        assert (plan.nfe, plan.history_slots, plan.column("cx").any()) == (7, 0, False)


# --- PNDM


def half_way(schedule: Schedule, now: Level, after: Level) -> Level:
    time = (now.time + after.time) / 2
    alpha, sigma, _ = schedule.at_time(time)
    return Level(float(alpha), float(sigma), time)


def runge_kutta(x: Tensor, now: Level, middle: Level, after: Level) -> tuple[list[Tensor], Tensor]:
    """The states of the four stages and the first eps (Liu et al. 2022, eq. 13)."""
    e1 = network(x, now.time)
    x1 = transfer(x, e1, now, middle)
    e2 = network(x1, middle.time)
    x2 = transfer(x, e2, now, middle)
    e3 = network(x2, middle.time)
    x3 = transfer(x, e3, now, after)
    e4 = network(x3, after.time)
    return [x1, x2, x3, transfer(x, (e1 + 2 * e2 + 2 * e3 + e4) / 6, now, after)], e1


ADAMS_BASHFORTH = {
    1: [1.0],
    2: [3 / 2, -1 / 2],
    3: [23 / 12, -16 / 12, 5 / 12],
    4: [55 / 24, -59 / 24, 37 / 24, -9 / 24],
}


def pndm_loop(schedule: Schedule, levels: list[Level], order: int, warm_up: str) -> list[Tensor]:
    """Liu et al. 2022, Algorithm 2, and its two shorter beginnings."""
    x, kept, states = start(schedule), [], []
    for i, (now, after) in enumerate(pairwise(levels)):
        if warm_up == "runge_kutta" and i < order - 1 and after.sigma:
            stages, eps = runge_kutta(x, now, half_way(schedule, now, after), after)
        elif warm_up == "heun" and i == 0 and after.sigma:
            eps = network(x, now.time)
            first = transfer(x, eps, now, after)
            stages = [first, transfer(x, (eps + network(first, after.time)) / 2, now, after)]
        else:
            eps = network(x, now.time)
            weights = ADAMS_BASHFORTH[min(len(kept) + 1, order)]
            mean = sum(weight * e for weight, e in zip(weights, [eps, *kept], strict=False))
            stages = [transfer(x, mean, now, after)]
        kept = [eps, *kept]
        states += stages
        x = stages[-1]
    return states


@EVERY_SYSTEM
@pytest.mark.parametrize("name", PNDM)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("steps", [1, 2, 3, 8, 13])
def test_pndm(schedule: Schedule, name: str, order: int, steps: int) -> None:
    """Every beginning and order, where there are steps for it; onto clean data there is no second evaluation."""
    levels = visited(schedule, steps, "trailing")
    expected = pndm_loop(schedule, levels, order, PNDM[name])
    assert_close(ours(name, schedule, steps=steps, order=order), expected)


@EVERY_SYSTEM
@pytest.mark.parametrize("order", [2, 3, 4])
def test_deis_begins_with_runge_kutta(schedule: Schedule, order: int) -> None:
    """The classical fourth-order steps in sigma / alpha, and then polynomials through the eps they began with."""
    levels = visited(schedule, None, timesteps=[39, 36, 32, 20, 12])
    x, kept, expected = start(schedule), [], []
    for now, after in pairwise(levels[:order]):
        middle = at_ratio(schedule, (now.ratio + after.ratio) / 2)
        stages, eps = runge_kutta(x, now, middle, after)
        x, kept, expected = stages[-1], [eps, *kept], expected + stages
    now, after = levels[order - 1 : order + 1]
    ratios = [level.ratio for level in levels[order - 1 :: -1]]
    eps = [network(x, now.time), *kept]
    weights = [integral(schedule, "rho", ratios, k, now.ratio, after.ratio) for k in range(order)]
    expected.append(after.alpha * (x / now.alpha + sum(w * e for w, e in zip(weights, eps, strict=True))))
    options = {"timesteps": [39, 36, 32, 20, 12], "order": order, "basis": "rho", "warm_up": "runge_kutta"}
    assert_close(ours("deis", schedule, **options)[: len(expected)], expected)


def test_evaluations() -> None:
    """What a step costs: PNDM 9 more rows, PLMS 1, the others none; DEIS with Runge-Kutta 3 (order - 1)."""
    rows = {name: len(fd.samplers.make(name, SYSTEMS["vp"], steps=10)) for name in (*PNDM, "deis")}
    assert rows == {"pndm": 19, "plms": 11, "ipndm": 10, "deis": 10}
    assert len(fd.samplers.deis(SYSTEMS["vp"], 10, order=3, warm_up="runge_kutta")) == 16


# --- where it begins


NOISE = {"flow": fd.schedules.flow(T), "zero-snr": SYSTEMS["vp"].zero_terminal_snr()}


METHODS = [*((name, {}) for name in ("deis", "lms", *PNDM)), ("deis", {"warm_up": "runge_kutta"})]
EVERY_METHOD = pytest.mark.parametrize(("name", "options"), METHODS, ids=["deis", "lms", *PNDM, "deis-runge_kutta"])


@EVERY_METHOD
@pytest.mark.parametrize("schedule", NOISE.values(), ids=NOISE)
def test_pure_noise(schedule: Schedule, name: str, options: dict[str, Any]) -> None:
    """From alpha = 0 the first step is DDIM's and the point there is left out of DEIS' polynomials: all is finite."""
    plan = fd.samplers.make(name, schedule, steps=8, spacing="trailing", prediction="v", clip=None, **options)
    ddim = fd.samplers.ddim(schedule, 8, spacing="trailing", prediction="v", clip=None)
    assert plan.alpha[0] == 0
    assert {column: plan.column(column)[0] for column in ("cx", "c0", "ce", "ch0")} == {
        **{column: ddim.column(column)[0] for column in ("cx", "c0", "ce")},
        "ch0": 0,
    }
    if name in ("deis", "lms"):
        assert plan.column("ch0")[1] == 0


@EVERY_METHOD
@pytest.mark.parametrize("steps", [2, 5, 20])
def test_next_to_no_signal(name: str, options: dict[str, Any], steps: int) -> None:
    """The cosine schedule's sigma / alpha falls from 20,000 to 13 in one of 20 steps; samples stay among the data."""
    schedule = fd.schedules.cosine(1000)
    model = GaussianMixture([[0.5], [-0.5]], [0.1, 0.1]).network(schedule)
    plan = fd.samplers.make(name, schedule, steps=steps, spacing="trailing", clip=None, **options)
    x = fd.sample(model, plan, (1000, 1), dtype=torch.float64)
    # Runge-Kutta over that step gives values of 1e4 and more, Heun of 1 to 1000. The modes end at 0.9, and two steps
    # make them too narrow.
    assert x.abs().max() < 1.0
    assert 0.2 < x.std() < 0.6


def test_several_evaluations_begin_where_the_levels_are_near() -> None:
    """Three steps of Runge-Kutta and one of Heun come behind a steep one, rather than without those."""
    cosine, linear = fd.schedules.cosine(1000), fd.schedules.linear(1000)
    for name, extra in (("pndm", 9), ("plms", 1)):
        plans = [fd.samplers.make(name, schedule, steps=10) for schedule in (cosine, linear)]
        assert [len(plan) for plan in plans] == [10 + extra] * 2
        assert [plan.column("dy")[0] for plan in plans] == [1.0, 0.0]  # the anchor's first use


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("deis", {"order": 0}, "order must be a whole number in 1..4, got 0"),
        ("deis", {"order": 2.0}, "order must be a whole number in 1..4, got 2.0"),
        ("lms", {"order": 5}, "order must be a whole number in 1..4, got 5"),
        ("pndm", {"order": 5}, "order must be a whole number in 1..4, got 5"),
        ("deis", {"basis": "t", "sigmas": [900.0, 800.0, 1.0]}, "basis='t' needs levels at distinct times"),
        ("deis", {"basis": "t", "sigmas": [1.0, 1e-4, 1e-5]}, "basis='t' needs levels at distinct times"),
        ("lms", {"basis": "t"}, "unknown option of lms 'basis'"),
        ("deis", {"basis": "rhoo"}, "unknown basis 'rhoo': did you mean 'rho'"),
        ("deis", {"warm_up": "heun"}, "unknown warm_up 'heun'"),
        ("pndm", {"warm_up": "eular"}, "unknown warm_up 'eular': did you mean 'euler'"),
        ("ipndm", {"warm_up": "euler"}, "unknown option of ipndm 'warm_up'"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], message: str) -> None:
    """Each wrong argument gets one line that names it."""
    with pytest.raises(InputError, match=message) as caught:
        fd.samplers.make(name, SYSTEMS["vp"], **options)
    assert "\n" not in str(caught.value)


def test_pndm_needs_times_that_rise() -> None:
    """The middle of a step is found by its time."""
    schedule = SYSTEMS["ve"].with_time(np.zeros(T))
    with pytest.raises(InputError, match="times rise with the index"):
        fd.samplers.pndm(schedule, 5)
