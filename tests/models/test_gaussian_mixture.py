"""The mixture's closed forms against integrals over the clean data, and the network against those closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff import prediction
from fastdiff.errors import InputError
from fastdiff.models import GaussianMixture
from fastdiff.schedules import Schedule

MEANS = [[1.0, 0.5], [-1.0, 0.0], [0.2, -0.8]]
COVARIANCES = [[[0.09, 0.05], [0.05, 0.16]], [[0.04, 0.0], [0.0, 0.25]], [[0.1, -0.02], [-0.02, 0.05]]]
WEIGHTS = [1.0, 2.0, 3.0]
MIXTURE = GaussianMixture(MEANS, COVARIANCES, WEIGHTS)
NULL = len(MEANS)
LEVELS = [(1.0, 0.1), (0.8, 0.6), (0.1, 0.995), (1.0, 3.0), (0.0, 1.0)]
POINTS = torch.tensor([[0.3, 0.2], [-1.0, 0.4], [2.0, -1.0]], dtype=torch.float64)


def density(x: Tensor, y: int = NULL) -> Tensor:
    """Density of clean data at x [N, 2], from the textbook's formula."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for k in range(NULL) if y == NULL else [y]:
        gap, covariance = (
            x - torch.tensor(MEANS[k], dtype=torch.float64),
            torch.tensor(COVARIANCES[k], dtype=torch.float64),
        )
        exponent = -0.5 * (gap @ covariance.inverse() * gap).sum(dim=1)
        weight = WEIGHTS[k] / sum(WEIGHTS) if y == NULL else 1.0
        total += weight * exponent.exp() / (2 * math.pi * covariance.det().sqrt())
    return total


def integrals(x: Tensor, alpha: float, sigma: float, y: int) -> tuple[Tensor, Tensor]:
    """Density of noised data at x [B, 2] and E[x0 | x] as integrals over x0: sums on a grid, exact for smooth tails."""
    axis = torch.linspace(-6, 6, 481, dtype=torch.float64)
    x0 = torch.cartesian_prod(axis, axis)
    likelihood = (-(x[:, None] - alpha * x0).square().sum(dim=2) / (2 * sigma**2)).exp() / (2 * math.pi * sigma**2)
    joint = likelihood * density(x0, y) * (axis[1] - axis[0]) ** 2
    return joint.sum(dim=1), joint @ x0 / joint.sum(dim=1, keepdim=True)


@pytest.mark.parametrize(("alpha", "sigma"), LEVELS)
@pytest.mark.parametrize("y", [NULL, 0, 2])
def test_closed_forms(alpha: float, sigma: float, y: int) -> None:
    """Density, E[x0 | x], E[eps | x] and their weighted sum are the integrals that define them."""
    p, x0 = integrals(POINTS, alpha, sigma, y)
    eps = (POINTS - alpha * x0) / sigma
    labels = torch.full((len(POINTS),), y)
    # A sum over a grid finer than every scale of a Gaussian is exact to rounding, which 1 / sigma enlarges in eps.
    close: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(MIXTURE.log_density(POINTS, alpha, sigma, labels), p.log(), **close)
    torch.testing.assert_close(MIXTURE.x0(POINTS, alpha, sigma, labels), x0, **close)
    torch.testing.assert_close(MIXTURE.eps(POINTS, alpha, sigma, labels), eps, **close)
    torch.testing.assert_close(MIXTURE.target(POINTS, alpha, sigma, 0.3, -2.0, labels), 0.3 * x0 - 2 * eps, **close)


@pytest.mark.parametrize(("alpha", "sigma"), [*LEVELS, (1.0, 0.0)])
def test_score_is_the_gradient_of_the_log_density(alpha: float, sigma: float) -> None:
    """Also for clean data, sigma = 0; and eps = -sigma score."""
    x = POINTS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(MIXTURE.log_density(x, alpha, sigma).sum(), x)
    score = MIXTURE.score(POINTS, alpha, sigma)
    torch.testing.assert_close(score, gradient, rtol=1e-12, atol=1e-12)  # two ways to round
    torch.testing.assert_close(MIXTURE.eps(POINTS, alpha, sigma), -sigma * score, rtol=1e-12, atol=1e-12)


