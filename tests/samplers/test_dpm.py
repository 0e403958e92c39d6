"""DPM-Solver and DPM-Solver++ against plain loops of the papers' algorithms and of k-diffusion's, and each other.

The loops are in x / alpha, where alpha is 1, sigma is s and lambda is -log s.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.plan import Plan
from fastdiff.samplers import (
    ddim,
    dpm_solver,
    dpm_solver_single,
    dpmpp,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s,
    dpmpp_2s_ancestral,
    dpmpp_3m,
    dpmpp_3m_sde,
    dpmpp_sde,
    dpmpp_single,
    unipc,
)
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, denoiser, ends, error, levels, noise, slope, start, states
from tests.samplers.loops import LINEAR

STEPS = 8
FORMS = ["x0", "eps"]
# Measured, the worst of all tests: 2e-11, in DPM-Solver-3's steps of h = 6, which cancel terms of e^h times the state.
TOLERANCE = 1e-10


def ratios(plan: Plan) -> list[float]:
    """s = sigma / alpha before each row and after the last."""
    return list(plan.sigma / plan.alpha)


# --- multistep


@EVERY_SYSTEM
@pytest.mark.parametrize("steps", [1, 2, STEPS])
def test_2m(schedule: Schedule, steps: int) -> None:
    """Lu et al. 2022b, Algorithm 2, with a first-order step onto clean data."""
    plan = dpmpp_2m(schedule, steps, prediction="x0", clip=None)
    s, denoise = levels(schedule, steps), denoiser(schedule)
    x, x0s, expected = start(plan), [], []
    for i in range(steps):
        x0s.append(denoise(x, s[i]))
        D = x0s[i]
        if 0 < i < steps - 1:
            r = math.log(s[i - 1] / s[i]) / math.log(s[i] / s[i + 1])
            D = (1 + 1 / (2 * r)) * x0s[i] - 1 / (2 * r) * x0s[i - 1]
        x = s[i + 1] / s[i] * x - (s[i + 1] / s[i] - 1) * D
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
@pytest.mark.parametrize("eta", [0.5, 1.0])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
def test_2m_sde(schedule: Schedule, eta: float, solver: str) -> None:
    """k-diffusion's sample_dpmpp_2m_sde."""
    plan = dpmpp_2m_sde(schedule, STEPS, solver=solver, eta=eta, prediction="x0", clip=None)
    s, denoise = levels(schedule, STEPS), denoiser(schedule)
    x, last, expected = start(plan), None, []
    for i in range(STEPS):
        x0 = denoise(x, s[i])
        if not s[i + 1]:
            x = x0
        else:
            h = math.log(s[i] / s[i + 1])
            decay, gain = math.exp(-eta * h), -math.expm1(-h - eta * h)
            x = s[i + 1] / s[i] * decay * x + gain * x0
            if last is not None:
                r = math.log(s[i - 1] / s[i]) / h
                factor = gain / 2 if solver == "midpoint" else gain / (-h - eta * h) + 1
                x = x + factor / r * (x0 - last)
            x = x + s[i + 1] * math.sqrt(-math.expm1(-2 * eta * h)) * noise(i)
        last = x0
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_3m_sde(schedule: Schedule, eta: float) -> None:
    """k-diffusion's sample_dpmpp_3m_sde, with its own third order by default: half of the term of third="exact"."""
    options = {"eta": eta, "prediction": "x0", "clip": None, "lower_order_final": False}
    plan = dpmpp_3m_sde(schedule, STEPS, **options)
    s, denoise = levels(schedule, STEPS), denoiser(schedule)
    x, x0s, expected = start(plan), [], []
    for i in range(STEPS):
        x0s.append(denoise(x, s[i]))
        if not s[i + 1]:
            x = x0s[i]
        else:
            h = math.log(s[i] / s[i + 1])
            a = h * (1 + eta)
            phi_2 = math.expm1(-a) / a + 1
            phi_3 = phi_2 / a - 0.5
            x = math.exp(-a) * x - math.expm1(-a) * x0s[i]
            if i:
                r0 = math.log(s[i - 1] / s[i]) / h
                first = slope_0 = (x0s[i] - x0s[i - 1]) / r0
                if i > 1:
                    r1 = math.log(s[i - 2] / s[i - 1]) / h
                    slope_1 = (x0s[i - 1] - x0s[i - 2]) / r1
                    first = slope_0 + (slope_0 - slope_1) * r0 / (r0 + r1)
                    x = x - phi_3 * (slope_0 - slope_1) / (r0 + r1)
                x = x + phi_2 * first
            x = x + s[i + 1] * math.sqrt(-math.expm1(-2 * h * eta)) * noise(i)
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
def test_third_order_is_a_corrected_start_and_the_whole_term(schedule: Schedule) -> None:
    """UniP-3 has the whole term, and UniC on the first step alone is the corrected start."""
    other = unipc(schedule, STEPS, 3, disable_corrector=range(1, STEPS), clip=None)
    exact, peers = (dpmpp_3m(schedule, STEPS, third=third, clip=None) for third in ("exact", "peers"))
    np.testing.assert_array_equal(exact.table, other.table)
    assert (exact.column("c0")[1:4] != peers.column("c0")[1:4]).all()
    assert "dy" not in exact.columns and exact.history_slots == 2  # the correction keeps no other state


