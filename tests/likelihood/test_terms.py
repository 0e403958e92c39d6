"""Each term of the variational bound against its formula, written out in float64."""

from __future__ import annotations

import math
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff import forward, schedules
from fastdiff.errors import InputError
from fastdiff.likelihood import Terms, prior
from fastdiff.schedules import Schedule
from tests.likelihood.networks import exact_gaussian

Array = npt.NDArray[np.float64]

SCHEDULES = {
    "cosine": schedules.cosine(20),
    "karras": schedules.karras(20, sigma_max=20.0).with_unit_input(),
    "flow": schedules.flow(20),
    "sub_vp": schedules.sub_vp(20).with_time(np.linspace(0.1, 1, 20)),
}
PAIRS = [
    (p, s) for p in ("eps", "x0", "v", "score", "flow") for s in SCHEDULES if p not in ("eps", "score") or s != "flow"
]


def network(x: Tensor, t: Tensor) -> Tensor:
    """A fixed function of (x, t), with a variance."""
    time = t.reshape(-1, *[1] * (x.ndim - 1))
    return torch.cat([0.7 * x.sin() + 0.01 * time, (x + time).cos()], dim=1)


def kl(mean: Tensor, variance: Any, other_mean: Tensor, other_variance: Any) -> Tensor:
    """KL(N(m1, s1^2) || N(m2, s2^2)) = log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2."""
    ratio = torch.log(torch.as_tensor(other_variance / variance)) / 2
    return ratio + (variance + (mean - other_mean) ** 2) / (2 * other_variance) - 0.5


def x0_of(prediction: str, x: Tensor, out: Tensor, alpha: float, sigma: float) -> Tensor:
    """x0 of each prediction, from its definition."""
    norm = alpha**2 + sigma**2
    return {
        "eps": lambda: (x - sigma * out) / alpha,
        "x0": lambda: out,
        "v": lambda: (alpha * x - sigma * out) / norm,
        "score": lambda: (x + sigma**2 * out) / alpha,
        "flow": lambda: (x - sigma * out) / (alpha + sigma),
    }[prediction]()


def by_hand(
    schedule: Schedule, k: int, prediction: str, variance: str, clip: float | None, x0: Tensor, eps: Tensor
) -> Tensor:
    """L_k of each sample for k > 0: KL of the posterior (Ho et al. 2020, eqs. 6-7) and the step of the sampler."""
    (alpha, sigma), (alpha_prev, sigma_prev) = ((schedule.alpha[i], schedule.sigma[i]) for i in (k, k - 1))
    x = alpha * x0 + sigma * eps
    t = torch.full((len(x),), schedule.time[k], dtype=torch.float64)
    out, v = network(schedule.scale_in[k] * x, t).chunk(2, dim=1)
    x0_hat = x0_of(prediction, x, out, alpha, sigma)
    x0_hat = x0_hat if clip is None else x0_hat.clamp(-clip, clip)
    beta = sigma**2 - (alpha / alpha_prev) ** 2 * sigma_prev**2
    small = beta * sigma_prev**2 / sigma**2

    def mean(clean: Tensor) -> Tensor:
        return alpha / alpha_prev * sigma_prev**2 / sigma**2 * x + alpha_prev * beta / sigma**2 * clean

    share = {"small": 0.0, "large": 1.0}.get(variance, (v + 1) / 2)
    taken = torch.exp(share * torch.tensor(beta).log() + (1 - share) * torch.tensor(small).log())
    return kl(mean(x0), small, mean(x0_hat), taken).flatten(1).sum(dim=1)


def asked(
    terms: Terms, schedule: Schedule, k: int, x0: Tensor, eps: Tensor, model: Any = network, **cond: Any
) -> Tensor:
    """L_k of each sample for noise eps."""
    t = torch.full((len(x0),), k)
    return terms(model, x0, forward.q_sample(x0, t, schedule, noise=eps, scaled=True), eps, t, cond)


def normal(mean: float, deviation: float) -> torch.distributions.Normal:
    return torch.distributions.Normal(*torch.tensor([mean, deviation], dtype=torch.float64))


