"""Section 3 of math.md: the variational bound, on Gaussian data, where every reverse step is known in closed form.

That the library's own bound is as tight is tests/likelihood/test_terms.py::test_bound_of_the_exact_model_is_tight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from tests.samplers.levels import Levels, levels
from tests.theory.gaussian import kl, log_density, nodes

Array = npt.NDArray[np.float64]

# Levels from the noisiest to clean data.
SYSTEMS = {
    "every level": levels(fd.schedules.linear(1000), None),
    "cosine": levels(fd.schedules.cosine(1000), 20, "trailing"),
    "karras": levels(fd.schedules.karras(1000), 20, "trailing"),
    "flow": levels(fd.schedules.flow(1000), 20, "trailing"),
}
# The data: N(MEAN, VARIANCE).
MEAN, VARIANCE = 0.7, 0.3


@dataclass(frozen=True)
class Model:
    """p(x_T) = N(*start) and p(x_prev | x_t) = N(slope x_t + offset, variance), float64 [rows]."""

    start: tuple[float, float]
    slope: Array
    offset: Array
    variance: Array


def marginal(alpha: Array, sigma: Array) -> tuple[Array, Array]:
    """Mean and variance of q(x_t)."""
    return alpha * MEAN, alpha**2 * VARIANCE + sigma**2


def exact(at: Levels) -> Model:
    """The reverse process itself: q(x_T), and q(x_prev | x_t) by conditioning x_t = r x_prev + N(0, beta)."""
    mean, variance = marginal(at.alpha, at.sigma)
    mean_prev, variance_prev = marginal(at.alpha_prev, at.sigma_prev)
    slope = at.alpha / at.alpha_prev * variance_prev / variance
    reverse = variance_prev * at.step_variance / variance
    return Model((mean[0], variance[0]), slope, mean_prev - slope * mean, reverse)


def wrong(at: Levels, seed: int) -> Model:
    """The reverse process with errors of some ten percent."""
    true, errors = exact(at), np.random.default_rng(seed).normal(0, 0.1, (3, len(at.alpha)))
    return Model(
        (true.start[0] + 0.2, 1.2 * true.start[1]),
        true.slope * (1 + errors[0]),
        true.offset + errors[1] * true.variance**0.5,
        true.variance * np.exp(errors[2]),
    )


def vlb(at: Levels, model: Model, x0: float) -> Array:
    """L_T, L_{T-1}, ..., L_1 and L_0 in nats, float64 [rows + 1].

    L_T = KL(q(x_T | x0) || p(x_T)), L_{t-1} = E KL(q(x_{t-1} | x_t, x0) || p(x_{t-1} | x_t)) and
    L_0 = -E log p(x0 | x_1), over x_t ~ q(x_t | x0).
    """
    first = kl(at.alpha[0] * x0, at.sigma[0] ** 2, *model.start)
    # The gap of the means is a Gaussian: a x_t + b.
    a = at.alpha / at.alpha_prev * (at.sigma_prev / at.sigma) ** 2 - model.slope
    b = at.alpha_prev * at.step_variance / at.sigma**2 * x0 - model.offset
    squared_gap = (a * at.alpha * x0 + b) ** 2 + (a * at.sigma) ** 2
    spread = np.append(
        kl(0.0, at.posterior_variance[:-1], 0.0, model.variance[:-1]), np.log(2 * np.pi * model.variance[-1]) / 2
    )
    return np.append(first, spread + squared_gap / (2 * model.variance))


def over_data(at: Levels, model: Model) -> float:
    """E VLB(x0) over the data: exact with 2 nodes, as VLB is quadratic in x0."""
    eps, chances = nodes(2)
    return float(chances @ [vlb(at, model, MEAN + VARIANCE**0.5 * e).sum() for e in eps])


@settings(deadline=None)
@given(system=st.sampled_from(sorted(SYSTEMS)), x0=st.floats(-4, 4))
def test_bound_is_tight_for_the_exact_model(system: str, x0: float) -> None:
    """L_T + sum L_{t-1} + L_0 = -log p(x0), for each x0, if p(x_{0:T}) = q(x_{0:T}).

    VLB(x0) = E log q(x_{1:T} | x0) / p(x_{0:T}), and p(x_{0:T}) = p(x0) q(x_{1:T} | x0).
    """
    at = SYSTEMS[system]
    terms = vlb(at, exact(at), x0)
    # Measured: 2e-13, from a thousand terms.
    assert terms.sum() == pytest.approx(-float(log_density(x0, MEAN, VARIANCE)), abs=1e-11)


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_excess_over_the_data_is_the_kl_of_every_step(system: str, seed: int) -> None:
    """E VLB - H(data) = KL(q(x_T) || p(x_T)) + sum E KL(q(x_prev | x_t) || p(x_prev | x_t)) > 0 for a wrong model.

    H is the entropy, E -log q(x0). The posterior of the terms has become q(x_prev | x_t), without x0: each wrong step
    costs its own divergence from the reverse process, whatever the others do.
    """
    at = SYSTEMS[system]
    true, model = exact(at), wrong(at, seed)
    mean, variance = marginal(at.alpha, at.sigma)
    a, b = true.slope - model.slope, true.offset - model.offset
    squared_gap = (a * mean + b) ** 2 + a**2 * variance
    steps = kl(0.0, true.variance, 0.0, model.variance) + squared_gap / (2 * model.variance)
    divergence = kl(*true.start, *model.start) + steps.sum()
    entropy = np.log(2 * np.pi * np.e * VARIANCE) / 2
    assert (steps > 0).all()
    assert over_data(at, true) == pytest.approx(entropy, abs=1e-11)  # as above
    assert over_data(at, model) - entropy == pytest.approx(divergence, rel=1e-11)


@settings(deadline=None)
@given(system=st.sampled_from(sorted(SYSTEMS)), x0=st.floats(-4, 4), seed=st.integers(0, 99))
def test_bound_holds_for_a_wrong_model(system: str, x0: float, seed: int) -> None:
    """VLB(x0) > -log p(x0) for the density p(x0) of what the wrong model itself samples."""
    at = SYSTEMS[system]
    model = wrong(at, seed)
    mean, variance = model.start
    for slope, offset, noise in zip(model.slope, model.offset, model.variance, strict=True):
        mean, variance = slope * mean + offset, slope**2 * variance + noise
    assert vlb(at, model, x0).sum() > -log_density(x0, mean, variance)


@given(
    t=st.integers(2, 1000),
    x0=st.floats(-2, 2),
    eps=st.floats(-3, 3),
    eps_hat=st.floats(-3, 3),
    share=st.floats(0, 1),
)
def test_weight_of_eps(t: int, x0: float, eps: float, eps_hat: float, share: float) -> None:
    """L_{t-1} = beta^2 / (2 s^2 (1 - beta) (1 - abar)) (eps - eps_hat)^2 + C_t, for the model of any variance s^2.

    KL(q(x_{t-1} | x_t, x0) || N(mu~(eps_hat), s^2)), with C_t = KL of the variances alone; s^2 from beta~ to beta.
    """
    at = SYSTEMS["every level"]
    row = 1000 - t
    abar, abar_prev = at.alpha[row] ** 2, at.alpha_prev[row] ** 2
    beta = 1 - abar / abar_prev
    small = (1 - abar_prev) / (1 - abar) * beta
    s2 = small ** (1 - share) * beta**share
    x_t = abar**0.5 * x0 + (1 - abar) ** 0.5 * eps
    mu, mu_hat = ((x_t - beta / (1 - abar) ** 0.5 * e) / (1 - beta) ** 0.5 for e in (eps, eps_hat))
    weight = beta**2 / (2 * s2 * (1 - beta) * (1 - abar))
    expected = weight * (eps - eps_hat) ** 2 + kl(0.0, small, 0.0, s2)
    # The means, of up to 6, are rounded; their difference is squared and divided by 2 s^2 >= 1e-4.
    assert kl(mu, small, mu_hat, s2) == pytest.approx(float(expected), rel=1e-10, abs=1e-10)
