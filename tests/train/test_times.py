"""Distributions of t: what each draws, what importance sampling learns, and that it is part of the run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from fastdiff.train import TrainConfig
from fastdiff.train.batch import Batch
from fastdiff.train.times import REMEMBERED, TIMES, Floats, Importance, Ints, logit_normal, low_discrepancy
from fastdiff.train.trainer import STATE, Trainer, train

FIXED = [name for name in TIMES if name != "importance"]


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def taught(losses: Floats, times: Importance | None = None) -> Importance:
    """Importance sampling that has seen rounds of losses [rounds, T], every level once a round."""
    times = Importance(losses.shape[1]) if times is None else times
    for loss in losses:
        times.learn(np.arange(len(loss)), loss)
    return times


# --- fixed distributions


def logit_normal_share(T: int) -> Floats:
    """Probability of each level: that a standard normal is between the logits of its ends."""
    ends = [-math.inf, *(math.log(k / (T - k)) for k in range(1, T)), math.inf]
    return np.diff([0.5 * (1 + math.erf(end / math.sqrt(2))) for end in ends])


@pytest.mark.parametrize("batch", [1, 7, 64])
@pytest.mark.parametrize("name", FIXED)
def test_levels_have_their_frequencies(name: str, batch: int) -> None:
    """Over many batches: within five standard errors of a binomial share, which low discrepancy only lessens."""
    T, count = 12, 40_000
    share = logit_normal_share(T) if name == "logit_normal" else np.full(T, 1 / T)
    times, rng = TIMES[name](T), generator()
    drawn = [times.draw(rng, batch) for _ in range(count // batch)]
    t, weight = (np.concatenate(part) for part in zip(*drawn, strict=True))
    assert t.dtype == np.int64
    frequency = np.bincount(t, minlength=T) / len(t)
    assert (np.abs(frequency - share) < 5 * np.sqrt(share * (1 - share) / len(t))).all()
    assert (weight == 1).all()
    assert not times.learns


@settings(max_examples=50)
@given(T=st.integers(1, 50), each=st.integers(1, 20), seed=st.integers(0, 2**32))
def test_low_discrepancy_draws_every_stratum_once(T: int, each: int, seed: int) -> None:
    """One of every 1 / batch of the circle: with T x each samples, each level `each` times; with 1 of T, any one."""
    counts = np.bincount(low_discrepancy(generator(seed), T, T * each), minlength=T)
    assert (counts == each).all()
    strata = low_discrepancy(generator(seed), T * each, each) // T
    assert sorted(strata) == list(range(each))


@settings(max_examples=50)
@given(T=st.integers(1, 1000), batch=st.integers(1, 300), seed=st.integers(0, 2**32))
@pytest.mark.parametrize("name", TIMES)
def test_levels_are_levels(name: str, T: int, batch: int, seed: int) -> None:
    """Whatever is drawn is an index of the schedule, and the same for the same generator."""
    t, weight = TIMES[name](T).draw(generator(seed), batch)
    assert t.shape == weight.shape == (batch,)
    assert ((0 <= t) & (t < T)).all()
    assert np.array_equal(t, TIMES[name](T).draw(generator(seed), batch)[0])


def test_low_discrepancy_has_less_variance() -> None:
    """The mean of a smooth loss over a batch of 32 varies at most a tenth as much (about 1 / 1000) as of free draws."""
    loss = np.sin(np.arange(1000) / 200)
    variance = {
        name: np.var([loss[TIMES[name](1000).draw(generator(seed), 32)[0]].mean() for seed in range(300)])
        for name in ("uniform", "low_discrepancy")
    }
    assert variance["low_discrepancy"] < variance["uniform"] / 10


def test_logit_normal_is_symmetric_about_the_middle() -> None:
    """Level k and T - 1 - k alike, the middle most: m = 0."""
    share = logit_normal_share(9)
    np.testing.assert_allclose(share, share[::-1], rtol=1e-12)
    assert share.argmax() == 4
    assert np.bincount(logit_normal(generator(), 9, 10_000)).argmax() in (3, 4, 5)


# --- importance sampling


def test_importance_is_uniform_until_every_level_is_known() -> None:
    """Nine losses of each, or none of one, are not enough; one more and they count."""
    losses = generator().uniform(1, 9, (REMEMBERED, 5))
    known = taught(losses[:-1])
    known.learn(np.array([0, 1, 2, 3]), losses[-1, :4])
    np.testing.assert_array_equal(known.probabilities(), np.full(5, 0.2))
    assert (known.draw(generator(), 50)[1] == 1).all()
    known.learn(np.array([4]), losses[-1, 4:])
    assert np.ptp(known.probabilities()) > 0.01


def test_importance_is_the_second_moment_of_the_last_losses() -> None:
    """`p_t ~ sqrt(E[L_t^2])` over the last ten losses (Nichol & Dhariwal 2021, eq. 18), a thousandth of it uniform."""
    losses = generator(1).exponential(1.0, (REMEMBERED + 7, 6)) * np.arange(1, 7)
    size = np.sqrt((losses[-REMEMBERED:] ** 2).mean(axis=0))
    expected = 0.999 * size / size.sum() + 0.001 / 6
    np.testing.assert_allclose(taught(losses).probabilities(), expected, rtol=1e-12)


def test_order_within_a_batch_is_kept() -> None:
    """A level that comes twice in a batch has two losses, in the batch's order."""
    times = taught(np.ones((REMEMBERED, 2)))
    times.learn(np.array([1, 0, 1]), np.array([5.0, 6.0, 7.0]))
    losses = times.state["losses"].numpy()
    assert losses[1].tolist() == [5.0, 7.0, *[1.0] * (REMEMBERED - 2)]
    assert losses[0].tolist() == [6.0, *[1.0] * (REMEMBERED - 1)]
    assert times.state["seen"].tolist() == [REMEMBERED + 1, REMEMBERED + 2]