def test_clean_density() -> None:
    """Without a level, log_density is that of the data."""
    torch.testing.assert_close(MIXTURE.log_density(POINTS), density(POINTS).log(), rtol=1e-12, atol=1e-12)


def test_standard_deviations_and_points() -> None:
    """A spread of numbers is the same in all directions; a spread of 0 is a point, and then E[x0 | x] is the point."""
    round_ = GaussianMixture(MEANS, [0.1, 0.2, 0.3])
    full = GaussianMixture(MEANS, [(s**2 * np.eye(2)).tolist() for s in (0.1, 0.2, 0.3)])
    # The square of a standard deviation rounds once.
    torch.testing.assert_close(round_.eps(POINTS, 0.8, 0.6), full.eps(POINTS, 0.8, 0.6), rtol=1e-13, atol=1e-13)
    point = GaussianMixture([[0.7, -0.2]], [0.0])
    assert torch.equal(point.x0(POINTS, 0.8, 0.6), point.means.expand(3, 2))
    assert torch.equal(point.sample(3), point.means.expand(3, 2))


def test_samples() -> None:
    """Weights, means and covariances within five standard errors; a sample depends on the seed and its index alone."""
    far = GaussianMixture([[10.0, 0.0], [-10.0, 0.0], [0.0, 10.0]], COVARIANCES, WEIGHTS)
    n = 60_000
    x = far.sample(n, seed=3)
    assert torch.equal(far.sample(10, seed=3), x[:10]) and not torch.equal(far.sample(10, seed=4), x[:10])
    k = (x[:, None] - far.means).norm(dim=2).argmin(dim=1)
    for i, weight in enumerate(far.weights.tolist()):
        part, count = x[k == i] - far.means[i], weight * n
        assert abs(len(part) - count) <= 5 * math.sqrt(n * weight * (1 - weight))
        C = torch.tensor(COVARIANCES[i], dtype=torch.float64)
        assert (part.mean(dim=0).abs() <= 5 * (C.diagonal() / count).sqrt()).all()
        spread = (torch.outer(C.diagonal(), C.diagonal()) + C.square()) / count  # variance of a sample covariance
        assert ((part.T.cov() - C).abs() <= 5 * spread.sqrt()).all()


# --- the network


