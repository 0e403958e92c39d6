"""L_vlb and L_hybrid: their values, who learns what from them, and runs that resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastdiff import checkpoint as checkpoints
from fastdiff import noise, schedules
from fastdiff.errors import InputError
from fastdiff.likelihood import Terms
from fastdiff.train import TrainConfig, tasks
from fastdiff.train import data as datasets
from fastdiff.train.batch import Batch
from fastdiff.train.objectives import l_hybrid, l_simple, l_vlb
from fastdiff.train.trainer import Trainer, train

SCHEDULE = schedules.cosine(20)
LEVELS = 17
RUN = TrainConfig(
    *("moons",), objective="l_hybrid", times="importance", width=8, T=10, steps=6, batch=8, warmup=2, sample_every=100
)


class Network(nn.Module):
    """A network with one parameter for the mean and one for the variance, of any dtype."""

    def __init__(self, learns: bool = True) -> None:
        super().__init__()
        self.mean, self.variance = (nn.Parameter(torch.tensor(value)) for value in (0.7, 0.3))
        self.learns, self.calls = learns, 0

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        time = t.reshape(-1, *[1] * (x.ndim - 1))
        mean = self.mean * x.sin() + 0.01 * time
        return torch.cat([mean, self.variance * (x + time).cos()], dim=1) if self.learns else mean


def batch(dtype: torch.dtype = torch.float32) -> Batch:
    """Images of 17 levels at both ends of the schedule and between."""
    t = torch.tensor([0, 1, 7, 19, 0, 12])
    value = torch.randint(LEVELS, (6, 1, 4, 4), generator=torch.Generator().manual_seed(0))
    x0 = (2 * value / (LEVELS - 1) - 1).to(dtype)
    return Batch(x0, t, torch.ones(6), torch.zeros(6), {}, torch.arange(10, 16), seed=3, step=7)


def gradients(loss: Any, network: Network) -> list[float]:
    network.zero_grad()
    loss(network, batch()).mean().backward()
    return [0.0 if p.grad is None else float(p.grad) for p in (network.mean, network.variance)]


@pytest.mark.parametrize("variance", ["small", "large", "learned_range"])
def test_l_vlb_is_t_times_a_term_in_bits_per_element(variance: str) -> None:
    """With the noise of the run's (seed, index, step); to float32 rounding of a difference squared."""
    given = batch()
    eps = noise.normal(given.x0.shape, 3, given.index, 7, "train").double()
    alpha, sigma = (torch.from_numpy(v.copy())[given.t].view(-1, 1, 1, 1) for v in (SCHEDULE.alpha, SCHEDULE.sigma))
    x0, model = given.x0.double(), Network()
    terms = Terms(SCHEDULE, "v", variance, LEVELS)(model, x0, alpha * x0 + sigma * eps, eps, given.t, {})
    found = l_vlb(SCHEDULE, "v", variance, LEVELS)(model, given)
    assert found.dtype == torch.float32
    expected = 20 * terms / (16 * math.log(2))
    assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_l_vlb_trains_both_parameters() -> None:
    """Its gradient is the derivative of the loss: a central difference in float64 agrees to its own error."""
    loss, model = l_vlb(SCHEDULE, "v", "learned_range", LEVELS), Network().double()

    def value() -> Tensor:
        return loss(model, batch(torch.float64)).mean()

    value().backward()
    for parameter in (model.mean, model.variance):
        assert parameter.grad is not None
        with torch.no_grad():
            parameter += 1e-5
            above = value()
            parameter -= 2e-5
            below = value()
            parameter += 1e-5
        # A difference of two doubles of size 10 over 2e-5 is known to 1e-10 of 10, and 1e-10 relative to curvature.
        assert float(parameter.grad) == pytest.approx(float(above - below) / 2e-5, rel=1e-6)
        assert abs(float(parameter.grad)) > 0.01


