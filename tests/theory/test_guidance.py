"""Section 7 of math.md: three names of one scale, and what a classifier has to do with guidance without one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdiff as fd
from fastdiff.models import GaussianMixture

MIXTURE = GaussianMixture([[1.0, 0.5], [-1.0, 0.0], [0.2, -0.8]], [0.3, 0.4, 0.25], [1.0, 2.0, 3.0])
X = MIXTURE.sample(50)
LABEL = 1
Y = torch.full((len(X),), LABEL)
CLOSE: dict[str, Any] = {
    "rtol": 1e-10,
    "atol": 1e-10,
}  # two ways to round; sigma divides, and scales multiply, by 10 at most
EVERY_LEVEL = pytest.mark.parametrize(("alpha", "sigma"), [(0.99, 0.14), (0.8, 0.6), (1.0, 3.0)])

values = st.floats(-10, 10)


@given(c=values, u=values, omega=values)
def test_three_names_of_the_scale(c: float, u: float, omega: float) -> None:
    """u + w (c - u) = (1 + omega) c - omega u = lambda c + (1 - lambda) u, with w = 1 + omega = lambda."""
    w = fd.guidance.scale(omega=omega)
    lambda_ = fd.guidance.scale(lambda_=w)
    combined = pytest.approx(u + w * (c - u), rel=1e-13, abs=1e-12)  # roundings of products of up to 220
    assert (1 + omega) * c - omega * u == combined
    assert lambda_ * c + (1 - lambda_) * u == combined


def classifier_gradient(x: Tensor, alpha: float, sigma: float) -> Tensor:
    """grad log p(c | x_t), with p(c | x_t) = p(c) p(x_t | c) / p(x_t): the best noise-aware classifier."""
    x = x.clone().requires_grad_()
    log_p = (
        MIXTURE.weights[LABEL].log() + MIXTURE.log_density(x, alpha, sigma, Y) - MIXTURE.log_density(x, alpha, sigma)
    )
    assert (log_p <= 0).all()  # a probability
    return torch.autograd.grad(log_p.sum(), x)[0]


@EVERY_LEVEL
@pytest.mark.parametrize("omega", [0.0, 1.0, 4.0])
def test_classifier_guidance_is_classifier_free_guidance(alpha: float, sigma: float, omega: float) -> None:
    """eps - omega sigma grad log p(c | x_t), for the exact classifier, is guidance by the two exact networks.

    By Bayes' rule grad log p(c | x_t) = (u - c) / sigma: from eps = u the scale is w = omega, from eps = c it is
    w = 1 + omega (Ho & Salimans 2022, eq. 6).
    """
    c, u = MIXTURE.eps(X, alpha, sigma, Y), MIXTURE.eps(X, alpha, sigma)
    push = omega * sigma * classifier_gradient(X, alpha, sigma)
    torch.testing.assert_close(u - push, u + omega * (c - u), **CLOSE)
    torch.testing.assert_close(c - push, u + (1 + omega) * (c - u), **CLOSE)


@pytest.mark.parametrize("t", [1, 500, 999])
def test_guided_eps_shifts_the_mean_of_ddpm(t: int) -> None:
    """mu~ of eps_hat = eps - omega sigma g is that of eps plus omega beta / sqrt(1 - beta) g, with g the gradient.

    The other form, a shift of the mean by omega times the variance times g (Dhariwal & Nichol 2021, algorithm 1), has
    beta or beta~ in that place: the same for many small steps.
    """
    schedule, omega = fd.schedules.linear(1000), 3.0
    sigma = schedule.sigma[t]
    beta = 1 - (schedule.alpha[t] / schedule.alpha[t - 1]) ** 2
    eps, g = MIXTURE.eps(X, schedule.alpha[t], sigma), classifier_gradient(X, schedule.alpha[t], sigma)

    def mean(eps: Tensor) -> Tensor:
        return (X - beta / sigma * eps) / (1 - beta) ** 0.5

    shift = mean(eps - omega * sigma * g) - mean(eps)
    torch.testing.assert_close(shift, omega * beta / (1 - beta) ** 0.5 * g, **CLOSE)
    variance = schedule.step_sigma[t] ** 2
    torch.testing.assert_close(shift, omega * variance * g, rtol=beta, atol=1e-10)
