"""Times of peers that take turns in one process, so that a machine's good and bad moments fall on all of them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from fastdiff.bench.speed.work import Job, Work

# What a sample fills: beside it a clock's own 0.1 us, or the 5 us until a GPU begins, are nothing.
SAMPLE_NS = {"cpu": 200_000, "cuda": 1_000_000}
LEAST_ROUNDS = 5
WAKE_SECONDS = 0.3  # of work until an idle GPU has raised its clocks


def interleaved(work: Work, jobs: Mapping[str, Job], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Time every job once a round; return the time of its work in ns, by job, a number for each round.

    A sample is as many calls as fill SAMPLE_NS, found by a warm-up. The state is restored before each sample, outside
    of its time. The order moves on by one every round. After `seconds` no more than LEAST_ROUNDS are begun.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    if not jobs:
        return times
    with _no_garbage_collection():
        if work.device.type == "cuda":
            _wake(work, next(iter(jobs.values())))
        calls = {name: _calls(work, job) for name, job in jobs.items()}
        end = time.perf_counter() + seconds
        for number in range(rounds):
            if number >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for name in _rotated(list(jobs), number):
                times[name].append(_sample(work, jobs[name], calls[name]) / (calls[name] * jobs[name].repeats))
    return times


def _wake(work: Work, job: Job) -> None:
    end = time.perf_counter() + WAKE_SECONDS
    while time.perf_counter() < end:
        _calls(work, job)


def _sample(work: Work, job: Job, calls: int) -> float:
    """Return the ns that some calls take together."""
    work.restore()
    with job.within():
        return (_ns_on_gpu if work.device.type == "cuda" else _ns_on_cpu)(job.call, calls)


def _ns_on_cpu(call: Callable[[], object], calls: int) -> int:
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return time.perf_counter_ns() - start


def _ns_on_gpu(call: Callable[[], object], calls: int) -> float:
    """Return the time on the GPU's own clock, gaps included: where the host is slower than the GPU, it counts."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) * 1e6


def _calls(work: Work, job: Job) -> int:
    """Return how many calls fill a sample, from samples that double until one does."""
    calls, wanted = 1, SAMPLE_NS[work.device.type]
    while (taken := _sample(work, job, calls)) < wanted:
        calls *= 2
    return max(1, math.ceil(calls * wanted / taken))


def _rotated(names: list[str], by: int) -> list[str]:
    by %= len(names)
    return names[by:] + names[:by]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