@EVERY_SYSTEM
def test_first_order_is_ddim(schedule: Schedule) -> None:
    """Order 1, multistep and singlestep, through x0 and eps, and with all of the noise."""
    options = {"prediction": "x0", "clip": None}
    same = [
        *(method(schedule, STEPS, 1, predicts=form, **options) for method in (dpmpp, dpmpp_single) for form in FORMS),
        *(unipc(schedule, STEPS, 1, disable_corrector=range(STEPS), predicts=form, **options) for form in FORMS),
    ]
    for eta, plans in {0.0: same, 1.0: [dpmpp(schedule, STEPS, 1, eta=1.0, **options)]}.items():
        expected = states(ddim(schedule, STEPS, eta, "karras", **options))
        for plan in plans:
            assert error(states(plan), expected) < TOLERANCE, plan.name


# --- singlestep


@EVERY_SYSTEM
@pytest.mark.parametrize("steps", [6, 7])
def test_2s(schedule: Schedule, steps: int) -> None:
    """Lu et al. 2022b, Algorithm 1 with r = 1/2; a seventh evaluation makes a first-order step of the rest."""
    options = {"spacing": "exponential", "final": "sigma_min"}
    plan = dpmpp_2s(schedule, steps, prediction="x0", clip=None, **options)
    s, denoise = ratios(plan), denoiser(schedule)
    x, expected = start(plan), []
    for i in range(0, steps - 1, 2):
        first = denoise(x, s[i])
        u = s[i + 1] / s[i] * x - (s[i + 1] / s[i] - 1) * first
        D = denoise(u, s[i + 1])
        x = s[i + 2] / s[i] * x - (s[i + 2] / s[i] - 1) * D
        expected += [u, x]
    if steps % 2:
        expected.append(s[-1] / s[-2] * x - (s[-1] / s[-2] - 1) * denoise(x, s[-2]))
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("third", ["exact", "peers"])
def test_dpm_solver_3(schedule: Schedule, solver: str, third: str) -> None:
    """Lu et al. 2022a, Algorithm 2 with r = 1/3 and 2/3, which is "midpoint" and "exact".

    "heun" takes for the whole step the parabola through all three where the paper takes the line to the last. With
    "midpoint" diffusers takes 1/2 (e^{r_2 h} - 1) for the factor of the second stage's slope.
    """
    options = {"spacing": "exponential", "final": "sigma_min", "third": third}
    plan = dpm_solver_single(schedule, 6, 3, solver, prediction="x0", clip=None, **options)
    s, eps = ratios(plan), slope(schedule)
    x, expected = start(plan), []
    for i in (0, 3):
        h = math.log(s[i] / s[i + 3])
        grown = [math.expm1(h * share) for share in (1 / 3, 2 / 3, 1)]
        e0 = eps(x, s[i])
        u1 = x - s[i + 1] * grown[0] * e0
        D1 = eps(u1, s[i + 1]) - e0
        line = grown[1] / 2 if (solver, third) == ("midpoint", "peers") else grown[1] / (2 / 3 * h) - 1
        u2 = x - s[i + 2] * (grown[1] * e0 + 2 * line * D1)
        D2 = eps(u2, s[i + 2]) - e0
        line, parabola = grown[2] / h - 1, 2 * (grown[2] / h - 1 - h / 2) / h
        if solver == "midpoint":
            x = x - s[i + 3] * (grown[2] * e0 + line * 1.5 * D2)
        else:  # p = e0 + b theta + c theta^2 through D1 at 1/3 and D2 at 2/3
            c = 9 / 2 * (D2 - 2 * D1)
            x = x - s[i + 3] * (grown[2] * e0 + line * (3 * D1 - c / 3) + parabola * c)
        expected += [u1, u2, x]
    assert error(states(plan), expected) < TOLERANCE


