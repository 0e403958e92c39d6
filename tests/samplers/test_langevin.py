"""Langevin dynamics against the papers' loops, and what its steps do to the variance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.models import GaussianMixture
from fastdiff.samplers import annealed_langevin, ddpm, langevin, predictor_corrector
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, SCHEDULES, TOLERANCE, error, levels, noise, slope, start, states
from tests.samplers.propagate import marginals

GEOMETRIC = fd.schedules.geometric(10)


@EVERY_SYSTEM
def test_langevin(schedule: Schedule) -> None:
    """x + delta score + sqrt(2 delta) z with score = -eps / sigma and delta = step_size sigma^2, in any coordinates."""
    plan = langevin(schedule, 20, sigma=0.7, step_size=0.2, prediction="x0", clip=None, denoise=True)
    alpha, sigma, eps = plan.alpha[0], plan.sigma[0], slope(schedule)
    assert sigma / alpha == pytest.approx(0.7)
    delta, x, expected = 0.2 * sigma**2, start(plan) * alpha, []
    for i in range(20):
        x = x - delta * eps(x / alpha, 0.7) / sigma + math.sqrt(2 * delta) * noise(i)
        expected.append(x / alpha)
    expected.append((x - sigma * eps(x / alpha, 0.7)) / alpha)
    assert error(states(plan), expected) < TOLERANCE
    assert (len(plan), plan.sigma[-1]) == (21, 0.0)
    stays = langevin(schedule, 20, sigma=0.7)
    assert len(stays) == 20
    assert len(set(stays.sigma.tolist())) == 1


@pytest.mark.parametrize("denoise", [False, True])
def test_annealed_is_algorithm_1(denoise: bool) -> None:
    """n steps a level of x + (a_i / 2) score + sqrt(a_i) z, a_i = a (sigma_i / sigma_L)^2, then x + sigma^2 score."""
    schedule = SCHEDULES["ve"]
    plan = annealed_langevin(schedule, 5, per_level=3, step_size=0.1, denoise=denoise, prediction="x0", clip=None)
    s, eps = np.geomspace(schedule.sigma[-1], schedule.sigma[0], 5), slope(schedule)
    a = 0.1 * 2 * s[-1] ** 2
    x, expected = start(plan), []
    for i, row in ((i, 3 * i + n) for i in range(5) for n in range(3)):
        step = a * s[i] ** 2 / s[-1] ** 2
        x = x - step / 2 * eps(x, s[i]) / s[i] + math.sqrt(step) * noise(row)
        expected.append(x)
    if denoise:
        expected.append(x - s[-1] * eps(x, s[-1]))
    assert error(states(plan), expected) < TOLERANCE
    assert plan.sigma[-1] == pytest.approx(0.0 if denoise else s[-1])


def test_ncsn() -> None:
    """The paper's numbers, a = 2e-5 and T = 100 over 10 levels of 1..0.01, are the defaults; alpha moves x along."""
    plan = annealed_langevin(GEOMETRIC)
    assert len(plan) == 1001
    np.testing.assert_allclose(
        plan.column("cz")[:1000:100] ** 2, 2e-5 * (GEOMETRIC.sigma[::-1] / 0.01) ** 2, rtol=1e-12
    )
    vp = annealed_langevin(fd.schedules.linear(1000), 5, per_level=2)
    np.testing.assert_allclose(vp.column("cx")[:10], vp.alpha[1:11] / vp.alpha[:10], rtol=1e-14)


@settings(max_examples=20)  # each builds a plan and runs it
@given(st.floats(0.01, 1.9), st.floats(0.1, 3.0))
def test_variance_of_one_point(step_size: float, deviation: float) -> None:
    """Around one point v <- (1 - r)^2 v + 2 r sigma^2, whose limit is sigma^2 / (1 - r / 2) for steps r."""
    schedule, steps = GEOMETRIC, 10
    plan = langevin(schedule, steps, sigma=0.5, step_size=step_size, clip=None)
    model = GaussianMixture([[0.3]], [0.0]).network(schedule, "eps")
    mean, found = marginals(plan, model, 0.3, deviation)
    limit, kept = 0.25 / (1 - step_size / 2), (1 - step_size) ** 2
    expected = [limit + kept**i * (deviation**2 - limit) for i in range(1, steps + 1)]
    np.testing.assert_allclose(mean, 0.3, rtol=1e-9)  # the mixture finds its level by interpolation in the time
    np.testing.assert_allclose(found**2, expected, rtol=1e-9)


