"""Score matching: the four losses where everything is known, and the objectives against their own expectations."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fastdiff import noise, schedules
from fastdiff.checkpoint import newest_step
from fastdiff.errors import InputError
from fastdiff.models import GaussianMixture, UNet, UNetConfig
from fastdiff.train import TrainConfig
from fastdiff.train.batch import Batch
from fastdiff.train.objectives import Loss, l_implicit, l_simple, l_sliced
from fastdiff.train.objectives.score_matching import MAX_EXACT, denoising, explicit, implicit, sliced
from fastdiff.train.trainer import Trainer, train

# float64 rounds at 1e-16; sums of tens of terms of size near 10.
EXACT = {"rtol": 1e-12, "atol": 1e-12}
OBJECTIVES: dict[str, Callable[..., Loss]] = {
    "implicit": l_implicit,
    "sliced, rademacher": lambda schedule, prediction: l_sliced(schedule, prediction, "rademacher"),
    "sliced, gaussian": lambda schedule, prediction: l_sliced(schedule, prediction, "gaussian"),
}
EVERY_OBJECTIVE = pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES)
SCHEDULES = {
    "NCSN": schedules.geometric(10, 0.05, 3.0).with_unit_input(),
    "VP": schedules.cosine(20),
}
EVERY_SCHEDULE = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)


def normals(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- the four losses


@settings(deadline=None, max_examples=20)
@given(dimensions=st.integers(1, 5), seed=st.integers(0, 2**32 - 1))
def test_losses_of_a_linear_score(dimensions: int, seed: int) -> None:
    """Of s(x) = A x + b, whose Jacobian is A, each loss is its formula."""
    A, b, x, v, other = (normals(*s, dimensions, seed=seed + i) for i, s in enumerate([(dimensions,), (), *[(7,)] * 3]))

    def score(x: Tensor) -> Tensor:
        return x @ A.T + b

    half = 0.5 * score(x).square().sum(dim=1)
    torch.testing.assert_close(implicit(score, x), half + A.trace(), **EXACT)
    torch.testing.assert_close(sliced(score, x, v), half + ((v @ A) * v).sum(dim=1), **EXACT)
    torch.testing.assert_close(explicit(score, x, other), 0.5 * (score(x) - other).square().sum(dim=1), **EXACT)
    noised = x + 0.3 * v  # so that (x - x~) / sigma^2 is -v / sigma
    expected = 0.5 * (score(noised) + v / 0.3).square().sum(dim=1)
    torch.testing.assert_close(denoising(score, x, noised, 0.3), expected, rtol=1e-10, atol=1e-10)


def curved(gain: Tensor) -> Callable[[Tensor], Tensor]:
    """A score of images with one parameter, whose Jacobian has entries off the diagonal."""
    return lambda x: gain * torch.tanh(x + 0.5 * x.roll(1, dims=2)) + x.flip(2) ** 2


def test_sliced_is_implicit_on_average_over_directions() -> None:
    """Over all vectors of signs, and over sqrt(D) times each axis, v v^T has mean I: the means agree to rounding."""
    x = normals(5, 1, 2, 2)
    score = curved(torch.tensor(0.7, dtype=torch.float64))
    signs = [torch.tensor(v, dtype=torch.float64) for v in itertools.product((-1, 1), repeat=4)]
    axes = [2 * v for v in torch.eye(4, dtype=torch.float64)]
    for directions in (signs, axes):
        means = torch.stack([sliced(score, x, v.view(1, 2, 2).expand_as(x)) for v in directions]).mean(dim=0)
        torch.testing.assert_close(means, implicit(score, x), **EXACT)


@pytest.mark.parametrize("loss", ["explicit", "implicit", "sliced", "denoising"])
def test_losses_are_differentiable_in_what_the_score_depends_on(loss: str) -> None:
    """The gradient is the central difference, whose own error is of order h^2 = 1e-10; under no_grad only values."""
    x, v = normals(5, 1, 2, 2), normals(5, 1, 2, 2, seed=1)

    def mean(gain: Tensor) -> Tensor:
        score = curved(gain)
        losses = {
            "explicit": lambda: explicit(score, x, v),
            "implicit": lambda: implicit(score, x),
            "sliced": lambda: sliced(score, x, v),
            "denoising": lambda: denoising(score, x, x + 0.2 * v, 0.2),
        }
        return losses[loss]().mean()

    gain = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(mean(gain), gain)
    with torch.no_grad():
        above, below = mean(gain + 1e-5), mean(gain - 1e-5)
    assert float(gradient) == pytest.approx(float(above - below) / 2e-5, rel=1e-7)
    assert not above.requires_grad


def test_losses_keep_the_dtype_and_do_not_see_other_samples() -> None:
    """float32 stays float32; each of a batch has the loss that it has alone, to rounding."""
    x, v = normals(4, 3), normals(4, 3, seed=1)

    def score(x: Tensor) -> Tensor:
        return -x * x.square().sum(dim=1, keepdim=True)

    for loss in (lambda x, v: implicit(score, x), lambda x, v: sliced(score, x, v)):
        assert loss(x.float(), v.float()).dtype == torch.float32
        alone = torch.cat([loss(x[i : i + 1], v[i : i + 1]) for i in range(4)])
        torch.testing.assert_close(alone, loss(x, v), **EXACT)


def test_exact_trace_of_many_dimensions_is_refused() -> None:
    """Each dimension costs a derivative; the error names the loss that takes one in all."""
    assert implicit(torch.sin, torch.zeros(1, MAX_EXACT)).shape == (1,)
    with pytest.raises(InputError, match="65 dimensions, 64 at most: use sliced"):
        implicit(torch.sin, torch.zeros(1, MAX_EXACT + 1))


# --- probes


def test_rademacher_probes_are_the_signs_of_normals() -> None:
    """Of the same seed, index, step and stream; both are fair, and the stream is one of their own."""
    whose = {"seed": 3, "index": torch.arange(5, 405), "step": 7, "stream": "probe"}
    signs, z = noise.rademacher((400, 50), **whose), noise.normal((400, 50), **whose)
    assert torch.equal(signs, z.sign())
    # Four standard errors of the mean of 20,000 signs.
    assert abs(float(signs.mean())) < 4 / math.sqrt(20_000)
    assert not torch.equal(z, noise.normal((400, 50), **{**whose, "stream": "train"}))


# --- the objectives


def gaussian(deviation: float = 0.8) -> GaussianMixture:
    return GaussianMixture([[0.3, -0.2]], [deviation])


def batch(x0: Tensor, t: Tensor, step: int = 5, start: int = 0) -> Batch:
    index = torch.arange(start, start + len(x0))
    return Batch(x0, t, torch.ones(len(t)), torch.zeros_like(t), {}, index, seed=11, step=step)


def levels(schedule: schedules.Schedule, count: int) -> Tensor:
    return torch.arange(count) % len(schedule)


@EVERY_SCHEDULE
@EVERY_OBJECTIVE
def test_objective_of_the_true_score_is_its_expectation(objective: Any, schedule: schedules.Schedule) -> None:
    """Around a Gaussian, x_t has variance V = alpha^2 d^2 + sigma^2 an axis, and the mean at level t is -sigma^2 / V.

    For `1/2 E|s|^2 + E tr = -1/2 E|score|^2 = -D / (2 V)` at s = score. Each level within five standard errors.
    """
    count = 400 * len(schedule)
    model, t = gaussian().network(schedule, "score"), levels(schedule, count)
    with torch.no_grad():
        losses = objective(schedule, "score")(model, batch(gaussian().sample(count).float(), t)).double().numpy()
    expected = -(schedule.sigma**2) / (schedule.alpha**2 * 0.8**2 + schedule.sigma**2)
    for level in range(len(schedule)):
        found = losses[t == level]
        assert abs(found.mean() - expected[level]) < 5 * found.std() / math.sqrt(len(found))


@EVERY_SCHEDULE
@EVERY_OBJECTIVE
def test_objective_is_l_simple_less_one(objective: Any, schedule: schedules.Schedule) -> None:
    """Of a score that is wrong by a gain and a shift too: the four kinds of score matching estimate the same.

    In units of L_simple they differ by 1, the mean of eps^2. With the same noise, within five standard errors of the
    mean difference, which for this many samples is below 0.05.
    """
    count, exact = 400 * len(schedule), gaussian().network(schedule, "score")

    def model(x: Tensor, t: Tensor) -> Tensor:
        return 0.6 * exact(x, t) + 0.3 * x.sin()

    noised = batch(gaussian().sample(count).float(), levels(schedule, count))
    with torch.no_grad():
        difference = l_simple(schedule, "score")(model, noised) - objective(schedule, "score")(model, noised)
    error = float(difference.std()) / math.sqrt(count)
    assert error < 0.05
    assert abs(float(difference.mean()) - 1) < 5 * error


@EVERY_OBJECTIVE
def test_score_is_a_derivative_in_x_t_whatever_the_network_is_given(objective: Any) -> None:
    """A network of scale_in x_t has the loss of the same function of x_t, to the rounding of float32."""
    plain = schedules.geometric(10, 0.05, 3.0)
    scaled, t = plain.with_unit_input(), levels(plain, 40)
    scale = torch.from_numpy(scaled.scale_in.copy()).float()

    def of_x(x: Tensor, time: Tensor) -> Tensor:
        return -x.sin() - 0.2 * time[:, None] * x.flip(1)

    def of_input(x: Tensor, time: Tensor) -> Tensor:
        return of_x(x / scale[time.long()][:, None], time)

    noised = batch(gaussian().sample(40).float(), t)
    torch.testing.assert_close(
        objective(scaled, "score")(of_input, noised), objective(plain, "score")(of_x, noised), rtol=1e-4, atol=1e-5
    )


def test_network_with_attention_learns_its_slopes() -> None:
    """Its loss is differentiable, in training as torch runs it, and the gradient is a central difference."""
    model = UNet(UNetConfig(channels=1, width=4, blocks=1, multipliers=(1,), attention=(True,), classes=2)).double()
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter += 0.3 * normals(*parameter.shape, seed=number)
    x0 = normals(3, 1, 4, 4)
    noised = dataclasses.replace(batch(x0, torch.tensor([0, 4, 9])), cond={"y": torch.tensor([0, 1, 2])})
    loss = l_sliced(schedules.geometric(10, 0.3, 3.0), "score")
    queries = model.middle[0].attention.qkv.weight
    loss(model, noised).mean().backward()
    direction = normals(*queries.shape, seed=99)

    def moved(size: float) -> float:
        with torch.no_grad():
            queries.add_(size * direction)
            found = float(loss(model, noised).mean())
            queries.sub_(size * direction)
        return found

    # The table of levels is float32, the network float64: differences of 1e-5 are good to 1e-6 of the gradient.
    slope = float((queries.grad * direction).sum())
    assert slope == pytest.approx((moved(1e-5) - moved(-1e-5)) / 2e-5, rel=1e-5)
    assert abs(slope) > 1e-3


def test_probes_depend_on_seed_index_and_step_alone() -> None:
    """A sample's loss is the same in any batch, to rounding, and differs between steps."""
    schedule = SCHEDULES["NCSN"]
    x0, t, loss = gaussian().sample(6).float(), levels(schedule, 6), l_sliced(schedule, "score")

    def model(x: Tensor, time: Tensor) -> Tensor:
        return -x.flip(1).sin() * x.cos()

    whole = loss(model, batch(x0, t))
    part = loss(model, batch(x0[2:5], t[2:5], start=2))
    torch.testing.assert_close(part, whole[2:5], rtol=1e-5, atol=1e-6)
    other = {name: l_sliced(schedule, "score", name)(model, batch(x0, t)) for name in noise.PROBES}
    assert not torch.allclose(other["rademacher"], other["gaussian"])