def test_singlestep_is_alone_at_its_infinite_ends() -> None:
    """Steps of 3, what is left, and one of first order onto clean data, or from pure noise."""
    beginnings = {7: [0, 3, 6], 8: [0, 3, 6, 7], 9: [0, 3, 6, 8]}
    for schedule, first in ((LINEAR, 0), (LINEAR.zero_terminal_snr(), 1)):
        for steps, begins in beginnings.items():
            plan = dpmpp_single(schedule, steps + first, 3, spacing="trailing", prediction="x0", clip=None)
            # Only rows that begin a step take nothing from the history.
            history = np.abs([plan.column(f"ch{k}") for k in range(2)]).sum(axis=0)
            assert np.flatnonzero(history == 0).tolist() == sorted({0, *(row + first for row in begins)})
            assert [plan.column(column)[-1] for column in ("cx", "c0")] == [0.0, 1.0]


# --- two stages with noise


def ancestral(now: float, after: float, eta: float) -> tuple[float, float]:
    """k-diffusion's sigma_down and sigma_up."""
    up = min(after, eta * math.sqrt(after**2 * (now**2 - after**2) / now**2))
    return math.sqrt(after**2 - up**2), up


@EVERY_SYSTEM
@pytest.mark.parametrize(("eta", "r"), [(1.0, 0.5), (0.6, 0.5), (0.6, 0.3), (0.0, 0.7)])
def test_sde(schedule: Schedule, eta: float, r: float) -> None:
    """k-diffusion's sample_dpmpp_sde, with one Brownian motion in sigma behind both noises."""
    plan = dpmpp_sde(schedule, STEPS, eta, r, prediction="x0", clip=None)
    s, denoise = levels(schedule, STEPS), denoiser(schedule)
    x, expected = start(plan), []
    for i in range(STEPS - 1):
        middle = math.exp((1 - r) * math.log(s[i]) + r * math.log(s[i + 1]))
        path = math.sqrt(s[i] - middle) * noise(2 * i), math.sqrt(middle - s[i + 1]) * noise(2 * i + 1)
        z_stage, z_step = path[0] / math.sqrt(s[i] - middle), sum(path) / math.sqrt(s[i] - s[i + 1])
        first = denoise(x, s[i])
        down, up = ancestral(s[i], middle, eta)
        stage = down / s[i] * x + (1 - down / s[i]) * first + up * z_stage
        D = (1 - 1 / (2 * r)) * first + 1 / (2 * r) * denoise(stage, middle)
        down, up = ancestral(s[i], s[i + 1], eta)
        x = down / s[i] * x + (1 - down / s[i]) * D + up * z_step
        expected += [stage, x]
    expected.append(denoise(x, s[-2]))
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
@pytest.mark.parametrize("eta", [1.0, 0.6, 3.0])
def test_2s_ancestral(schedule: Schedule, eta: float) -> None:
    """k-diffusion's sample_dpmpp_2s_ancestral; with eta = 3 some steps go all the way down first, by Euler."""
    plan = dpmpp_2s_ancestral(schedule, STEPS, eta, prediction="x0", clip=None)
    s, denoise = levels(schedule, STEPS), denoiser(schedule)
    x, expected = start(plan), []
    for i in range(STEPS):
        down, up = ancestral(s[i], s[i + 1], eta)
        D = denoise(x, s[i])
        if down:
            middle = math.sqrt(s[i] * down)
            stage = middle / s[i] * x + (1 - middle / s[i]) * D
            expected.append(stage)
            D = denoise(stage, middle)
        x = down / s[i] * x + (1 - down / s[i]) * D + up * noise(len(expected))
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@EVERY_SYSTEM
def test_2s_ancestral_without_noise_is_2s(schedule: Schedule) -> None:
    """With the stages of the one among the levels of the other."""
    s = levels(schedule, STEPS)[:-1]
    between = [math.sqrt(now * after) for now, after in pairwise(s)]
    interleaved = sorted([*s, *between], reverse=True)
    plan = dpmpp_2s_ancestral(schedule, STEPS, eta=0.0, prediction="x0", clip=None)
    other = dpmpp_2s(schedule, sigmas=interleaved, prediction="x0", clip=None)
    assert error(ends(plan, STEPS, states(plan)), ends(other, STEPS, states(other))) < TOLERANCE