def test_l_hybrid_is_the_sum_and_asks_the_network_once() -> None:
    """L_simple of the mean plus 0.01 L_vlb, which is the same function of the same answer."""
    hybrid, simple = l_hybrid(SCHEDULE, "v", LEVELS, weight=0.01), l_simple(SCHEDULE, "v")
    model = Network()
    found = hybrid(model, batch())
    assert model.calls == 1
    expected = simple(Network(learns=False), batch()) + 0.01 * l_vlb(SCHEDULE, "v", levels=LEVELS)(model, batch())
    assert torch.equal(found, expected)


def test_l_hybrid_takes_the_mean_as_given_in_the_bound() -> None:
    """The mean learns from L_simple alone, the variance from L_vlb alone, by its weight."""
    hybrid, simple = l_hybrid(SCHEDULE, "v", LEVELS, weight=0.01), l_simple(SCHEDULE, "v")
    bound = l_vlb(SCHEDULE, "v", levels=LEVELS)
    mean, variance = gradients(hybrid, Network())
    assert mean == gradients(simple, Network(learns=False))[0]
    of_bound = gradients(bound, Network())
    assert variance == pytest.approx(0.01 * of_bound[1], rel=1e-6)  # float32 rounding
    assert abs(of_bound[0]) > 1e-3  # which the mean did not get


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "l_simple", "variance": "small"}, "l_simple trains no variance: leave --variance out"),
        ({"objective": "l_hybrid", "variance": "small"}, "l_hybrid trains with variance learned_range"),
        ({"objective": "l_vlb", "variance": "learned"}, "unknown variance 'learned': did you mean 'learned_range'"),
        ({"objective": "l_vlb", "vlb_weight": 0.1}, "l_vlb has no part to weigh: leave --vlb-weight out"),
        ({"objective": "l_hybrid", "vlb_weight": 0.0}, "vlb_weight must be > 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    """In one line that says what to do."""
    with pytest.raises(InputError, match=message) as raised:
        TrainConfig(**settings)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(("schedule", "prediction"), [("flow", "eps"), ("flow", "score")])
def test_prediction_that_has_no_bound_is_refused(schedule: str, prediction: str) -> None:
    """Before any work: x0 cannot be found at the noisiest level."""
    config = TrainConfig("moons", objective="l_vlb", schedule=schedule, prediction=prediction, T=10)
    with pytest.raises(InputError, match="where alpha is 0"):
        tasks.make(config, datasets.load("moons"))


@pytest.mark.parametrize(
    ("settings", "learns"),
    [
        ({"objective": "l_simple"}, False),
        ({"objective": "l_hybrid"}, True),
        ({"objective": "l_vlb"}, True),
        ({"objective": "l_vlb", "variance": "large"}, False),
    ],
)
@pytest.mark.parametrize("data", ["moons", "digits"])
def test_network_learns_a_variance_where_the_objective_does(data: str, settings: dict[str, Any], learns: bool) -> None:
    """Of points and of images; the other objectives keep the network that they had."""
    assert tasks.make(TrainConfig(data, T=10, **settings), datasets.load(data)).description["learn_variance"] is learns


def test_run_resumes_bit_for_bit_and_is_sampled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: None
) -> None:
    """A stopped l_hybrid run with importance-sampled times ends in the bits of one that never stopped; it draws."""
    whole = train(RUN, tmp_path / "whole", progress=False)
    advance = Trainer._advance

    def stopping(self: Trainer, given: Batch) -> Tensor:
        if self.step == 3:
            self._save()
            raise KeyboardInterrupt
        return advance(self, given)

    monkeypatch.setattr(Trainer, "_advance", stopping)
    with pytest.raises(KeyboardInterrupt):
        train(RUN, tmp_path / "parts", progress=False)
    monkeypatch.setattr(Trainer, "_advance", advance)
    resumed = train(RUN, tmp_path / "parts", resume=True, progress=False)
    for name in (checkpoints.WEIGHTS, "training.safetensors"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes()
    assert (tmp_path / "whole" / "samples" / f"{whole.name}.png").is_file()
    assert checkpoints.load(whole).learns_variance