# --- through the trainer

RUN = TrainConfig(data="moons", schedule="geometric", T=5, sigma_max=3.0, prediction="score", width=8, batch=8, steps=4)
RUNS = [
    dataclasses.replace(RUN, objective="implicit"),
    dataclasses.replace(RUN, objective="sliced"),
    dataclasses.replace(RUN, objective="sliced", probes="gaussian"),
    dataclasses.replace(RUN, objective="sliced", data="digits"),
]


@pytest.mark.parametrize("config", RUNS, ids=lambda config: f"{config.objective} {config.probes} {config.data}")
def test_stopped_and_resumed_run_ends_in_the_same_bits(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Directions, like noise, are a function of seed and step: nothing is lost where a run stops."""
    config = dataclasses.replace(config, save_every=2)
    whole = train(config, tmp_path / "whole")
    save = Trainer._save

    def save_and_stop(self: Trainer) -> None:
        save(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_save", save_and_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped")
    assert newest_step(tmp_path / "stopped") == tmp_path / "stopped" / "step-00000002"
    resumed = train(config, tmp_path / "stopped", resume=True)
    for file in ("model.safetensors", "training.safetensors"):
        assert (resumed / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.parametrize(("schedule", "T"), [("geometric", 5), ("cosine", 20), ("geometric", 1 + 1)])
def test_picture_of_a_run_shows_the_score(
    schedule: str, T: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: None
) -> None:
    """Of points: data, the score at three levels, or all if there are fewer, and samples, each 480 pixels square."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    ends = {"sigma_max": 3.0} if schedule == "geometric" else {"sigma_max": None}
    train(dataclasses.replace(RUN, schedule=schedule, T=T, steps=1, **ends), tmp_path)
    with Image.open(tmp_path / "samples" / "step-00000001.png") as image:
        assert (image.format, image.size) == ("PNG", (480 * (2 + min(T, 3)), 480))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "eps"}, "score matching trains a score, not eps: give --prediction score, or use l_simple"),
        ({"prediction": "eps", "objective": "implicit"}, "score matching trains a score, not eps"),
        ({"objective": "implicit", "data": "folder:."}, "dimensions, 64 at most: use sliced"),
        ({"precision": "bf16"}, "sliced takes derivatives of the score, in float32: give --precision fp32"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_run_begins(
    settings: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line that says what to do, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    for number in range(20):
        Image.fromarray(np.full((9, 9), number, np.uint8)).save(tmp_path / f"{number}.png")
    config = dataclasses.replace(RUN, **{"objective": "sliced", **settings})
    config = dataclasses.replace(config, size=9, channels=1) if config.data != RUN.data else config
    with pytest.raises(InputError, match=message) as raised:
        train(config, tmp_path / "run")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_unknown_probes_are_refused() -> None:
    """The error suggests the name that was meant."""
    with pytest.raises(InputError, match="unknown probes 'rademaher': did you mean 'rademacher'"):
        l_sliced(SCHEDULES["NCSN"], "score", "rademaher")
