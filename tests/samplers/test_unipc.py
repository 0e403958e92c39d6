"""UniPC and SA-Solver against plain loops of the papers' algorithms, and each other.

The loops are in x / alpha, where alpha is 1, sigma is s and lambda is -log s. They keep every state and correct it in
place, where a plan only changes what the predictions gave to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.plan import Plan
from fastdiff.samplers import dpmpp, sa_solver, unipc
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, denoiser, error, noise, slope, start, states
from tests.samplers.loops import LINEAR

STEPS = 7
FINALS = pytest.mark.parametrize("final", ["zero", "sigma_min"])
# Measured, the worst of all tests: 1.3e-12, in steps through eps, which cancel terms of e^h times the state.
TOLERANCE = 1e-11


def ratios(plan: Plan) -> list[float]:
    """s = sigma / alpha before each row and after the last."""
    return list(plan.sigma / plan.alpha)


def unipc_step(
    s: Sequence[float], i: int, nodes: Sequence[int], D: Sequence[Tensor], x: Tensor, solver: str, form: str
) -> Tensor:
    """UniP or UniC from level i to i + 1, through the predictions D of i and `nodes` (Zhao et al. 2023, section 3).

    With r_m = (lambda_m - lambda_i) / h, the a_m solve sum_m r_m^(k-1) a_m B(h) = h k! phi_{k+1}(h) for k = 1..p, but
    a = 1/2 where there is one. For x0, h is -h.
    """
    h = math.log(s[i] / s[i + 1])
    z = h if form == "eps" else -h
    B = z if solver == "bh1" else math.expm1(z)
    phi, targets = math.expm1(z) / z, []
    for k in range(1, len(nodes) + 1):
        phi = (phi - 1 / math.factorial(k)) / z
        targets.append(z * math.factorial(k) * phi / B)
    r = np.array([math.log(s[i] / s[m]) / h for m in nodes])
    powers = np.array([r**k for k in range(len(nodes))])
    a = [0.5] if len(nodes) == 1 else np.linalg.solve(powers, targets) if len(nodes) else []
    change = math.expm1(z) * D[i] + B * sum(w / at * (D[m] - D[i]) for w, at, m in zip(a, r, nodes, strict=True))
    return x - s[i + 1] * change if form == "eps" else s[i + 1] / s[i] * x - change


@EVERY_SYSTEM
@FINALS
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("form", ["x0", "eps"])
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
def test_unipc(schedule: Schedule, final: str, order: int, form: str, solver: str) -> None:
    """Zhao et al. 2023, Algorithms 1 and 2: predict, ask, correct, and predict from there; the order falls to 1."""
    options: dict[str, Any] = {"final": final, "lower_order_final": True, "prediction": "x0", "clip": None}
    plan = unipc(schedule, STEPS, order, solver, form, disable_corrector=[3], **options)
    s, ask = ratios(plan), denoiser(schedule) if form == "x0" else slope(schedule)
    x, D, expected = start(plan), [], []
    before, p = x, 0
    for i in range(STEPS):
        D.append(ask(x, s[i]))
        if i and i - 1 != 3:
            x = unipc_step(s, i - 1, [*range(i - p, i - 1), i], D, before, solver, form)
        before, p = x, min(order, i + 1, STEPS - i)
        if s[i + 1]:
            x = unipc_step(s, i, range(i - p + 1, i), D, x, solver, form)
        else:
            x = D[i] if form == "x0" else x - s[i] * D[i]
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
def test_unip_2_is_dpmpp_2m(schedule: Schedule) -> None:
    """Without the corrector, bh2 is the midpoint solver, in both forms; the corrector is not idle."""
    for form in ("x0", "eps"):
        plain = unipc(schedule, STEPS, 2, predicts=form, disable_corrector=range(STEPS), clip=None)
        np.testing.assert_array_equal(plain.table, dpmpp(schedule, STEPS, 2, predicts=form, clip=None).table)
        corrected = unipc(schedule, STEPS, 2, predicts=form, clip=None)
        assert error(states(corrected), states(plain)) > 1e-3


# --- SA-Solver


def lagrange(at: np.ndarray, nodes: Sequence[float], k: int) -> np.ndarray:
    """The polynomial that is 1 at node k and 0 at the others."""
    others = [node for node in nodes if node != nodes[k]]
    return np.prod([(at - node) / (nodes[k] - node) for node in others], axis=0) * np.ones_like(at)


def adams_step(
    s: Sequence[float], i: int, nodes: Sequence[int], D: Sequence[Tensor], x: Tensor, tau: float, z: Tensor
) -> Tensor:
    """From level i to i + 1 through the predictions of `nodes` (Xue et al. 2023, section 5), by numerical integrals."""
    a, b = -math.log(s[i]), -math.log(s[i + 1])
    points, weights = np.polynomial.legendre.leggauss(48)
    at, weights = (a + b) / 2 + (b - a) / 2 * points, (b - a) / 2 * weights
    kernel = weights * (1 + tau**2) * np.exp(-(tau**2) * (b - at) + at)
    lambdas = [-math.log(s[m]) for m in nodes]
    gain = sum(s[i + 1] * float(kernel @ lagrange(at, lambdas, k)) * D[m] for k, m in enumerate(nodes))
    noise_part = s[i + 1] * math.sqrt(1 - math.exp(-2 * tau**2 * (b - a))) * z
    return s[i + 1] / s[i] * math.exp(-(tau**2) * (b - a)) * x + gain + noise_part


@EVERY_SYSTEM
@FINALS
@pytest.mark.parametrize(("predictor", "corrector"), [(1, 0), (1, 1), (2, 0), (2, 2), (3, 3), (3, 4), (1, 4)])
def test_sa_solver(schedule: Schedule, final: str, predictor: int, corrector: int) -> None:
    """Xue et al. 2023, Algorithm 1: the corrector takes the predictor's noise, and tau changes from step to step."""

    def tau(s: float) -> float:
        return 0.8 if 0.1 <= s <= 20 else 0.3

    options: dict[str, Any] = {"solver": "heun", "lower_order_final": False, "prediction": "x0", "clip": None}
    plan = sa_solver(schedule, STEPS, predictor, corrector, tau, final=final, **options)
    s, ask = ratios(plan), denoiser(schedule)
    x, D, expected = start(plan), [], []
    before = x
    for i in range(STEPS):
        D.append(ask(x, s[i]))
        if i and corrector:
            nodes = range(i, max(i - corrector, -1), -1)
            x = adams_step(s, i - 1, nodes, D, before, tau(s[i - 1]), noise(i - 1))
        before = x
        nodes = range(i, max(i - predictor, -1), -1)
        x = adams_step(s, i, nodes, D, x, tau(s[i]), noise(i)) if s[i + 1] else D[i]
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
@pytest.mark.parametrize("order", [1, 2, 3])
def test_sa_solver_without_noise_is_unipc(schedule: Schedule, order: int) -> None:
    """tau = 0 and one more prediction for the corrector: UniPC with bh1."""
    plan = sa_solver(schedule, STEPS, order, order + 1, tau=0.0, clip=None)
    np.testing.assert_array_equal(plan.table, unipc(schedule, STEPS, order, "bh1", clip=None).table)


