"""Section 1 of math.md: `x_t = alpha_t x0 + sigma_t eps`, in numbers."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.schedules import Schedule
from tests.samplers.levels import levels

Array = npt.NDArray[np.float64]

EPS = np.finfo(np.float64).eps
TINY = np.finfo(np.float64).tiny
SCHEDULES = {name: fd.schedules.make(name) for name in fd.schedules.names()}
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)

# x0 is 2 with probability 0.3 and -1 otherwise.
VALUES, CHANCES = np.array([2.0, -1.0]), np.array([0.3, 0.7])
MEAN = float(CHANCES @ VALUES)
VARIANCE = float(CHANCES @ (VALUES - MEAN) ** 2)


@EVERY_SCHEDULE
def test_mean_and_variance(schedule: Schedule) -> None:
    """E[x_t] = alpha_t E[x0] and Var[x_t] = alpha_t^2 Var[x0] + sigma_t^2, at every level.

    The expectations are exact: x0 takes two values, and Gauss-Hermite nodes stand for eps.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    weights = weights / weights.sum()
    T = len(schedule)
    x0 = torch.from_numpy(np.broadcast_to(VALUES[:, None], (T, 2, 3)).copy())
    noise = torch.from_numpy(np.broadcast_to(nodes, (T, 2, 3)).copy())
    x_t = fd.q_sample(x0, torch.arange(T), schedule, noise=noise).numpy()
    mean = np.einsum("a,n,tan->t", CHANCES, weights, x_t)
    variance = np.einsum("a,n,tan->t", CHANCES, weights, (x_t - mean[:, None, None]) ** 2)
    # Sums of 6 terms, each rounded a few times; the mean cancels at the scale of sigma.
    scale = schedule.alpha + schedule.sigma
    np.testing.assert_allclose(mean, schedule.alpha * MEAN, rtol=0, atol=32 * EPS * scale.max())
    np.testing.assert_allclose(variance, schedule.alpha**2 * VARIANCE + schedule.sigma**2, rtol=128 * EPS)


@EVERY_SCHEDULE
def test_mean_and_variance_of_drawn_noise(schedule: Schedule) -> None:
    """The same with noise that q_sample draws itself: eps is what it says, and has the moments of N(0, I)."""
    n = 20_000
    x0 = torch.from_numpy(np.repeat(VALUES, np.rint(CHANCES * n).astype(int)))[:, None]
    for t in (0, 500, 999):
        x_t, eps = fd.q_sample(x0, t, schedule, seed=t, return_noise=True)
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        # Drawn in float32, scaled in the float64 of x0.
        expected = alpha * x0 + sigma * eps.double()
        torch.testing.assert_close(x_t, expected, rtol=0, atol=8 * EPS * (2 * alpha + 6 * sigma))
        # Five standard errors: sd / sqrt(n) of a mean, and sqrt(2 / n) of a variance of Gaussians; the mixture adds
        # the sampling error of its cross term, 2 alpha sigma cov(x0, eps).
        spread = alpha**2 * VARIANCE + sigma**2
        assert abs(x_t.mean().item() - alpha * MEAN) <= 5 * sigma / n**0.5
        cross = 2 * alpha * sigma * VARIANCE**0.5
        assert abs(x_t.var(correction=0).item() - spread) <= 5 * (2**0.5 * sigma**2 + cross) / n**0.5


def compose(steps: list[tuple[float, float]]) -> tuple[Array, Array]:
    """Mean coefficient and variance of x_t given x0 after each of the kernels x_t = a x_{t-1} + N(0, variance)."""
    a, variance, composed = 1.0, 0.0, []
    for step_a, step_variance in steps:
        a, variance = step_a * a, step_a**2 * variance + step_variance
        composed.append((a, variance))
    means, variances = np.array(composed).T
    return means, variances