# --- where alpha is 0, and what is refused


@pytest.mark.parametrize("method", [dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, unipc])
def test_pure_noise_is_the_limit(method: Callable[..., Plan]) -> None:
    """A start where alpha is 0 is that where it is next to nothing."""
    noised = LINEAR.zero_terminal_snr()
    alpha = np.array(noised.alpha)
    alpha[-1] = 1e-200
    limit = Schedule(alpha, np.sqrt(1 - alpha**2))
    at_zero, near = (
        method(schedule, STEPS, spacing="trailing", prediction="x0", clip=None) for schedule in (noised, limit)
    )
    assert at_zero.columns == near.columns
    # lambda is -460: a prediction h_0 behind has a weight of h / h_0, and less than 1 / 100 of it goes elsewhere.
    np.testing.assert_allclose(at_zero.table, near.table, atol=0.01)


def test_refusals() -> None:
    """One line each, that says what was wrong."""
    refused: list[tuple[str, Callable[..., Plan], dict[str, Any]]] = [
        ("order must be a whole number in 1..3, got 4", dpmpp, {"order": 4}),
        ("order must be a whole number in 1..3, got 2.0", dpmpp, {"order": 2.0}),
        ("order must be a whole number in 1..3, got 0", dpmpp_single, {"order": 0}),
        ("unknown option of dpmpp_2m 'order'", dpmpp_2m, {"order": 3}),
        ("unknown solver 'mid'.*known are midpoint, heun$", dpmpp, {"solver": "mid"}),
        ("unknown solver 'bh2'.*known are midpoint, heun$", dpmpp, {"solver": "bh2"}),
        ("unknown solver 'bh1'.*known are midpoint, heun$", dpmpp_single, {"solver": "bh1"}),
        ("unknown third 'half'", dpmpp_single, {"third": "half"}),
        ("unknown predicts 'v'", dpmpp, {"predicts": "v"}),
        ("unknown third 'half'", dpmpp, {"third": "half"}),
        ("eta must be >= 0 and finite, got -0.1", dpmpp, {"eta": -0.1}),
        ("eta must be >= 0 and finite, got '1'", dpmpp, {"eta": "1"}),
        ("eta must be 0 where eps is predicted, got 1.0", dpm_solver, {"eta": 1.0}),
        ("r must be > 0 and < 1, got 1.0", dpmpp_sde, {"r": 1.0}),
        ("eta must be >= 0", dpmpp_sde, {"eta": -1.0}),
        ("eta must be >= 0", dpmpp_2s_ancestral, {"eta": math.nan}),
    ]
    for message, method, wrong in refused:
        with pytest.raises(InputError, match=message) as caught:
            method(LINEAR, 5, **wrong)
        assert "\n" not in str(caught.value)
    for method in (dpm_solver, dpm_solver_single, dpmpp_sde, dpmpp_2s_ancestral):
        with pytest.raises(InputError, match="cannot begin where alpha is 0"):
            method(fd.schedules.flow(100), 5, spacing="trailing", prediction="v")
