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
    "sampled": "fastdiff's step as `fastdiff.sample` calls it in float32: it also writes the network's next input",
    "avx2": "the same as fastdiff with its instruction set held down to AVX2",
    "scalar": "the same without vector instructions",
    "ungraphed": "a loop of fastdiff's that is not captured as a CUDA graph",
    "triton": "the Triton kernels",
    "cuda": "the CUDA C++ kernels",
    "graph": "a step inside a CUDA graph of 50, as fastdiff chooses",
    "triton-graph": "the same by the Triton kernels",
    "cuda-graph": "the same by the CUDA C++ kernels",
    "fast": "a step with fast normals, as fastdiff chooses",
    "triton-fast": "the same by the Triton kernels",
    "cuda-fast": "the same by the CUDA C++ kernels",
    "eager": "plain torch, as one would write it",
    "compile": "`torch.compile` of eager; it draws noise by a generator of its own",
    "compile-fallback": "the same with `fallback_random`, which keeps torch's generator",
    "compile-overhead": "`torch.compile` of eager with CUDA graphs, as mode `reduce-overhead` has them",
    "diffusers": "the scheduler of diffusers, as a pipeline calls it",
    "diffusers-overhead": "a loop of diffusers whose network is compiled with CUDA graphs",
    "limit": "`x += y` in place: the memory's limit",
    "copy": "a device copy of as many bytes: a GPU memory's limit",
}
LEVELS = {"scalar": 0, "avx2": 1}
FALLBACK, GRAPHS = "fallback_random", "triton.cudagraphs"
# Whose job is compiled, and by which option that is not the default.
COMPILERS = {
    "compile": ("eager", None),
    "compile-fallback": ("eager", FALLBACK),
    "compile-overhead": ("eager", GRAPHS),
    "diffusers-overhead": ("diffusers", GRAPHS),
}


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

    def __call__(self, job: Job, option: str | None = None) -> Job:
        """Return the job compiled for its arguments. Raises Unavailable if time is up or the compiler fails."""
        if self.left <= 0:
            raise Unavailable("the time for compiling is spent")
        start, self._used = time.perf_counter(), True
        # The number of threads is written into the code, so it must be part of what a cache of code looks for.
        options: dict[str, Any] = {"cpp.threads": torch.get_num_threads(), **({option: True} if option else {})}
        compile_ = partial(torch.compile, dynamic=False, options=options)
        function, arguments = job.call.func, job.call.args
        if job.of_network:
            arguments = (compile_(arguments[0]), *arguments[1:])
        else:
            function = compile_(function)
        compiled = replace(job, call=partial(function, *arguments, **job.call.keywords))
        try:
            compiled.call()
        except Exception as error:  # all that a compiler, its tools and their absence may raise
            first_line = str(error).strip().partition("\n")[0]
            raise Unavailable(f"torch.compile failed: {type(error).__name__}: {first_line}") from None
        finally:
            self.left -= time.perf_counter() - start
        return replace(compiled, hides_noise=job.noise is not None and option != FALLBACK)


def make(name: str, work: Work, compiler: Compiler) -> Job | None:
    """Return the job of a peer, or None if the work has no use for that peer. Raises Unavailable."""
    jobs = work.jobs()
    if name in LEVELS:
        return _at_level(jobs["fastdiff"](), LEVELS[name]) if work.device.type == "cpu" else None
    if name in COMPILERS:
        peer, option = COMPILERS[name]
        if peer not in jobs or (option == GRAPHS and work.device.type == "cpu"):
            return None
        job = jobs[peer]()
        wanted = job.of_network == (peer == "diffusers") and (job.noise is not None or option != FALLBACK)
        return compiler(job, option) if wanted else None
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