SCHEDULES = {
    "vp": fd.schedules.linear(100),
    "vp, unit input": fd.schedules.linear(100).with_unit_input(),
    "zero snr": fd.schedules.linear(100).zero_terminal_snr(),
    "ve": fd.schedules.karras(100, 0.003).with_unit_input(),
    "ve, time is sigma": fd.schedules.karras(100, 0.003).with_time(fd.schedules.karras(100, 0.003).sigma),
    "flow": fd.schedules.flow(100),
}


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("name", prediction.names())
def test_network_predicts_at_every_level(schedule: Schedule, name: str) -> None:
    """From what the network says, x0 and eps follow as `prediction.coefficients` has it, at the level of each time."""
    levels = np.array([0, 1, 50, 98, 99])
    alpha, sigma, step_sigma = schedule.alpha[levels], schedule.sigma[levels], schedule.step_sigma[levels]
    if alpha[-1] == 0 and name in ("eps", "score", "eps_step"):
        model = MIXTURE.network(schedule, name)
        with pytest.raises(InputError, match="alpha is 0"):
            model(POINTS[:1], torch.tensor(schedule.time[-1:]))
        return
    x = torch.from_numpy(np.outer(np.hypot(alpha, sigma), [0.5, -1.0]))
    scale_in = torch.tensor(schedule.scale_in[levels])[:, None]
    out = MIXTURE.network(schedule, name)(scale_in * x, torch.tensor(schedule.time[levels])).numpy()
    c = prediction.coefficients(name, alpha, sigma, step_sigma)
    at = torch.from_numpy(alpha), torch.from_numpy(sigma)
    px, po, ex, eo = (part[:, None] for part in (c.px, c.po, c.ex, c.eo))
    # x0 and eps are differences: up to 1 / alpha = 150, and 1 / sigma = 500, times as large as what is left.
    np.testing.assert_allclose(px * x.numpy() + po * out, MIXTURE.x0(x, *at), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(ex * x.numpy() + eo * out, MIXTURE.eps(x, *at), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["vp", "vp, unit input", "ve", "ve, time is sigma", "flow"])
def test_network_between_levels(name: str) -> None:
    """A time between two levels is the level that a sampler asks the network about with it; beyond, the last counts."""
    schedule = SCHEDULES[name]
    lambda_ = (schedule.lambda_[30] + 2 * schedule.lambda_[31]) / 3
    time, alpha, sigma, scale_in = (float(value) for value in schedule.at_lambda(lambda_))
    model = MIXTURE.network(schedule)
    got = model(scale_in * POINTS, torch.full((3,), time, dtype=torch.float64))
    torch.testing.assert_close(got, MIXTURE.eps(POINTS, alpha, sigma), rtol=1e-9, atol=1e-9)  # lambda of time of lambda
    beyond, first = (torch.full((3,), schedule.time[0] - gap, dtype=torch.float64) for gap in (0.001, 0.0))
    assert torch.equal(model(POINTS, beyond), model(POINTS, first))


def test_network_computes_in_float64_and_answers_in_the_dtype_of_x() -> None:
    """Half precision costs one rounding."""
    model = MIXTURE.network(SCHEDULES["vp"])
    t = torch.full((3,), 20.0)
    for dtype in (torch.bfloat16, torch.float32):
        x = POINTS.to(dtype)
        assert torch.equal(model(x, t), model(x.double(), t).to(dtype))


def test_guidance_has_a_closed_form() -> None:
    """A class is a component, and the unconditional branch is the whole mixture: u + w (c - u) of the exact two."""
    schedule = SCHEDULES["vp"]
    plan = fd.samplers.ddim(schedule, timesteps=[60], final="sigma_min", clip=None)
    y = torch.tensor([0, 2, 1])
    cond = {"y": y}
    got = fd.sample(
        MIXTURE.network(schedule), plan, (3, 2), x_init=POINTS, dtype=torch.float64, cond=cond, guidance=2.5
    )
    at = schedule.alpha[60], schedule.sigma[60]
    u, c = MIXTURE.eps(POINTS, *at), MIXTURE.eps(POINTS, *at, y=y)
    eps = u + 2.5 * (c - u)
    expected = schedule.alpha[0] * (POINTS - at[1] * eps) / at[0] + schedule.sigma[0] * eps
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [1.0, 1.0]), "means"),
        (([[]], [1.0]), "means"),
        (([[1.0], [1.0, 2.0]], [1.0, 1.0]), "means must be an array of numbers"),
        (([[1.0], [np.nan]], [1.0, 1.0]), "means must be finite"),
        (([[1.0], [2.0]], [1.0]), "spread"),
        (([[1.0], [2.0]], [1.0, np.inf]), "spread must be finite"),
        (([[1.0, 2.0]], [[[1.0, 0.5], [0.4, 1.0]]]), "symmetric"),
        (([[1.0, 2.0]], [[[1.0, 2.0], [2.0, 1.0]]]), "no negative variance"),
        (([[1.0], [2.0]], [1.0, 1.0], [1.0]), "weights"),
        (([[1.0], [2.0]], [1.0, 1.0], [1.0, 0.0]), "weights"),
    ],
)
def test_wrong_mixtures(arguments: tuple[Any, ...], message: str) -> None:
    """What is no mixture is refused in one line."""
    with pytest.raises(InputError, match=message) as error:
        GaussianMixture(*arguments)
    assert "\n" not in str(error.value)


def test_wrong_use() -> None:
    """Points of another dimension, and predictions that do not exist."""
    with pytest.raises(InputError, match=r"x must be \[B, 2\]"):
        MIXTURE.x0(torch.zeros(3, 1), 1.0, 1.0)
    with pytest.raises(InputError, match="unknown prediction"):
        MIXTURE.network(SCHEDULES["vp"], "noise")