@EVERY_SYSTEM
@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral"])
@pytest.mark.parametrize("corrector_steps", [0, 2])
def test_predictor_corrector(schedule: Schedule, predictor: str, corrector_steps: int) -> None:
    """M steps of x + delta score + sqrt(2 delta) z, delta = 2 (1 - beta) (snr sigma)^2, then the predictor."""
    snr, steps = 0.16, 6
    plan = predictor_corrector(schedule, steps, corrector_steps, snr, predictor, prediction="x0", clip=None)
    s, eps = levels(schedule, steps), slope(schedule)
    alpha, sigma = [], []
    for value in s[:-1]:
        _, a, b, _ = schedule.at_lambda(-math.log(value))
        alpha.append(float(a))
        sigma.append(float(b))
    alpha.append(1.0)
    sigma.append(0.0)
    x, row, expected = start(plan) * alpha[0], 0, []
    for i in range(steps):
        a = alpha[i] / alpha[i + 1]
        beta = sigma[i] ** 2 - a**2 * sigma[i + 1] ** 2
        for _ in range(corrector_steps):
            delta = 2 * a**2 * (snr * sigma[i]) ** 2
            x = x - delta * eps(x / alpha[i], s[i]) / sigma[i] + math.sqrt(2 * delta) * noise(row)
            expected.append(x / alpha[i])
            row += 1
        score = -eps(x / alpha[i], s[i]) / sigma[i]
        if predictor == "ancestral":
            x, variance = (x + beta * score) / a, beta * (sigma[i + 1] / sigma[i]) ** 2
        else:
            x, variance = (2 - a) * x + beta * score, beta if i < steps - 1 else 0.0
        x = x + math.sqrt(variance) * noise(row)
        expected.append(x / alpha[i + 1])
        row += 1
    # Measured: 5e-14. beta is a difference of squares.
    assert error(states(plan), expected) < TOLERANCE


def test_ancestral_predictor_alone_is_ddpm() -> None:
    """Without a corrector it is ancestral sampling."""
    schedule = fd.schedules.linear(1000)
    plan = predictor_corrector(schedule, 13, 0, predictor="ancestral", spacing="trailing")
    np.testing.assert_allclose(plan.column("cz"), ddpm(schedule, 13, spacing="trailing").column("cz"), rtol=1e-9)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        (langevin, {"steps": 0}, "steps must be a whole number, at least 1, got 0"),
        (langevin, {"sigma": -1.0}, "sigmas must fall strictly and stay above 0"),
        (langevin, {"step_size": 2.0}, "step_size must be > 0 and < 2, got 2.0"),
        (langevin, {"step_size": "0.1"}, "step_size must be > 0 and < 2, got '0.1'"),
        (annealed_langevin, {"per_level": 2.5}, "per_level must be a whole number, at least 1, got 2.5"),
        (annealed_langevin, {"step_size": math.nan}, "step_size must be > 0 and < 2, got nan"),
        (predictor_corrector, {"corrector_steps": -1}, "corrector_steps must be a whole number, at least 0, got -1"),
        (predictor_corrector, {"snr": 0.0}, "snr must be > 0 and < 1, got 0.0"),
        (predictor_corrector, {"predictor": "ancestrel"}, "unknown predictor 'ancestrel': did you mean 'ancestral'"),
    ],
)
def test_bad_arguments(sampler: Any, options: dict[str, Any], message: str) -> None:
    """One line that says what to do."""
    with pytest.raises(InputError, match=message):
        sampler(GEOMETRIC, **options)


def test_no_score_in_pure_noise() -> None:
    """Where alpha is 0, x / alpha cannot go on to the next level."""
    for sampler in (annealed_langevin, predictor_corrector):
        with pytest.raises(InputError, match=f"{sampler.__name__} cannot begin where alpha is 0"):
            sampler(fd.schedules.flow(1000), 4, spacing="trailing", prediction="flow")
