"""The density of the probability-flow ODE against densities that are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import noise, samplers, schedules
from fastdiff.errors import InputError, NonFiniteError
from fastdiff.likelihood import log_likelihood
from fastdiff.likelihood.data import dequantised
from fastdiff.models import GaussianMixture
from fastdiff.schedules import Schedule

# Of mean 0, so that what the noisy end leaves of the data is a small variance.
MIXTURE = GaussianMixture([[-1.0, 0.3], [1.0, -0.3]], [[[0.3, 0.1], [0.1, 0.2]], [[0.1, 0.0], [0.0, 0.4]]])
# The largest sigma / alpha at which the ODE can begin.
SCHEDULES = {
    "vp": schedules.linear(100, 1e-3, 0.3),
    "ve": schedules.geometric(100, 0.01, 1000.0).with_unit_input(),
    "flow": schedules.flow(1000),
}
TIGHT: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-8}


def density(x0: Tensor, schedule: Schedule, y: Tensor | None = None) -> Tensor:
    """log p of data with the noise of the cleanest level, in the coordinates of the data."""
    return MIXTURE.log_density(x0, 1.0, float(schedule.sigma[0] / schedule.alpha[0]), y)


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_exact_trace_gives_the_density_of_a_mixture(name: str, prediction: str) -> None:
    """VP, VE and flow, to 1e-5 nats.

    Left are the tolerance, whose part is below 1e-6, and the data's own variance at the noisy end, where sigma / alpha
    is 10^3 or more: 1e-6 of the variance, times the square of a normal.
    """
    schedule, x0 = SCHEDULES[name], MIXTURE.sample(6)
    schedule = (
        schedule
        if prediction == "v" or schedule.alpha[-1]
        else Schedule(schedule.alpha[:-1], schedule.sigma[:-1], schedule.time[:-1])
    )
    found = log_likelihood(MIXTURE.network(schedule, prediction), x0, schedule, prediction=prediction, **TIGHT)
    assert found.dtype == torch.float64
    assert found.numpy() == pytest.approx(density(x0, schedule).numpy(), abs=1e-5)


def test_condition_reaches_the_network() -> None:
    """Each sample has the density of its own class, and they differ by whole nats.

    A class is 1 from 0, so that at the noisy end its mean is off by 1/1000 of a deviation, times a normal of up to 4.
    """
    schedule, x0, y = SCHEDULES["vp"], MIXTURE.sample(4), torch.tensor([0, 1, 2, 0])
    found = log_likelihood(
        MIXTURE.network(schedule, "v"), x0, schedule, prediction="v", cond={"y": y}, batch=3, **TIGHT
    )
    assert found.numpy() == pytest.approx(density(x0, schedule, y).numpy(), abs=4e-3)


def test_default_tolerance_is_good_for_every_sample_of_a_batch() -> None:
    """The error of a sample is at most 50 rtol, alone or one of 40: measured at most 47 and 13 over four schedules."""
    schedule, x0 = SCHEDULES["ve"], MIXTURE.sample(40)
    network = MIXTURE.network(schedule, "v")
    exact = density(x0, schedule)
    whole = log_likelihood(network, x0, schedule, prediction="v")
    alone = log_likelihood(network, x0[:2], schedule, prediction="v", batch=1)
    assert float((whole - exact).abs().max()) < 50e-5
    assert float((alone - exact[:2]).abs().max()) < 50e-5


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_hutchinson_is_unbiased(probe: str) -> None:
    """The mean over 400 probes of one point is the exact trace's, within 4 standard errors."""
    schedule, x0 = SCHEDULES["vp"], MIXTURE.sample(1)
    network = MIXTURE.network(schedule, "v")
    exact = log_likelihood(network, x0, schedule, prediction="v")
    drawn = log_likelihood(
        *(network, x0.expand(400, 2), schedule), prediction="v", trace="hutchinson", probe=probe, batch=400, seed=3
    )
    error = float(drawn.std()) / 20
    assert error > 0.002  # they differ
    assert float(drawn.mean()) == pytest.approx(float(exact), abs=4 * error)
    more = log_likelihood(
        *(network, x0.expand(400, 2), schedule), prediction="v", trace="hutchinson", probe=probe, probes=4, batch=400
    )
    # Four probes halve the deviation. One of 400 draws is known to 1 / sqrt(800) = 4 %, or twice that with heavy tails.
    assert float(more.std() / drawn.std()) == pytest.approx(0.5, abs=0.15)


def test_probes_do_not_depend_on_the_batch() -> None:
    """A sample keeps its probes and its uniform noise wherever it stands; the ODE's tolerance is left."""
    schedule, index = SCHEDULES["vp"], torch.tensor([7, 3, 5])
    x0 = torch.tensor([[-1.0, 1.0], [0.0, -1.0], [1.0, 0.0]])
    options: dict[str, Any] = {"prediction": "v", "trace": "hutchinson", "levels": 3, **TIGHT}
    network = MIXTURE.network(schedule, "v")
    whole = log_likelihood(network, x0, schedule, index=index, **options)
    one = log_likelihood(network, x0[1:2], schedule, index=index[1:2], **options)
    assert one.numpy() == pytest.approx(whole[1:2].numpy(), abs=1e-6)
    other = log_likelihood(network, x0[1:2], schedule, index=[4], **options)
    assert abs(float(other - one)) > 1e-3


# --- discrete data


