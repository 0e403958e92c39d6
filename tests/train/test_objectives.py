"""The training objective against the formula written out, and noise that knows no batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from fastdiff import noise, schedules
from fastdiff.errors import InputError
from fastdiff.models import ConvAutoencoder, ConvAutoencoderConfig, UNet, UNetConfig
from fastdiff.schedules import Schedule
from fastdiff.train import TrainConfig
from fastdiff.train.batch import Batch
from fastdiff.train.data import Data
from fastdiff.train.objectives import OBJECTIVES, Loss, l_simple
from fastdiff.train.objectives.autoencoding import denoising_autoencoder, vae
from fastdiff.train.objectives.score_matching import l_sliced
from fastdiff.train.objectives.variational import l_hybrid, l_vlb

SEED, STEP = 11, 29
SCHEDULES = {
    "cosine": schedules.cosine(50),
    "flow": schedules.flow(50),
    "karras": schedules.karras(50).with_unit_input(),
    "other times": schedules.linear(50).with_time(np.linspace(1, 0, 50)),
}
PAIRS = [
    (p, s)
    for p in ("eps", "x0", "v", "score", "flow")
    for s in SCHEDULES
    if (p, s) not in {("eps", "flow"), ("score", "flow")}
]


class Recorder(nn.Module):
    """A network that is a fixed function of (x, t, shift), with one parameter, and notes what it was given."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.7))
        self.dtype = dtype
        self.given: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, t: Tensor, shift: float = 0.25) -> Tensor:
        self.given = x, t
        return (self.gain * x.sin() + shift + 0.01 * t.reshape(-1, *[1] * (x.ndim - 1))).to(self.dtype)