def test_weighted_mean_is_that_of_uniform_levels() -> None:
    """`E[L_t / (T p_t)]` is the mean over all levels, whatever was learnt: within five standard errors."""
    times = taught(generator(2).exponential(1.0, (REMEMBERED, 20)) * np.geomspace(1e-3, 1, 20))
    loss = generator(3).normal(size=20)
    t, weight = times.draw(generator(4), 100_000)
    found = weight * loss[t]
    assert abs(found.mean() - loss.mean()) < 5 * found.std() / math.sqrt(len(found))
    assert np.ptp(np.bincount(t, minlength=20)) > 10_000  # and the draws were far from uniform


def test_importance_takes_the_variance_of_losses_that_it_knows() -> None:
    """Where L_t is what it was, L_t / (T p_t) is the same for every t, but for the uniform thousandth."""
    loss = np.geomspace(0.1, 10, 30)
    t, weight = taught(np.tile(loss, (REMEMBERED, 1))).draw(generator(), 5000)
    # p_t is (1 - 0.001) of its share and 0.001 / T, which is 0.5 % of the least p_t here.
    np.testing.assert_allclose(weight * loss[t], loss.mean(), rtol=0.03)


@pytest.mark.parametrize("loss", [0.0, math.nan, math.inf])
def test_losses_that_say_nothing_leave_the_levels_uniform(loss: float) -> None:
    """All zero, or one of them not finite: no probability may become NaN."""
    losses = np.zeros((REMEMBERED, 4))
    losses[3, 2] = loss
    times = taught(losses)
    np.testing.assert_array_equal(times.probabilities(), np.full(4, 0.25))


def test_no_level_is_forgotten() -> None:
    """One whose losses were all zero is still drawn now and then: with probability 0.001 / T."""
    losses = np.ones((REMEMBERED, 4))
    losses[:, 1] = 0
    p = taught(losses).probabilities()
    assert p[1] == pytest.approx(0.001 / 4, rel=1e-12)
    assert p.sum() == pytest.approx(1, abs=1e-15)


