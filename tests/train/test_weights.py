"""The weights of L_gamma against their papers' formulas, in every prediction, and the objective that they make."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff import noise, prediction, schedules
from fastdiff.errors import InputError
from fastdiff.schedules import Array, Schedule
from fastdiff.train.batch import STREAM, Batch
from fastdiff.train.objectives import l_gamma, l_simple
from fastdiff.train.objectives.weights import WEIGHTS, of_output

COSINE = schedules.cosine(200)
# Weights of the squared error of a network's output on a variance-preserving schedule, as the papers print them.
PRINTED: dict[tuple[str, str], Callable[[Array], Array]] = {
    ("uniform", "x0"): np.ones_like,
    ("uniform", "eps"): lambda snr: 1 / snr,
    ("uniform", "v"): lambda snr: 1 / (snr + 1),
    ("snr", "x0"): lambda snr: snr,  # Salimans & Ho 2022, section 4: the error of eps
    ("snr", "eps"): np.ones_like,  # Ho et al. 2020, eq. 14
    ("truncated_snr", "x0"): lambda snr: np.maximum(snr, 1),  # Salimans & Ho 2022: the larger error of x0 and eps
    ("truncated_snr", "eps"): lambda snr: np.maximum(1, 1 / snr),
    ("snr+1", "x0"): lambda snr: snr + 1,
    ("snr+1", "v"): np.ones_like,  # the same: |x0 - x0_hat|^2 + |eps - eps_hat|^2
    ("min_snr", "x0"): lambda snr: np.minimum(snr, 5),  # Hang et al. 2023, section 3.4, all three
    ("min_snr", "eps"): lambda snr: np.minimum(snr, 5) / snr,
    ("min_snr", "v"): lambda snr: np.minimum(snr, 5) / (snr + 1),
    ("p2", "eps"): lambda snr: 1 / (1 + snr),  # Choi et al. 2022, eq. 8: 1 / (k + SNR)^gamma times L_simple's
    ("p2", "v"): lambda snr: snr / (1 + snr) ** 2,
}


@pytest.mark.parametrize(("gamma", "predicted"), PRINTED)
def test_weights_are_the_printed_ones(gamma: str, predicted: str) -> None:
    """In x0, eps and v form; a few roundings of float64, times 1 / (1 - abar), which is 7e3 at the cleanest level."""
    expected = PRINTED[gamma, predicted](COSINE.snr)
    np.testing.assert_allclose(of_output(gamma, COSINE, predicted), expected, rtol=1e-11)


def test_every_weight_is_tried_here() -> None:
    """A new weight must be added above, or have a test of its own."""
    assert {name for name, _ in PRINTED} | {"edm"} == set(WEIGHTS)


def test_edm_weights() -> None:
    """(sigma^2 + 0.5^2) / (0.5 sigma)^2 of the denoiser's error, so 1 of F's: Karras et al. 2022, section 5, eq. 8."""
    karras = schedules.karras(50)
    expected = (karras.sigma**2 + 0.25) / (0.5 * karras.sigma) ** 2
    np.testing.assert_allclose(of_output("edm", karras, "x0"), expected, rtol=1e-13)
    np.testing.assert_allclose(of_output("edm", karras, "edm"), 1, rtol=1e-13)


@pytest.mark.parametrize("gamma", WEIGHTS)
def test_weights_are_those_of_the_process_in_any_coordinates(gamma: str) -> None:
    """The same network of eps, read in variance-exploding coordinates, is weighed alike: gamma knows the SNR alone."""
    exploding = COSINE.to_variance_exploding()
    expected = of_output(gamma, COSINE, "eps")
    np.testing.assert_allclose(of_output(gamma, exploding, "eps"), expected, rtol=1e-12)


@st.composite
def levels(draw: st.DrawFn) -> Schedule:
    """Any process: log(alpha / sigma) falls from at most 4 to at least -4, sqrt(alpha^2 + sigma^2) is anything."""
    lambdas = sorted(draw(st.lists(st.integers(-400, 400), min_size=4, max_size=4, unique=True)))
    norm = np.array(draw(st.lists(st.floats(0.3, 3), min_size=4, max_size=4)))
    alpha, sigma = schedules.from_lambda(np.array(lambdas[::-1]) / 100)
    return Schedule(norm * alpha, norm * sigma, config={"name": "any"})


def network(x: Tensor, t: Tensor) -> Tensor:
    """A function that has learnt nothing."""
    return 0.7 * x.sin() + 0.25 + 0.01 * t.reshape(-1, 1)


def batch(x0: Tensor, t: Tensor) -> Batch:
    index, one = torch.arange(len(t)), torch.ones(len(t))
    return Batch(x0=x0, t=t, weight=one, label=torch.zeros_like(t), cond={}, index=index, seed=3, step=8)


@settings(deadline=None, max_examples=60)
@given(
    schedule=levels(),
    predicted=st.sampled_from([name for name in prediction.names() if name not in ("eps_step", "consistency")]),
    gamma=st.one_of(
        st.sampled_from(list(WEIGHTS)), st.lists(st.just(0.0) | st.floats(1e-3, 1e3), min_size=4, max_size=4)
    ),
)
def test_l_gamma_is_the_weighted_error_of_x0(schedule: Schedule, predicted: str, gamma: str | list[float]) -> None:
    """`gamma_t mean (x0_hat - x0)^2`, x0_hat from the same network's output, in float64.

    float32 rounds x_t, output and target by 6e-8 each, in a difference that is not small beside them: 1e-5 with room.
    """
    x0 = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    t = torch.arange(4)
    loss = l_gamma(schedule, predicted, gamma)(network, batch(x0, t))
    eps = noise.normal((4, 7), seed=3, index=t, step=8, stream=STREAM).double().numpy()
    x = schedule.alpha[:, None] * x0.numpy() + schedule.sigma[:, None] * eps
    out = network(torch.from_numpy(x), t).numpy()
    found = prediction.coefficients(predicted, schedule.alpha, schedule.sigma)
    x0_hat = found.px[:, None] * x + found.po[:, None] * out
    weight = WEIGHTS[gamma](schedule.snr) if isinstance(gamma, str) else np.array(gamma)
    expected = weight * ((x0_hat - x0.numpy()) ** 2).mean(axis=1)
    assert loss.shape == (4,)
    np.testing.assert_allclose(loss.numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "predicted", "gamma"),
    [
        (COSINE, "eps", "snr"),
        (COSINE, "x0", "uniform"),
        (COSINE, "v", "snr+1"),
        (schedules.karras(200).with_unit_input(), "score", "snr"),
        (schedules.karras(200).with_unit_input(0.5), "edm", "edm"),
        (schedules.flow(200), "flow", (1 + np.sqrt(schedules.flow(200).snr)) ** 2),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_l_simple_is_l_gamma_with_its_own_weights(schedule: Schedule, predicted: str, gamma: str | Array) -> None:
    """Each prediction's plain error is one of x0 with some weight: 1 / po^2 in `x0 = px x + po out`.

    The weights of both, float32 in the end, differ by one rounding.
    """
    x0 = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    given = batch(x0, torch.linspace(0, 199, 20).long())
    simple, weighted = (
        loss(network, given) for loss in (l_simple(schedule, predicted), l_gamma(schedule, predicted, gamma))
    )
    torch.testing.assert_close(weighted, simple, rtol=3e-7, atol=0)


def test_weights_are_finite_where_there_is_no_signal() -> None:
    """The last level of a flow has alpha = 0; min-SNR and P2 leave it out, the others count it."""
    for gamma in WEIGHTS:
        weights = of_output(gamma, schedules.flow(10), "flow")
        assert np.isfinite(weights).all()
        assert (weights[-1] == 0) == (gamma in ("snr", "min_snr", "p2"))


@pytest.mark.parametrize(
    ("gamma", "message"),
    [
        ("min_snrr", "weighting 'min_snrr': did you mean 'min_snr'"),
        (np.ones(199), "one finite weight >= 0 for each of 200 levels"),
        (np.ones((200, 1)), "one finite weight >= 0 for each of 200 levels"),
        (-np.ones(200), "one finite weight >= 0"),
        (np.full(200, np.nan), "one finite weight >= 0"),
        (1.0, "one finite weight >= 0 for each of 200 levels"),
    ],
)
def test_wrong_weights_are_refused(gamma: str | Array, message: str) -> None:
    """Before anything is trained, in one line."""
    with pytest.raises(InputError, match=message):
        l_gamma(COSINE, "v", gamma)