def data(*shape: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clean samples, schedule indices that include both ends, and positions in the whole batch."""
    x0 = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0, 48, shape[0]).round().long()
    return x0, t, torch.arange(100, 100 + shape[0])


def loss_of(
    model: Any, x0: Tensor, t: Tensor, index: Tensor, schedule: Schedule, prediction: str, **cond: Any
) -> Tensor:
    return l_simple(schedule, prediction)(model, batch_of(x0, t, index, cond)).mean()


def batch_of(x0: Tensor, t: Tensor, index: Tensor, cond: dict[str, Any], seed: int = SEED, step: int = STEP) -> Batch:
    return Batch(x0, t, torch.ones(len(t)), torch.zeros_like(t), cond, index, seed, step)


def value(loss: Tensor) -> float:
    return float(loss.detach())


@pytest.mark.parametrize("shape", [(6, 1, 3, 5), (4, 2)], ids=str)
@pytest.mark.parametrize(("prediction", "name"), PAIRS)
def test_loss_is_the_formula(prediction: str, name: str, shape: tuple[int, ...]) -> None:
    """Mean squared error against each prediction's own target, in float64 from (x0, eps, alpha, sigma).

    A score's error has the weight sigma^2 (Song & Ermon 2019, eq. 6). Rounding of float32 is 6e-8 for each of about
    ten operations; karras multiplies it by levels up to 80, relative to a loss that has the same factor.
    """
    schedule = SCHEDULES[name]
    x0, t, index = data(*shape)
    model = Recorder()
    loss = loss_of(model, x0, t, index, schedule, prediction, shift=0.5)

    def level(values: Any) -> Tensor:
        return torch.from_numpy(np.array(values))[t].reshape(-1, *[1] * (len(shape) - 1))

    alpha, sigma = level(schedule.alpha), level(schedule.sigma)
    eps = noise.normal(shape, seed=SEED, index=index, step=STEP, stream="train").double()
    x = x0.double()
    x_t = alpha * x + sigma * eps
    target = {"eps": eps, "x0": x, "v": alpha * eps - sigma * x, "score": -eps / sigma, "flow": eps - x}[prediction]
    weight = sigma**2 if prediction == "score" else torch.ones_like(sigma)
    with torch.no_grad():
        out = model(level(schedule.scale_in) * x_t, level(schedule.time).flatten(), shift=0.5)
    expected = (weight * (out - target) ** 2).mean()
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    assert value(loss) == pytest.approx(float(expected), rel=1e-5)


def test_network_is_given_scaled_input_and_its_own_times() -> None:
    """scale_in x_t, of unit variance, and the schedule's time, not the index."""
    schedule = schedules.karras(50).with_unit_input().with_time(np.linspace(5, 6, 50))
    x0, t, index = data(40, 1, 8, 8)
    model = Recorder()
    loss_of(model, x0, t, index, schedule, "x0")
    assert model.given is not None
    x, time = model.given
    assert torch.allclose(time, torch.linspace(5, 6, 50)[t], rtol=0, atol=1e-6)
    # 40 x 64 values of unit variance: the mean of squares is 1 to within 4 sqrt(2 / 2560) = 0.11.
    assert float(x.square().mean()) == pytest.approx(1, abs=0.11)


@pytest.mark.parametrize("name", ["cosine", "karras"])
def test_weighted_score_loss_is_the_eps_loss(name: str) -> None:
    """One function written as a score, -eps / sigma, and as eps has one loss, to float32 rounding."""
    schedule = SCHEDULES[name]
    x0, t, index = data(6, 1, 4, 4)
    eps_model = Recorder()
    sigma = torch.from_numpy(schedule.sigma.copy()).float()

    def score_model(x: Tensor, time: Tensor) -> Tensor:
        return -eps_model(x, time) / sigma[t].reshape(-1, 1, 1, 1)

    score = loss_of(score_model, x0, t, index, schedule, "score")
    assert value(score) == pytest.approx(value(loss_of(eps_model, x0, t, index, schedule, "eps")), rel=1e-5)


def test_noise_does_not_depend_on_the_batch() -> None:
    """Halves, single samples and another order give each sample the same noised input, bit for bit."""
    x0, t, index = data(8, 1, 3, 5)
    schedule, model = SCHEDULES["cosine"], Recorder()
    whole = loss_of(model, x0, t, index, schedule, "v")
    assert model.given is not None
    x = model.given[0]
    parts = [torch.arange(4), torch.arange(4, 8), torch.tensor([7, 0, 5]), *torch.arange(8).split(1)]
    losses = []
    for part in parts:
        losses.append(value(loss_of(model, x0[part], t[part], index[part], schedule, "v")))
        assert torch.equal(model.given[0], x[part])
    # The mean over equal parts is the whole's mean, to float32 rounding of sums.
    assert np.mean(losses[:2]) == pytest.approx(value(whole), rel=1e-6)
    assert np.mean(losses[3:]) == pytest.approx(value(whole), rel=1e-6)


@pytest.mark.parametrize("changed", ["seed", "index", "step"])
def test_noise_depends_on_seed_index_and_step(changed: str) -> None:
    """Each of the three alone gives other noise, and the same three give the same."""
    x0, t, index = data(3, 1, 4, 4)
    model = Recorder()
    same = {"seed": SEED, "index": index, "step": STEP}
    other = same | {changed: same[changed] + 1}

    def given(key: dict[str, Any]) -> Tensor:
        l_simple(SCHEDULES["cosine"], "eps")(model, batch_of(x0, t, cond={}, **key))
        assert model.given is not None
        return model.given[0]

    assert torch.equal(given(same), given(same))
    if changed == "index":
        assert not torch.equal(given(same)[0], given(other)[0])
    else:
        assert (given(same) != given(other)).flatten(1).any(dim=1).all()


def test_gradient_flows_to_the_parameters() -> None:
    """The gradient is the derivative of the loss: a central difference agrees to its own error, 1e-3."""
    x0, t, index = data(6, 1, 4, 4)
    model = Recorder()
    loss_of(model, x0, t, index, SCHEDULES["cosine"], "v").backward()
    assert model.gain.grad is not None

    def at(gain: float) -> float:
        moved = Recorder()
        moved.gain.data.fill_(gain)
        return value(loss_of(moved, x0, t, index, SCHEDULES["cosine"], "v"))

    assert float(model.gain.grad) == pytest.approx((at(0.8) - at(0.6)) / 0.2, rel=1e-3)
    assert abs(float(model.gain.grad)) > 0.01


def test_low_precision_output_is_compared_in_float32() -> None:
    """A network that answers in bfloat16 has a float32 loss that differs by its own rounding alone (2^-8)."""
    x0, t, index = data(6, 1, 4, 4)
    exact = loss_of(Recorder(), x0, t, index, SCHEDULES["cosine"], "v")
    low = loss_of(Recorder(torch.bfloat16), x0, t, index, SCHEDULES["cosine"], "v")
    assert low.dtype == torch.float32
    assert 0 < abs(value(low - exact)) < 2**-8 * value(exact)


@pytest.mark.parametrize("prediction", ["eps", "score"])
def test_prediction_that_cannot_be_sampled_is_not_trained(prediction: str) -> None:
    """At alpha = 0 these say nothing of x0; the error says which predictions do."""
    x0, t, index = data(2, 1, 4, 4)
    with pytest.raises(InputError, match="alpha is 0"):
        loss_of(Recorder(), x0, t, index, SCHEDULES["flow"], prediction)


def test_consistency_is_refused() -> None:
    """Towards sigma_min its target grows without bound: one line says what to use instead."""
    with pytest.raises(InputError, match="use l_gamma, --weighting edm"):
        l_simple(schedules.karras(50), "consistency")


# The settings of a run that an objective reads, and the objective that they should make.
DIGITS = Data("digits", TensorDataset(torch.zeros(1, 1, 8, 8), torch.zeros(1)), (1, 8, 8), (), levels=17)
WIRED: dict[str, tuple[TrainConfig, Callable[[Schedule], Loss]]] = {
    "l_vlb": (
        TrainConfig(objective="l_vlb", variance="large", prediction="v"),
        lambda schedule: l_vlb(schedule, "v", "large", 17),
    ),
    "l_hybrid": (
        TrainConfig(objective="l_hybrid", vlb_weight=0.5, prediction="v"),
        lambda schedule: l_hybrid(schedule, "v", 17, 0.5),
    ),
    "sliced": (
        TrainConfig(objective="sliced", probes="gaussian", prediction="score"),
        lambda schedule: l_sliced(schedule, "score", "gaussian"),
    ),
    "denoising_autoencoder": (
        TrainConfig(objective="denoising_autoencoder", corruption=0.7),
        lambda schedule: denoising_autoencoder(0.7),
    ),
    "vae": (TrainConfig(objective="vae", kl_weight=0.3), lambda schedule: vae(0.3)),
}


@pytest.mark.parametrize("name", WIRED)
def test_objective_reads_the_settings_of_its_run(name: str) -> None:
    """Made by name it is the function called with these settings and the data's levels, to the bit."""
    config, build = WIRED[name]
    schedule = SCHEDULES["cosine"]
    x0 = torch.linspace(-1, 1, 17)[torch.arange(3 * 64) % 17].reshape(3, 1, 8, 8)
    batch = batch_of(x0, torch.tensor([0, 1, 30]), torch.arange(3), {})
    if OBJECTIVES[name].trains == "autoencoding":
        model: nn.Module = ConvAutoencoder(ConvAutoencoderConfig(channels=1, width=8, variational=name == "vae"))
    else:
        model = UNet(UNetConfig(channels=1, width=8, learn_variance=name == "l_hybrid"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)  # outputs are 0 at first
    expected = build(schedule)(model, batch)
    assert torch.equal(OBJECTIVES[name].make(config, schedule, DIGITS)(model, batch), expected)
