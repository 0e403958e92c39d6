"""Predictions: what a network may say, and how x0 and eps follow from it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import prediction, schedules
from fastdiff.errors import InputError

EPS = np.finfo(np.float64).eps

values = st.floats(-10, 10)


@settings(deadline=None)
@given(
    name=st.sampled_from(prediction.names()),
    system=st.sampled_from(["vp", "ve", "flow"]),
    lambda_=st.floats(-12, 12),
    x0=values,
    eps=values,
)
def test_x0_and_eps_are_found_again(name: str, system: str, lambda_: float, x0: float, eps: float) -> None:
    """With x = alpha x0 + sigma eps and out = t0 x0 + te eps: px x + po out = x0 and ex x + eo out = eps."""
    alpha, sigma = (np.atleast_1d(scale) for scale in schedules.from_lambda(lambda_, system))
    c = prediction.coefficients(name, alpha, sigma, 0.3 * sigma)
    x, out = alpha * x0 + sigma * eps, c.t0 * x0 + c.te * eps
    # Each of the products below is rounded at most 8 times; nothing else is lost.
    size_x, size_out = alpha * abs(x0) + sigma * abs(eps), abs(c.t0 * x0) + abs(c.te * eps)
    for by_x, by_out, truth in ((c.px, c.po, x0), (c.ex, c.eo, eps)):
        bound = 8 * EPS * (abs(by_x) * size_x + abs(by_out) * size_out) + np.finfo(np.float64).tiny
        assert abs(by_x * x + by_out * out - truth) <= bound


def edm_target(sigma, x0, x, sigma_data=0.5):
    """(x0 - c_skip x) / c_out of Karras et al. 2022, Table 1 and eq. 8."""
    c_skip = sigma_data**2 / (sigma**2 + sigma_data**2)
    c_out = sigma * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    return (x0 - c_skip * x) / c_out


def consistency_target(sigma, x0, x, sigma_data=0.5, sigma_min=0.002):
    """(x0 - c_skip x) / c_out of Song et al. 2023, appendix C."""
    c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
    c_out = (sigma - sigma_min) * sigma_data / np.sqrt(sigma**2 + sigma_data**2)
    return (x0 - c_skip * x) / c_out


def test_consistency_at_its_boundary() -> None:
    """At sigma = 0.002 alpha, x0 is x / alpha whatever the network says, and there is no target for it."""
    c = prediction.coefficients("consistency", np.array([0.5]), np.array([0.001]))
    assert (c.px, c.po, c.eo, c.t0, c.te) == (2.0, 0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("eps", lambda alpha, sigma, x0, eps: eps),
        ("x0", lambda alpha, sigma, x0, eps: x0),
        ("v", lambda alpha, sigma, x0, eps: alpha * eps - sigma * x0),
        ("score", lambda alpha, sigma, x0, eps: -eps / sigma),
        ("flow", lambda alpha, sigma, x0, eps: eps - x0),
        ("edm", lambda alpha, sigma, x0, eps: edm_target(sigma / alpha, x0, x0 + sigma / alpha * eps)),
        ("consistency", lambda alpha, sigma, x0, eps: consistency_target(sigma / alpha, x0, x0 + sigma / alpha * eps)),
        ("eps_step", lambda alpha, sigma, x0, eps: np.sqrt(1 - (alpha / np.append(1, alpha[:-1])) ** 2) / sigma * eps),
    ],
)
def test_targets(name: str, target: object) -> None:
    """The training targets are those of the papers, at every level."""
    assert callable(target)
    schedule = schedules.linear(10)
    x0, eps = 0.7, -1.3
    c = prediction.coefficients(name, schedule.alpha, schedule.sigma, schedule.step_sigma)
    # Two products and a sum; beta_1 = 1e-4 as a difference loses 4 digits, half of them in its root.
    expected = target(schedule.alpha, schedule.sigma, x0, eps)
    np.testing.assert_allclose(c.t0 * x0 + c.te * eps, expected, rtol=1e-12, atol=4 * EPS)
    assert {coefficient.shape for coefficient in c} == {(10,)}


def test_targets_cover_every_name() -> None:
    """The list above is the library's."""
    assert prediction.names() == ("eps", "x0", "v", "score", "flow", "edm", "consistency", "eps_step")


@pytest.mark.parametrize("name", ["eps", "score"])
def test_pure_noise_tells_nothing_of_x0(name: str) -> None:
    """Where alpha is 0, an eps or score prediction is refused and the message says what to use."""
    with pytest.raises(InputError, match=f"a {name} prediction says nothing of x0 where alpha is 0: use v, x0 or flow"):
        prediction.coefficients(name, np.array([0.5, 0.0]), np.array([0.5, 1.0]))


@pytest.mark.parametrize("name", ["x0", "v", "flow"])
def test_pure_noise_with_the_other_predictions(name: str) -> None:
    """Where alpha is 0 and sigma 1, x0, v and flow still give x0 and eps, exactly."""
    c = prediction.coefficients(name, np.zeros(1), np.ones(1))
    x0, eps = 0.75, -1.5
    out = c.t0 * x0 + c.te * eps
    assert c.px * eps + c.po * out == x0
    assert c.ex * eps + c.eo * out == eps


def test_unknown_name() -> None:
    """A wrong name gets the nearest one."""
    with pytest.raises(InputError, match="unknown prediction 'epsilon': did you mean 'eps'"):
        prediction.coefficients("epsilon", np.ones(1), np.ones(1))


def test_consistency_network_is_not_heard_at_sigma_min() -> None:
    """There x0 is x / alpha whatever it says, and it has nothing to learn; a schedule gets there but for rounding."""
    schedule = schedules.karras(10)
    c = prediction.coefficients("consistency", schedule.alpha, schedule.sigma)
    assert (c.px[0], c.po[0], c.t0[0], c.te[0]) == (pytest.approx(1), 0, 0, 0)
    assert (c.po[1:] > 0).all()
