"""Time and waits of a step, from pipelines of two lengths: what a call costs once falls out of the difference."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.bench.pipelines.case import STEPS, WAYS, Case
from fastdiff.errors import FastdiffError

FEW = 10
# Both compute in the latents' dtype, from coefficients that round in other places: 50 steps of float32, or of bf16.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.05}


class Mismatch(FastdiffError):
    """Two ways to run a pipeline gave different images, so that neither's speed means anything."""


def check(case: Case) -> float:
    """Return the largest error of any way, relative to diffusers' latents. Raises Mismatch beyond the tolerance."""
    expected = case.run("diffusers").double()
    errors = {way: float((case.run(way).double() - expected).abs().max() / expected.abs().max()) for way in WAYS}
    for way, error in errors.items():
        if not error <= TOLERANCE[case.latents.dtype]:
            raise Mismatch(f"{way} differs from diffusers by {error:.1e}: no speed is reported")
    return max(errors.values())


def seconds(case: Case, rounds: int) -> dict[str, dict[str, float]]:
    """Return the host's and the device's time of a step in each way, medians of rounds in which the ways take turns.

    The host's ends when the call returns; on a CPU the two are the same.
    """
    found: dict[str, dict[str, list[float]]] = {way: {"host": [], "device": []} for way in WAYS}
    for number in range(rounds):
        for way in WAYS[number % len(WAYS) :] + WAYS[: number % len(WAYS)]:
            many, few = _timed(case, way, STEPS), _timed(case, way, FEW)
            for clock in ("host", "device"):
                found[way][clock].append((many[clock] - few[clock]) / (STEPS - FEW))
    return {way: {clock: median(times) for clock, times in clocks.items()} for way, clocks in found.items()}


def _timed(case: Case, way: str, steps: int) -> dict[str, float]:
    cuda = case.latents.device.type == "cuda"
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if cuda else []  # type: ignore[no-untyped-call]
    if cuda:
        torch.cuda.synchronize()
        events[0].record()
    start = time.perf_counter()
    case.run(way, steps)
    host = time.perf_counter() - start
    if not cuda:
        return {"host": host, "device": host}
    events[1].record()
    events[1].synchronize()
    return {"host": host, "device": events[0].elapsed_time(events[1]) / 1e3}


def reads(case: Case) -> dict[str, float]:
    """Return how often a step's host code reads the value of a tensor, in each way.

    On CUDA these are the times that it waits for the device, as torch itself reports them. On a CPU nothing waits;
    they are all reads of a value, of which those of tensors that would be on the device would wait.
    """
    count = _waits if case.latents.device.type == "cuda" else _values
    many, few = ({way: count(partial(case.run, way, steps)) for way in WAYS} for steps in (STEPS, FEW))
    return {way: (many[way] - few[way]) / (STEPS - FEW) for way in WAYS}


def _waits(call: Callable[[], Any]) -> int:
    with warnings.catch_warnings(record=True) as caught, _reported():
        warnings.simplefilter("always")
        call()
    return sum("synchronizing" in str(warning.message) for warning in caught)


@contextmanager
def _reported() -> Any:
    torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


class _Values(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what asks for a value: a number of a tensor, or how many elements are not 0."""

    count: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return func(*args, **(kwargs or {}))


def _values(call: Callable[[], Any]) -> int:
    values = _Values()  # type: ignore[no-untyped-call]
    with values:
        call()
    return int(values.count)