def test_tau_holds_in_its_range() -> None:
    """A number counts where the step begins within tau_min..tau_max, 0.05..50 by default, with noise there alone."""
    begins = (sa_solver(LINEAR, 20).sigma / sa_solver(LINEAR, 20).alpha)[:-1]
    ends = begins[15], begins[3]  # belong to it
    for low, high, options in ((0.05, 50.0, {}), (*ends, {"tau_min": ends[0], "tau_max": ends[1]})):
        plan = sa_solver(LINEAR, 20, **options)
        np.testing.assert_array_equal(plan.column("cz") > 0, (low <= begins) & (begins <= high))


def test_refusals() -> None:
    """One line each, that says what was wrong."""
    refused: list[tuple[str, Callable[..., Plan], dict[str, Any]]] = [
        ("order must be a whole number in 1..3, got 4", unipc, {"order": 4}),
        ("order must be a whole number in 1..3, got 2.0", unipc, {"order": 2.0}),
        ("unknown solver 'bh3'.*known are bh1, bh2$", unipc, {"solver": "bh3"}),
        ("unknown solver 'midpoint'.*known are bh1, bh2$", unipc, {"solver": "midpoint"}),
        ("unknown solver 'bh2'.*known are bh1, heun$", sa_solver, {"solver": "bh2"}),
        ("disable_corrector must be a list of steps, got 0", unipc, {"disable_corrector": 0}),
        ("unknown predicts 'noise'", unipc, {"predicts": "noise"}),
        ("predictor_order must be a whole number in 1..3, got 0", sa_solver, {"predictor_order": 0}),
        ("corrector_order must be a whole number in 0..4, got 5", sa_solver, {"corrector_order": 5}),
        ("tau must be >= 0 and finite, got -1.0", sa_solver, {"tau": -1.0}),
        ("tau must be >= 0 and finite, got inf", sa_solver, {"tau": lambda s: math.inf}),
        ("tau must be >= 0 and finite, got '1'", sa_solver, {"tau": "1"}),
    ]
    for message, method, wrong in refused:
        with pytest.raises(InputError, match=message) as caught:
            method(LINEAR, 5, **wrong)
        assert "\n" not in str(caught.value)
