"""The estimate of the bound: what it holds, whose noise it draws, and that it is right on average."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import noise, schedules
from fastdiff.errors import InputError
from fastdiff.likelihood import Bound, Terms, bound, estimate, prior
from tests.likelihood.networks import exact_gaussian

SCHEDULE = schedules.linear(10, 1e-2, 0.5)


def network(x: Tensor, t: Tensor, shift: Tensor | None = None) -> Tensor:
    """A fixed function of (x, t, shift)."""
    out = 0.7 * x.sin() + 0.01 * t.reshape(-1, *[1] * (x.ndim - 1))
    return out if shift is None else out + shift.reshape(-1, *[1] * (x.ndim - 1))


def images(count: int, levels: int = 17) -> Tensor:
    """Images of so many levels, both ends among them."""
    value = torch.randint(levels, (count, 1, 3, 5), generator=torch.Generator().manual_seed(0))
    return 2 * value / (levels - 1) - 1


def test_terms_are_in_the_order_of_the_levels() -> None:
    """Column k is L_k with the noise of (seed, index, step k, "q_sample"), and column T is L_T."""
    x0, shift = images(3), torch.tensor([0.1, 0.2, 0.3])
    found = bound(network, x0, SCHEDULE, prediction="v", levels=17, cond={"shift": shift}, seed=5)
    assert found.terms.shape == (3, 11)
    assert found.terms.dtype == torch.float64
    terms = Terms(SCHEDULE, "v", "small", 17)
    for k in range(10):
        eps = noise.normal(x0.shape, 5, step=k, stream="q_sample")
        x_t = float(SCHEDULE.alpha[k]) * x0 + float(SCHEDULE.sigma[k]) * eps
        expected = terms(network, x0, x_t, eps, torch.full((3,), k), {"shift": shift})
        # x_t is rounded in another order than by q_sample: 1e-7, and the square of an error of its size.
        assert found.terms[:, k].numpy() == pytest.approx(expected.double().numpy(), rel=1e-4)
    assert torch.equal(found.terms[:, 10], prior(x0, SCHEDULE))


def test_summary() -> None:
    """Nats are the sum, bits per element that over D ln 2; the error is the deviation over sqrt(B)."""
    found = Bound(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 4.0]], dtype=torch.float64), 4)
    assert found.nats.tolist() == [6, 10]
    assert found.bits_per_dim.tolist() == pytest.approx([6 / (4 * math.log(2)), 10 / (4 * math.log(2))], rel=1e-15)
    assert found.mean == pytest.approx(2 / math.log(2), rel=1e-15)
    # The deviation of 6 and 10 is 2 sqrt(2).
    assert found.standard_error == pytest.approx(2 / (4 * math.log(2)), rel=1e-15)
    assert math.isnan(estimate(torch.tensor([1.0])).standard_error)


def test_estimate_does_not_depend_on_the_batch() -> None:
    """Any batch size gives the same bits; parts of the data do with their own indices."""
    x0 = images(5)
    whole = bound(network, x0, SCHEDULE, prediction="v", levels=17).terms
    for batch in (1, 7, 1000):
        assert torch.equal(bound(network, x0, SCHEDULE, prediction="v", levels=17, batch=batch).terms, whole)
    part = bound(network, x0[[3, 1]], SCHEDULE, prediction="v", levels=17, index=[3, 1]).terms
    assert torch.equal(part, whole[[3, 1]])
    assert not torch.equal(bound(network, x0, SCHEDULE, prediction="v", levels=17, seed=1).terms, whole)


def test_estimate_is_unbiased_and_float64_for_float64() -> None:
    """On the exact model of N(0, 1) the bound is -log p: the mean over 2000 draws is, within 4 standard errors."""
    x0 = torch.full((2000, 1), 1.5, dtype=torch.float64)
    model = exact_gaussian(0.0, 1.0, SCHEDULE, "v")
    found = bound(model, x0, SCHEDULE, prediction="v", variance="learned_range")
    error = estimate(found.nats).standard_error
    expected = -float(torch.distributions.Normal(0.0, 1.0).log_prob(torch.tensor(1.5)))
    # The prior is N(0, 1) exactly: alpha^2 + sigma^2 = 1.
    assert float(found.nats.mean()) == pytest.approx(expected, abs=4 * error)
    assert error < 0.05


def test_discrete_bound_is_above_that_of_a_density_by_the_spacing() -> None:
    """For a spacing far below sigma_0, -log P = -log p - log(spacing): here 1/64 of it, to its square and float32."""
    schedule = schedules.geometric(5, 0.5, 5.0)
    x0 = images(3, levels=257)[:, :, 1:2, 1:4].clamp(-0.9, 0.9)
    x0 = (x0 * 128).round() / 128
    discrete = bound(network, x0, schedule, prediction="x0", levels=257).terms
    density = bound(network, x0, schedule, prediction="x0").terms
    gap = (discrete - density)[:, 0] / 3
    assert gap.numpy() == pytest.approx(math.log(128), abs=1e-3)
    assert torch.equal(discrete[:, 1:], density[:, 1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": torch.zeros(3)}, r"x0 must be floats \[B, ...\]"),
        ({"x0": torch.zeros(3, 2, dtype=torch.uint8)}, "scale images to"),
        ({"x0": torch.full((3, 2), 0.05)}, "x0 must hold 17 values evenly from -1 to 1"),
        ({"x0": 2 * torch.ones(3, 2)}, "x0 must hold 17 values evenly from -1 to 1"),
        ({"variance": "none"}, "unknown variance 'none'"),
        ({"batch": 0}, "batch must be a whole number, at least 1"),
        ({"cond": {"y": torch.zeros(2)}}, "must have the batch of 3 first"),
        ({"index": [1, 2]}, "index"),
    ],
)
def test_wrong_input_is_refused(arguments: dict[str, Any], message: str) -> None:
    """In one line, before the network is evaluated."""
    known = {"x0": torch.ones(3, 2), "schedule": SCHEDULE, "levels": 17}
    with pytest.raises(InputError, match=message) as raised:
        bound(pytest.fail, **(known | arguments))
    assert "\n" not in str(raised.value)
