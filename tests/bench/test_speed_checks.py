"""A time can be believed: wrong results are found, peers take turns, and what is repeated does not drift away."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.bench.speed import timing, work
from fastdiff.bench.speed.cases import CASES
from fastdiff.bench.speed.equality import check
from fastdiff.bench.speed.work import Job, Work, WrongResult

SIZE = 4096


class Line(Work):
    """Work whose result is 3 + 2 z, and a job that may return something else."""

    elements, traffic = SIZE, 4 * SIZE

    def __init__(self, function: Callable[[], Tensor], **options: Any) -> None:
        self.job = Job(partial(function), lambda x: {"x": x}, self._expected, partial(torch.randn, SIZE), **options)

    def jobs(self) -> dict[str, Callable[[], Job]]:
        return {"fastdiff": lambda: self.job}

    def check(self) -> None:
        check(self, self.job)

    def _expected(self, z: Tensor | None) -> dict[str, Tensor]:
        assert z is not None
        return {"x": 3 + 2 * z.double()}


def with_nan() -> Tensor:
    return (3 + 2 * torch.randn(SIZE)).index_fill(0, torch.tensor([7]), float("nan"))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        pytest.param(lambda: 3.0001 + 2 * torch.randn(SIZE), "x is off by .* of its largest value", id="shift"),
        pytest.param(with_nan, "x is off by nan", id="nan"),
        pytest.param(lambda: 3 + 2 * torch.randn(SIZE - 1), "shape", id="missing element"),
    ],
)
def test_wrong_results_are_found(function: Callable[[], Tensor], said: str) -> None:
    """A small error, one NaN and a missing element."""
    with pytest.raises(WrongResult, match=said):
        Line(function).check()


@pytest.mark.parametrize(
    ("draw", "moment"),
    [
        pytest.param(lambda: torch.randn(SIZE) + 0.1, "mean", id="shifted"),
        pytest.param(lambda: torch.randn(SIZE) * 1.1, "variance", id="scaled"),
        pytest.param(lambda: (torch.rand(SIZE) - 0.5) * 12**0.5, "fourth moment", id="uniform"),
    ],
)
def test_hidden_noise_must_be_normal(draw: Callable[[], Tensor], moment: str) -> None:
    """Noise that cannot be drawn again is found from the result, and its moments must be those of N(0, 1)."""
    with pytest.raises(WrongResult, match=f"the {moment} of its noise"):
        Line(lambda: 3 + 2 * draw(), hides_noise=True).check()


def test_right_results_pass() -> None:
    """With noise that is drawn again and with normal noise that cannot be; torch's generator is left as it was."""
    state = torch.get_rng_state()
    Line(lambda: 3 + 2 * torch.randn(SIZE)).check()
    Line(lambda: 3 + 2 * torch.randn(SIZE).flip(0), hides_noise=True).check()
    assert torch.equal(torch.get_rng_state(), state)


def test_noise_with_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first and the last sample of fastdiff's noise are compared with the specification to the bit."""
    normal = work.fd.noise.normal

    def wrong(*arguments: Any, backend: str = "auto", **options: Any) -> Tensor:
        z = normal(*arguments, backend=backend, **options)
        return z if backend == "eager" else torch.nextafter(z, torch.zeros_like(z))

    monkeypatch.setattr(work.fd.noise, "normal", wrong)
    with pytest.raises(WrongResult, match="other bits"):
        work.philox((3, 2, 2), "step", 0)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case].shape is None])
def test_a_thousand_calls_in_place_stay_finite(case: str) -> None:
    """Between two restores a state that is overwritten again and again reaches neither infinity nor denormals."""
    done = CASES[case].work((1, 1, 4, 4), torch.float32)
    job = done.jobs()["fastdiff"]()
    for _ in range(1000):
        found = job.call()
    for value in job.read(found).values():
        assert value.isfinite().all()
        assert not ((value != 0) & (value.abs() < torch.finfo(torch.float32).tiny)).any()


# --- turns


class Clock:
    """A clock that jobs move on, and a log of what was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 0
        self.log: list[str] = []
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.ns)
        monkeypatch.setattr(time, "perf_counter", lambda: self.ns / 1e9)

    def spend(self, name: str, ns: int) -> None:
        self.ns += ns
        self.log.append(name)

    def job(self, name: str, ns: int) -> Job:
        return Job(partial(self.spend, name, ns), lambda _: {}, lambda _: {})

    def work(self) -> Work:
        restored = Line(lambda: torch.empty(0))
        restored.restore = partial(self.spend, "restore", 10**9)
        return restored


def test_peers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order moves on by one each round, short calls are repeated to fill a sample, and a restore is not timed."""
    clock = Clock(monkeypatch)
    jobs = {"a": clock.job("a", 60_000), "b": clock.job("b", 300_000)}
    times = timing.interleaved(clock.work(), jobs, rounds=3, seconds=1e9)
    assert times == {"a": [60_000] * 3, "b": [300_000] * 3}
    a, b = ["restore", *["a"] * 4], ["restore", "b"]
    rounds = [*a, *b, *b, *a, *a, *b]
    assert clock.log[-len(rounds) :] == rounds


def test_no_round_begins_when_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for the few that a spread needs."""
    clock = Clock(monkeypatch)
    jobs = {"a": clock.job("a", 10**9)}  # two seconds a round, with its restore
    assert len(timing.interleaved(clock.work(), jobs, rounds=99, seconds=19)["a"]) == 10
    assert len(timing.interleaved(clock.work(), jobs, rounds=99, seconds=0)["a"]) == timing.LEAST_ROUNDS
    assert len(timing.interleaved(clock.work(), jobs, rounds=2, seconds=99)["a"]) == 2
