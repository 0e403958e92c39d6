"""The runner: for each case, shape, dtype and number of threads it checks every peer, then lets them take turns."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch

from fastdiff import system
from fastdiff.bench import machine
from fastdiff.bench.speed import memory, peers
from fastdiff.bench.speed.cases import CASES, DTYPES, SHAPES, STEP_CASES, Shape
from fastdiff.bench.speed.equality import check
from fastdiff.bench.speed.results import Entry, Results, Spread, Timing
from fastdiff.bench.speed.timing import interleaved
from fastdiff.bench.speed.work import CPU, Job, Unavailable, Work, WrongResult
from fastdiff.errors import InputError, lookup
from fastdiff.ops import dispatch, native

EVERY_PEER = "every peer"  # what an entry calls them where none could be timed


@dataclass(frozen=True)
class Settings:
    """What to measure and for how long.

    Attributes:
        cases, shapes, dtypes, threads, peers: every combination; a case that has a shape of its own takes that alone.
        device: where.
        rounds: how often each peer is timed.
        seconds: after which an entry begins no further round, once it has a few.
        compile_seconds: what `torch.compile` may take in the whole run.

    Raises:
        InputError: a name is unknown, a shape has not four sizes, or a number is below 1.
    """

    cases: Sequence[str] = STEP_CASES
    shapes: Sequence[Shape] = SHAPES
    dtypes: Sequence[str] = tuple(DTYPES)
    threads: Sequence[int] = (1,)
    peers: Sequence[str] = tuple(peers.PEERS)
    device: torch.device = CPU
    rounds: int = 51
    seconds: float = 10.0
    compile_seconds: float = 1800.0

    def __post_init__(self) -> None:
        for kind, names, known in (
            ("case", self.cases, CASES),
            ("dtype", self.dtypes, DTYPES),
            ("peer", self.peers, peers.PEERS),
        ):
            for name in names:
                lookup(kind, name, known)
        if any(len(shape) != 4 for shape in self.shapes):
            raise InputError("shapes must have four sizes: batch, channels, height, width")
        if min([*self.threads, self.rounds, *(size for shape in self.shapes for size in shape)]) < 1:
            raise InputError("threads, rounds and the sizes of shapes must be at least 1")

    def entries(self) -> list[tuple[str, Shape, str, int]]:
        """Return case, shape, dtype and threads of everything to measure."""
        own = {name: CASES[name].shape for name in self.cases}
        found = [
            (name, own[name] or shape, dtype, threads)
            for threads, name, shape, dtype in product(self.threads, self.cases, self.shapes, self.dtypes)
        ]
        return list(dict.fromkeys(found))


QUICK = Settings(
    shapes=((1, 4, 64, 64),),
    peers=tuple(name for name in peers.PEERS if not name.startswith("compile")),
    rounds=5,
    seconds=0.5,
)


def run(parts: Sequence[Settings], path: Path, report: Callable[[Entry], None], seconds: float = math.inf) -> Results:
    """Measure; as soon as an entry is there, write the results so far to `path` and `report` it.

    The parts are on one device. After `seconds` no further entry is begun; the results name those that are left out.
    The file holds this run from the beginning on, before its first entry too.
    """
    device, end = parts[0].device, time.perf_counter() + seconds
    results = Results(machine.now(), machine.describe(device), _versions(), _backend(device), device=device.type)
    results.save(path)
    threads_before = torch.get_num_threads()
    try:
        for settings in parts:
            compiler = peers.Compiler(settings.compile_seconds)
            for name, shape, dtype, threads in settings.entries():
                if time.perf_counter() > end:
                    results.unmeasured.append(f"{name} {'x'.join(map(str, shape))} {dtype}")
                    continue
                torch.set_num_threads(threads)
                entry = measure(name, shape, dtype, settings, compiler)
                results.entries.append(entry)
                results.save(path)
                report(entry)
    finally:
        torch.set_num_threads(threads_before)
    results.save(path)
    return results


def measure(name: str, shape: Shape, dtype: str, settings: Settings, compiler: peers.Compiler) -> Entry:
    """Check and time every peer with the threads that are set. What ends that early stands in the entry."""
    entry = Entry(name, shape, dtype, torch.get_num_threads(), math.prod(shape), 0, {}, {}, {})
    try:
        work = CASES[name].work(shape, DTYPES[dtype], settings.device)
        entry = replace(entry, traffic=work.traffic)
        with torch.set_grad_enabled(work.gradients):
            jobs = _checked(work, settings.peers, compiler.fresh(), entry)
            if work.memory:
                entry.bytes.update({peer: memory.peak(work, job) for peer, job in jobs.items()})
            times = interleaved(work, jobs, settings.rounds, settings.seconds)
        ours = times.get("fastdiff")
        entry.timings.update({peer: _timing(theirs, ours) for peer, theirs in times.items()})
    except Exception as error:  # of a device that failed, for example: the other entries have their turn
        entry.wrong[EVERY_PEER] = _said(error)
    return entry


def _checked(work: Work, names: Sequence[str], compiler: peers.Compiler, entry: Entry) -> dict[str, Job]:
    """Return the jobs whose results are right; note in the entry why others are missing, or what is wrong."""
    jobs: dict[str, Job] = {}
    for name in names:
        try:
            job = peers.make(name, work, compiler)
            if job is not None:
                check(work, job)
                jobs[name] = job
        except Unavailable as error:
            entry.missing[name] = str(error)
        except Exception as error:  # whatever a peer may raise, the others are measured
            entry.wrong[name] = _said(error)
    return jobs


def _said(error: Exception) -> str:
    first_line = str(error).strip().partition("\n")[0]
    return first_line if isinstance(error, WrongResult) else f"it failed: {type(error).__name__}: {first_line}"


def _timing(theirs: list[float], ours: list[float] | None) -> Timing:
    ratios = None if ours is None else Spread.of([their / our for their, our in zip(theirs, ours, strict=True)])
    return Timing(Spread.of(theirs), ratios, len(theirs))


def _backend(device: torch.device) -> str:
    name, instructions = dispatch.resolve("auto", device), native.instruction_set()
    return f"{name} ({instructions})" if name == "cpu" else name


def _versions() -> dict[str, str]:
    installed = {name: version for name, version in system.info().versions.items() if version is not None}
    return {"python": platform.python_version(), **installed}