def data(*shape: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return x0, eps


@pytest.mark.parametrize("clip", [None, 0.8])
@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
@pytest.mark.parametrize(("prediction", "name"), PAIRS)
def test_steps_are_kl_divergences(prediction: str, name: str, variance: str, clip: float | None) -> None:
    """L_1..L_{T-1} of every schedule, prediction and variance, also where alpha is 0.

    The formula by hand divides differences of numbers near 1 by small ones: its own rounding is 1e-16 over variances
    of 1e-5 and more, and so is a difference of large terms. Measured: 2e-10.
    """
    schedule, (x0, eps) = SCHEDULES[name], data(3, 2, 5)
    terms = Terms(schedule, prediction, variance, None, clip)
    for k in (1, 2, 10, 19):
        expected = by_hand(schedule, k, prediction, variance, clip, x0, eps)
        assert asked(terms, schedule, k, x0, eps).numpy() == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("variance", ["small", "large"])
def test_float32_has_its_own_rounding(name: str, variance: str) -> None:
    """In float32 each term is that of float64 but for a few roundings of 6e-8, doubled by the square of the error.

    The error itself is a difference, of numbers some ten times its size.
    """
    schedule, (x0, eps) = SCHEDULES[name], data(3, 2, 5)
    terms = Terms(schedule, "v", variance, None)
    for k in range(20):
        exact = asked(terms, schedule, k, x0, eps)
        low = asked(terms, schedule, k, x0.float(), eps.float())
        assert low.dtype == torch.float32
        assert low.double().numpy() == pytest.approx(exact.numpy(), rel=1e-4)


# --- L_0


def constant(value: float) -> Any:
    """A network of x0 that always says the same."""
    return lambda x, t: torch.full_like(x, value)


@settings(deadline=None, max_examples=50)
@given(mean=st.floats(-3, 3), levels=st.integers(2, 300), sigma=st.floats(0.01, 1))
def test_probabilities_of_all_values_sum_to_one(mean: float, levels: int, sigma: float) -> None:
    """L_0 is -log of a distribution over the levels, wherever its mean is; to rounding of a sum."""
    schedule = schedules.geometric(2, sigma, 2 * sigma)
    x0 = torch.linspace(-1, 1, levels, dtype=torch.float64)[:, None]
    nats = asked(Terms(schedule, "x0", "large", levels), schedule, 0, x0, torch.zeros_like(x0), constant(mean))
    assert float(torch.exp(-nats).sum()) == pytest.approx(1, rel=1e-9)


@settings(deadline=None, max_examples=100)
@given(place=st.integers(0, 16), mean=st.floats(-30, 30), sigma=st.floats(2e-3, 3), dtype=st.sampled_from(["32", "64"]))
def test_probability_of_a_value_also_far_out(place: int, mean: float, sigma: float, dtype: str) -> None:
    """-log(Phi(high) - Phi(low)) in 60 digits, thousands of deviations out, and its gradient.

    The float32 input has rounding of its own, 6e-8 of a z whose square counts: 1e-6 and a margin.
    """
    x0 = torch.tensor([[2 * place / 16 - 1]], dtype=torch.float32 if dtype == "32" else torch.float64)
    schedule = schedules.geometric(2, sigma, 2 * sigma)
    out = torch.full_like(x0, mean).requires_grad_()
    terms = Terms(schedule, "x0", "large", 17)
    nats = asked(terms, schedule, 0, x0, torch.zeros_like(x0), lambda x, t: out)
    (slope,) = torch.autograd.grad(nats.sum(), out)
    told = float(out.detach())  # the mean in the network's dtype
    with mpmath.workdps(60):
        low = -mpmath.inf if place == 0 else (float(x0) - 1 / mpmath.mpf(16) - told) / mpmath.mpf(sigma)
        high = mpmath.inf if place == 16 else (float(x0) + 1 / mpmath.mpf(16) - told) / mpmath.mpf(sigma)
        near, far = (high, low) if low + high < 0 else (-low, -high)  # the lower tail keeps its digits
        probability = mpmath.ncdf(near) - mpmath.ncdf(far)
        expected = float(-mpmath.log(probability))
        expected_slope = float((mpmath.npdf(high) - mpmath.npdf(low)) / probability / sigma)
    tolerance = 1e-5 if dtype == "32" else 1e-9
    assert float(nats.detach()) == pytest.approx(expected, rel=tolerance, abs=1e-12)
    # The slope of log Phi is exp(-z^2 / 2 - log Phi): rounding of z^2, up to 16,000^2, times 1e-16.
    assert float(slope) == pytest.approx(expected_slope, rel=max(tolerance, 1e-6), abs=1e-9 / sigma)


@pytest.mark.parametrize(("variance", "deviation"), [("large", 0.2), ("small", 0.2 * math.sqrt(0.75))])
def test_continuous_data_have_a_density(variance: str, deviation: float) -> None:
    """-log N(x0; x0_hat, s^2): s is sigma_0, or the next beta~, 0.2^2 (0.4^2 - 0.2^2) / 0.4^2, which is not 0."""
    schedule, (x0, eps) = schedules.geometric(3, 0.2, 0.8), data(4, 3)
    nats = asked(Terms(schedule, "x0", variance, None), schedule, 0, x0, eps, constant(0.3))
    assert nats.numpy() == pytest.approx(-normal(0.3, deviation).log_prob(x0).sum(dim=1).numpy(), rel=1e-12)


# --- L_T, and the whole


@pytest.mark.parametrize(("name", "start"), [("cosine", 1.0), ("karras", 20.0), ("flow", 1.0)])
def test_prior_is_the_divergence_from_the_start(name: str, start: float) -> None:
    """KL(N(alpha_T x0, sigma_T^2) || N(0, s_T^2)), s_T what plans start with; to rounding of numbers near 1."""
    schedule, (x0, _) = SCHEDULES[name], data(4, 3)
    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    expected = kl(alpha * x0, sigma**2, torch.zeros_like(x0), start**2).sum(dim=1)
    assert prior(x0, schedule).numpy() == pytest.approx(expected.numpy(), abs=1e-14)


@pytest.mark.parametrize(
    ("schedule", "prediction"),
    [(schedules.linear(30, 1e-3, 0.3), "eps"), (schedules.karras(20), "x0"), (schedules.flow(25), "v")],
    ids=["vp", "ve", "flow"],
)
@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.7, 0.4)])
def test_bound_of_the_exact_model_is_tight(schedule: Schedule, prediction: str, mean: float, deviation: float) -> None:
    """For the reverse process itself the bound is -log q(x0), but for what its start costs.

    `E q(x_1..x_T | x0) log(q(x_1..x_T | x0) / p(x_0..x_T)) = -log q(x0) + E log(q(x_T) / p(x_T))`, expected values
    given x0. Each term is quadratic in the noise, whose expected value two nodes, +-1, give exactly. Rounding: sums of
    some ten numbers of size 10^2 at most.
    """
    x0 = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    terms, model = (
        Terms(schedule, prediction, "learned_range", None),
        exact_gaussian(mean, deviation, schedule, prediction),
    )
    nodes = (torch.ones_like(x0), -torch.ones_like(x0))
    total = prior(x0, schedule)
    for k in range(len(schedule)):
        total = total + sum(asked(terms, schedule, k, x0, eps, model) for eps in nodes) / 2

    alpha, sigma = schedule.alpha[-1], schedule.sigma[-1]
    start = 1.0 if schedule.variance_preserving else sigma
    noised = normal(alpha * mean, math.hypot(alpha * deviation, sigma))
    begun = normal(0.0, start)
    x = [alpha * x0 + sigma * eps for eps in nodes]
    cost = sum(noised.log_prob(value) - begun.log_prob(value) for value in x) / 2
    expected = -normal(mean, deviation).log_prob(x0) + cost
    assert total.numpy() == pytest.approx(expected[:, 0].numpy(), abs=1e-10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variance": "learned"}, "unknown variance 'learned': did you mean 'learned_range'"),
        ({"levels": 1}, "levels must be a whole number, at least 2"),
        ({"clip": 0.0}, "clip must be > 0"),
        ({"prediction": "eps", "schedule": schedules.flow(10)}, "where alpha is 0"),
        ({"schedule": schedules.flow(1)}, "two levels or more"),
    ],
)
def test_what_has_no_bound_is_refused(arguments: dict[str, Any], message: str) -> None:
    """In one line, when the terms are made."""
    known = {"schedule": schedules.cosine(10), "prediction": "v", "variance": "small", "levels": None}
    with pytest.raises(InputError, match=message) as raised:
        Terms(**(known | arguments))
    assert "\n" not in str(raised.value)


def test_output_of_another_shape_is_refused() -> None:
    """Also one that would broadcast, and one without the variance that is asked for."""
    schedule, (x0, eps) = schedules.cosine(10), data(4, 3)
    with pytest.raises(InputError, match=r"returned shape \(4, 1\), and samples have \(4, 3\)"):
        asked(Terms(schedule, "v", "small", None), schedule, 3, x0, eps, lambda x, t: x[:, :1])
    with pytest.raises(InputError, match="needs a network that learns its variance"):
        asked(Terms(schedule, "v", "learned_range", None), schedule, 3, x0, eps, lambda x, t: x)
