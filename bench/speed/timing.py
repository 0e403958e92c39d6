"""Times of peers that take turns in one process, so that a machine's good and bad moments fall on all of them alike."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from fastdiff.bench.speed.work import Job, Work

SAMPLE_NS = 200_000  # the clock's own 0.1 us is nothing beside it
LEAST_ROUNDS = 5


def interleaved(work: Work, jobs: Mapping[str, Job], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Time every job once a round; return the time of one call in ns, by job, a number for each round.

    A sample is as many calls as fill SAMPLE_NS, found by a warm-up. The state is restored before each sample, outside
    of its time. The order moves on by one every round. After `seconds` no more than LEAST_ROUNDS are begun.
    """
    times: dict[str, list[float]] = {name: [] for name in jobs}
    with _no_garbage_collection():
        calls = {name: _calls(work, job) for name, job in jobs.items()}
        end = time.perf_counter() + seconds
        for number in range(rounds):
            if number >= LEAST_ROUNDS and time.perf_counter() > end:
                break
            for name in _rotated(list(jobs), number):
                times[name].append(_sample(work, jobs[name], calls[name]) / calls[name])
    return times


def _sample(work: Work, job: Job, calls: int) -> int:
    """Return the ns that some calls take together."""
    work.restore()
    call = job.call
    with job.within():
        start = time.perf_counter_ns()
        for _ in range(calls):
            call()
        return time.perf_counter_ns() - start


def _calls(work: Work, job: Job) -> int:
    """Return how many calls fill SAMPLE_NS, from samples that double until one fills it."""
    calls = 1
    while (taken := _sample(work, job, calls)) < SAMPLE_NS:
        calls *= 2
    return max(1, math.ceil(calls * SAMPLE_NS / taken))


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