def test_state_is_all_that_was_learnt() -> None:
    """Copied into another one, both draw the same and go on learning the same."""
    losses = generator(5).exponential(1.0, (REMEMBERED + 3, 8))
    one, two = taught(losses), Importance(8)
    for name, value in two.state.items():
        value.copy_(one.state[name])
    for more in generator(6).exponential(1.0, (3, 8)):
        assert all(map(np.array_equal, one.draw(generator(7), 64), two.draw(generator(7), 64)))
        taught(more[None], one)
        taught(more[None], two)
    np.testing.assert_array_equal(one.probabilities(), two.probabilities())


# --- in a run

RUN = TrainConfig(
    data="moons",
    objective="l_gamma",
    weighting="min_snr",
    times="importance",
    schedule="cosine",
    T=4,
    width=8,
    steps=30,
    batch=16,
    warmup=2,
    save_every=20,
)


@pytest.mark.parametrize("name", TIMES)
def test_resumed_run_ends_in_the_same_bits(name: str, tmp_path: Path) -> None:
    """Interrupted after its first checkpoint, with what it had learnt of the losses since then forgotten again."""
    config = replace(RUN, times=name)
    whole = train(config, tmp_path / "whole", progress=False)
    advance = Trainer._advance

    def advance_or_stop(self: Trainer, batch: Batch) -> Tensor:
        if self.step == 25:
            raise KeyboardInterrupt
        return advance(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_advance", advance_or_stop)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "stopped", progress=False)
    resumed = train(config, tmp_path / "stopped", resume=True, progress=False)
    expected, found = load_file(whole / STATE), load_file(resumed / STATE)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_run_with_importance_learns_its_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told those of every batch, keeps the last ten of each level, and then draws the levels unlike."""
    told: list[tuple[Ints, Floats]] = []
    learn = Importance.learn

    def note_and_learn(self: Importance, t: Ints, loss: Floats) -> None:
        told.append((t, loss))
        learn(self, t, loss)

    monkeypatch.setattr(Importance, "learn", note_and_learn)
    run = Trainer(RUN, tmp_path)
    run.run(progress=False)
    assert [len(t) for t, _ in told] == [RUN.batch] * RUN.steps
    t, loss = (np.concatenate(part) for part in zip(*told, strict=True))
    assert run.times.state["seen"].tolist() == np.bincount(t, minlength=RUN.T).tolist()
    for level, kept in enumerate(run.times.state["losses"].tolist()):
        assert sorted(kept) == sorted(loss[t == level][-REMEMBERED:])
    assert isinstance(run.times, Importance)
    assert np.ptp(run.times.probabilities()) > 0.02


def test_importance_is_told_the_losses_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those over `T p_t`: what it has learnt would else feed back into what it learns."""
    run = Trainer(RUN, tmp_path)
    told: list[Floats] = []
    monkeypatch.setattr(Importance, "learn", lambda self, t, loss: told.append(loss))
    batch = replace(next(run._batches()), weight=torch.linspace(0, 3, RUN.batch))
    expected = run.task.loss(run.model, batch).detach().double().numpy()
    run._advance(batch)
    assert np.array_equal(told[0], expected)


def test_losses_are_weighted(tmp_path: Path) -> None:
    """What is minimised is `mean(weight loss)`: a sample of weight 0 moves nothing."""
    run = Trainer(replace(RUN, weight_decay=0.0), tmp_path)
    batch = replace(next(run._batches()), weight=torch.linspace(0, 3, RUN.batch))
    expected = (run.task.loss(run.model, batch) * batch.weight).mean()
    assert float(run._advance(replace(batch, weight=torch.zeros(RUN.batch)))) == 0
    # The same bits, as nothing has moved: the loss of the second step is that before the first.
    assert torch.equal(run._advance(batch), expected.detach())