def test_uniform_noise_fills_the_spacing() -> None:
    """Five levels are 1/2 apart: noise within 1/4 of each, as uniform as 4000 draws are (4 standard errors)."""
    x0 = torch.linspace(-1, 1, 5).repeat(800)[:, None]
    u = (dequantised(x0, 5, 0, torch.arange(4000)) - x0) * 2 + 0.5
    assert 0 <= float(u.min()) < 0.01
    assert 0.99 < float(u.max()) <= 1
    assert float(u.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / 4000) ** 0.5)
    assert float(u.var()) == pytest.approx(1 / 12, abs=4 * (1 / 180 / 4000) ** 0.5)


def test_dequantisation_bounds_the_probability_of_a_value() -> None:
    """`E log p(x + u) + log(spacing) <= log of the integral of p over the spacing`, and is near it for a flat p.

    The bound's gap, for N(0, 0.5^2) and a spacing of 1/2, by the trapezoidal rule; within 4 standard errors.
    """
    schedule = schedules.linear(50, 1e-3, 0.5)
    data = GaussianMixture([[0.0]], [0.5])
    x0 = torch.full((300, 1), 0.5)
    found = log_likelihood(data.network(schedule, "v"), x0, schedule, prediction="v", levels=5, batch=300)
    points = torch.linspace(0.25, 0.75, 1001, dtype=torch.float64)[:, None]
    log_p = data.log_density(points, 1.0, float(schedule.sigma[0] / schedule.alpha[0]))
    expected = float(torch.trapezoid(log_p, points[:, 0])) / 0.5 + math.log(0.5)
    probability = float(torch.trapezoid(log_p.exp(), points[:, 0]))
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 300**0.5)
    assert expected < math.log(probability)


# --- where it begins


def test_plan_says_where_to_begin() -> None:
    """A plan over every level changes nothing, one with fewer begins at its first level with its own start."""
    schedule, x0 = SCHEDULES["ve"], MIXTURE.sample(3)
    options: dict[str, Any] = {"prediction": "v", **TIGHT}
    network = MIXTURE.network(schedule, "v")
    whole = log_likelihood(network, x0, schedule, **options)
    same = log_likelihood(network, x0, schedule, plan=samplers.ddim(schedule, steps=10, spacing="trailing"), **options)
    assert torch.equal(same, whole)
    later = samplers.ddim(schedule, timesteps=[49, 20])
    cut = Schedule(schedule.alpha[:50], schedule.sigma[:50], schedule.time[:50], schedule.scale_in[:50])
    found = log_likelihood(network, x0, schedule, plan=later, **options)
    assert found.numpy() == pytest.approx(log_likelihood(network, x0, cut, **options).numpy(), abs=1e-6)
    assert float((found - whole).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["ddpm", "euler_ancestral", "dpmpp_3m_sde"])
def test_stochastic_sampler_has_no_likelihood(name: str) -> None:
    """The error names the bound as what to ask for instead, and the network is not evaluated."""
    schedule = SCHEDULES["vp"]
    plan = samplers.make(name, schedule, steps=5)
    with pytest.raises(InputError, match=f"{name}.* draws noise.*likelihood.bound") as raised:
        log_likelihood(pytest.fail, MIXTURE.sample(2), schedule, plan=plan)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trace": "hutchison"}, "unknown trace 'hutchison': did you mean 'hutchinson'"),
        ({"probe": "gauss"}, "unknown probe 'gauss': did you mean 'gaussian'"),
        ({"probes": 0}, "probes must be a whole number, at least 1"),
        ({"rtol": 0.0}, "rtol must be > 0"),
        ({"atol": -1.0}, "atol must be > 0"),
        ({"batch": 0}, "batch must be a whole number, at least 1"),
        ({"levels": 5}, "x0 must hold 5 values"),
        ({"prediction": "eps_step"}, "known at the schedule's own levels"),
        ({"x0": torch.zeros(0, 2)}, r"x0 must be floats \[B, ...\]"),
        ({"cond": {"y": torch.zeros(5)}}, "must have the batch of 2 first"),
        (
            {"plan": samplers.ddim(schedules.flow(10), steps=5, prediction="v", spacing="trailing")},
            "does not begin at a level of both signal and noise",
        ),
    ],
)
def test_wrong_input_is_refused_before_any_work(arguments: dict[str, Any], message: str) -> None:
    """In one line, before the network is evaluated."""
    known = {"x0": torch.full((2, 2), 0.3), "schedule": SCHEDULES["vp"], "prediction": "v"}
    with pytest.raises(InputError, match=message) as raised:
        log_likelihood(pytest.fail, **(known | arguments))
    assert "\n" not in str(raised.value)


def test_network_that_fails_is_named() -> None:
    """NaN ends the integration at once, and says where."""
    with pytest.raises(NonFiniteError, match=r"NaN or infinity .* log\(sigma / alpha\) = "):
        log_likelihood(lambda x, t: x * math.nan, MIXTURE.sample(2), SCHEDULES["vp"])


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_probes_are_not_the_start_of_sampling(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample's probe is drawn from the stream "probe", or it would depend on a sample of the same seed and index."""
    streams: list[str] = []

    def noted(shape: Any, *whose: Any, stream: str = "init", device: Any = None) -> torch.Tensor:
        streams.append(stream)
        return draw(shape, *whose, stream=stream, device=device)

    draw = noise.PROBES[probe]
    monkeypatch.setitem(noise.PROBES, probe, noted)
    schedule, tolerance = schedules.cosine(20), {"rtol": 1e-2, "atol": 1e-2}
    network = GaussianMixture([[0.0, 0.0]], [0.5]).network(schedule, "v")
    log_likelihood(network, torch.zeros(1, 2), schedule, prediction="v", trace="hutchinson", probe=probe, **tolerance)
    assert streams == ["probe"]
