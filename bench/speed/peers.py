"""Every peer by name. Those that a work does not define itself are another one's job, compiled or restricted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from fastdiff.bench.speed.work import Job, Unavailable, Work
from fastdiff.ops import native

# What each does, the one that the others are compared with first.
PEERS = {
    "fastdiff": "what the library calls",
    "dispatched": "the same step as a torch op, `torch.ops.fastdiff.step`",
    "avx2": "the same as fastdiff with its instruction set held down to AVX2",
    "scalar": "the same without vector instructions",
    "eager": "plain torch, as one would write it",
    "compile": "`torch.compile` of eager; it draws noise by a generator of its own",
    "compile-fallback": "the same with `fallback_random`, which keeps torch's generator",
    "diffusers": "the scheduler of diffusers, as a pipeline calls it",
    "limit": "`x += y` in place: the memory's limit",
}
LEVELS = {"scalar": 0, "avx2": 1}
COMPILERS = {"compile": False, "compile-fallback": True}


class Compiler:
    """`torch.compile` with a limit on the seconds that it may take in all.

    Make one `fresh` for each work: torch gives up, silently, on a function that it has compiled for many shapes.
    """

    def __init__(self, seconds: float) -> None:
        self.left = seconds
        self._used = False

    def fresh(self) -> Compiler:
        """Forget what was compiled so far, and return itself."""
        if self._used:
            torch.compiler.reset()
        self._used = False
        return self

    def __call__(self, job: Job, fallback_random: bool) -> Job:
        """Return the job compiled for its arguments. Raises Unavailable if time is up or the compiler fails."""
        if self.left <= 0:
            raise Unavailable("the time for compiling is spent")
        start, self._used = time.perf_counter(), True
        # The number of threads is written into the code, so it must be part of what a cache of code looks for.
        options: dict[str, Any] = {"fallback_random": fallback_random, "cpp.threads": torch.get_num_threads()}
        function = torch.compile(job.call.func, dynamic=False, options=options)
        compiled = replace(job, call=partial(function, *job.call.args, **job.call.keywords))
        try:
            compiled.call()
        except Exception as error:  # all that a compiler, its tools and their absence may raise
            first_line = str(error).strip().partition("\n")[0]
            raise Unavailable(f"torch.compile failed: {type(error).__name__}: {first_line}") from None
        finally:
            self.left -= time.perf_counter() - start
        return replace(compiled, hides_noise=job.noise is not None and not fallback_random)


def make(name: str, work: Work, compiler: Compiler) -> Job | None:
    """Return the job of a peer, or None if the work has no use for that peer. Raises Unavailable."""
    jobs = work.jobs()
    if name in LEVELS:
        return _at_level(jobs["fastdiff"](), LEVELS[name])
    if name in COMPILERS:
        eager = jobs["eager"]()
        wanted = eager.noise is not None or not COMPILERS[name]
        return compiler(eager, COMPILERS[name]) if wanted else None
    return jobs[name]() if name in jobs else None


def _at_level(job: Job, level: int) -> Job:
    """Return fastdiff's job with the kernels held down to an instruction set. Raises Unavailable if it is not here."""
    reason = native.missing()
    if reason is not None:
        raise Unavailable(reason)
    within = partial(_instruction_set, level)
    try:
        with within():
            pass
    except RuntimeError as error:
        raise Unavailable(str(error)) from None
    return replace(job, within=within)


@contextmanager
def _instruction_set(level: int) -> Iterator[None]:
    cpu_level = torch.ops.fastdiff.cpu_level
    before = cpu_level()
    cpu_level(level)
    try:
        yield
    finally:
        cpu_level(before)