@pytest.mark.parametrize(
    ("schedule", "betas"),
    [
        (fd.schedules.linear(1000), np.linspace(1e-4, 2e-2, 1000)),
        (fd.schedules.scaled_linear(1000), np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
        (fd.schedules.progressive_vae(200), 1e-4 + 0.02 * np.arange(1, 201) / 200),
    ],
    ids=["linear", "scaled_linear", "progressive_vae"],
)
def test_one_step_kernels_compose(schedule: Schedule, betas: Array) -> None:
    """q(x_t | x_{t-1}) = N(sqrt(1 - beta_t) x_{t-1}, beta_t), one after the other, is q(x_t | x0).

    So alpha_t = prod sqrt(1 - beta_s), and the variances that pile up to sigma_t^2 are `v <- (1 - beta) v + beta`.
    """
    alpha, variance = compose([((1 - beta) ** 0.5, beta) for beta in betas])
    # A thousand steps, a few roundings each.
    np.testing.assert_allclose(schedule.alpha, alpha, rtol=4000 * EPS)
    np.testing.assert_allclose(schedule.sigma**2, variance, rtol=4000 * EPS)


@EVERY_SCHEDULE
@pytest.mark.parametrize("steps", [13, 1000])
def test_longer_kernels_compose(schedule: Schedule, steps: int) -> None:
    """The same for any subsequence of the levels of any system.

    The kernel between two levels is `x_t = (alpha_t / alpha_prev) x_prev + N(0, step_variance)`, with
    `step_variance = sigma_t^2 - (alpha_t / alpha_prev)^2 sigma_prev^2`, which is beta_t for neighbours.
    """
    at = levels(schedule, steps, "trailing")
    assert (at.step_variance > 0).all()
    kernels = zip((at.alpha / at.alpha_prev)[::-1].tolist(), at.step_variance[::-1].tolist(), strict=True)
    alpha, variance = compose(list(kernels))
    # Each step's variance is a difference of two squares of size sigma^2; flow ends at alpha = 0.
    np.testing.assert_allclose(alpha, at.alpha[::-1], rtol=4000 * EPS, atol=EPS)
    np.testing.assert_allclose(variance, at.sigma[::-1] ** 2, rtol=4000 * EPS)


@pytest.mark.parametrize("name", [name for name, schedule in SCHEDULES.items() if schedule.variance_preserving])
def test_unit_variance_stays(name: str) -> None:
    """Var(x_t) = (1 - beta_t) Var(x_{t-1}) + beta_t, and that is 1 if Var(x_{t-1}) is: so Var(x_t) = 1 if Var(x_0) is.

    From any other variance the excess shrinks by 1 - beta_t a step: Var(x_t) = 1 + abar_t (Var(x_0) - 1).
    """
    schedule = SCHEDULES[name]
    start = np.array([1.0, 0.0, 0.3, 10.0])
    variance, walked = start, []
    for beta in schedule.step_sigma**2:
        variance = (1 - beta) * variance + beta
        walked.append(variance)
    expected = 1 + np.outer(schedule.alpha**2, start - 1)
    # A thousand steps, a few roundings each; from 0, expected is a difference of numbers near 1.
    np.testing.assert_allclose(walked, expected, rtol=4000 * EPS, atol=4 * EPS)
    np.testing.assert_array_equal(expected[:, 0], 1.0)


def test_steps_of_drawn_noise_compose() -> None:
    """Drawn step by step, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps_t, x_t is distributed as q(x_t | x0).

    Every step is a q_sample of one level. Mean, variance and fourth moment are those of N(sqrt(abar_t) x0, 1 - abar_t).
    """
    n, x0 = 40_000, 2.0
    betas = np.array([0.1, 0.3, 0.2, 0.5])
    x_t = torch.full((n, 1), x0, dtype=torch.float64)
    for t, beta in enumerate(betas):
        x_t = fd.q_sample(x_t, 0, Schedule([(1 - beta) ** 0.5], [beta**0.5]), step=t)
        abar = np.prod(1 - betas[: t + 1])
        z = (x_t.numpy() - abar**0.5 * x0) / (1 - abar) ** 0.5
        for power, moment in ((1, 0.0), (2, 1.0), (4, 3.0)):
            powers = z**power
            assert abs(powers.mean() - moment) <= 5 * powers.std() / n**0.5  # five standard errors


@settings(deadline=None)
@given(x0=st.floats(-5, 5), eps=st.floats(-5, 5), t=st.integers(0, 999))
def test_variance_exploding_is_the_same_process_rescaled(x0: float, eps: float, t: int) -> None:
    """x_VE = x_VP / alpha_VP and sigma_VE = sigma_VP / alpha_VP, for the same x0 and eps."""
    schedule = fd.schedules.linear(1000)
    pair = torch.tensor([[x0]], dtype=torch.float64), torch.tensor([[eps]], dtype=torch.float64)
    preserving = fd.q_sample(pair[0], t, schedule, noise=pair[1])
    exploding = fd.q_sample(pair[0], t, schedule.to_variance_exploding(), noise=pair[1])
    # A few roundings at the size of x0 + sigma_VE eps; below TINY numbers have fewer digits.
    size = abs(x0) + abs(eps) * schedule.sigma[t] / schedule.alpha[t]
    torch.testing.assert_close(exploding, preserving / schedule.alpha[t], rtol=0, atol=float(8 * EPS * size + TINY))
