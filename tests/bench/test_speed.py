"""Every case of `fastdiff bench` in a small size: each peer's result is right, and pytest-benchmark can time it.

    pytest tests/bench/test_speed.py --benchmark-enable --benchmark-group-by=param:case,param:dtype

Without that option each runs once, and nothing depends on how fast it is.
"""

from __future__ import annotations

import sys
from itertools import product
from types import ModuleType
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import fastdiff as fd
from fastdiff.bench.speed import peers, samplers
from fastdiff.bench.speed.cases import CASES, DTYPES, STEP_CASES
from fastdiff.bench.speed.equality import check
from fastdiff.bench.speed.work import Unavailable, Work
from fastdiff.ops import native
from tests.backends import needs_extension

SHAPE = (2, 3, 8, 8)
# Two libraries warn about themselves: diffusers' DPM-Solver on setting its timesteps, torch on importing its compiler.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]


def work_of(case: str, dtype: str) -> Work:
    return CASES[case].work(CASES[case].shape or SHAPE, DTYPES[dtype])


@pytest.mark.parametrize(
    ("case", "dtype", "peer"),
    [(case, dtype, peer) for case, dtype in product(STEP_CASES, DTYPES) for peer in work_of(case, dtype).jobs()],
)
def test_case(benchmark: BenchmarkFixture, case: str, dtype: str, peer: str) -> None:
    """The result is right; only then is it timed."""
    work = work_of(case, dtype)
    with torch.set_grad_enabled(work.gradients):
        job = work.jobs()[peer]()
        check(work, job)
        benchmark.pedantic(job.call, setup=work.restore, rounds=100, warmup_rounds=5)


@pytest.mark.parametrize("case", ["ddim-cfg", "ddpm", "noise_loss"])
def test_compiled_peers(case: str) -> None:
    """torch.compile gives the same result, but for noise of its own, which has the right moments."""
    work, compiler = work_of(case, "bfloat16"), peers.Compiler(seconds=600)
    with torch.set_grad_enabled(work.gradients):
        for name in peers.COMPILERS:
            job = peers.make(name, work, compiler)
            on_cpu = peers.COMPILERS[name][1] != peers.GRAPHS
            assert (job is None) == (not on_cpu or (name == "compile-fallback" and case != "ddpm"))
            if job is not None:
                assert job.hides_noise == (name == "compile" and case == "ddpm")
                check(work, job)


@needs_extension
@pytest.mark.parametrize("level", peers.LEVELS)
def test_instruction_set_is_held_down_for_the_call_alone(level: str) -> None:
    """The job runs at its level, gives the same result, and leaves the kernels at theirs."""
    cpu_level = torch.ops.fastdiff.cpu_level
    before = cpu_level()
    work = work_of("ddpm", "float32")
    job = peers.make(level, work, peers.Compiler(seconds=0))
    assert job is not None
    check(work, job)
    with job.within():
        assert cpu_level() == peers.LEVELS[level]
    assert cpu_level() == before


def test_missing_peers_say_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each gives its reason: no diffusers, a broken one, no time to compile, a compiler that fails, no kernels."""
    work = work_of("ddim", "float32")

    def make(name: str, seconds: float = 1) -> None:
        peers.make(name, work, peers.Compiler(seconds))

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(Unavailable, match="diffusers cannot be imported"):
        make("diffusers")
    monkeypatch.setitem(sys.modules, "diffusers", Broken("diffusers"))
    with pytest.raises(Unavailable, match="diffusers cannot be imported \\(Failed to import diffusers.schedulers\\)"):
        make("diffusers")
    with pytest.raises(Unavailable, match="the time for compiling is spent"):
        make("compile", seconds=0)

    def compile_badly(*arguments: Any, **options: Any) -> Any:
        def function(*arguments: Any) -> None:
            raise RuntimeError("no working C++ compiler\nand many more lines")

        return function

    monkeypatch.setattr(torch, "compile", compile_badly)
    with pytest.raises(Unavailable, match="^torch.compile failed: RuntimeError: no working C\\+\\+ compiler$"):
        make("compile")
    monkeypatch.setattr(native, "missing", lambda: "the C++ extension is not built")
    with pytest.raises(Unavailable, match="not built"):
        make("avx2")


class Broken(ModuleType):
    """A package that imports its parts when they are asked for, which fails."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("Failed to import diffusers.schedulers\nbecause of something else")


def test_plan_of_dpmpp_2m_follows_diffusers() -> None:
    """The whole loop, of first order in its first and last row, ends where diffusers' does.

    Its state is float32, ours float64: measured 1.5e-7 of the largest value.
    """
    plan = samplers.dpmpp_2m_plan(10)
    scheduler = samplers.scheduler("DPMSolverMultistepScheduler", {})
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == plan.t.tolist()
    start = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x + t.view(-1, 1, 1, 1) / 1000)

    theirs = start
    for t in scheduler.timesteps:
        theirs = scheduler.step(network(theirs, t.float().expand(len(theirs))), t, theirs).prev_sample
    ours = fd.sample(network, plan, SHAPE, x_init=start.double(), dtype=torch.float64)
    assert (ours - theirs).abs().max() < 1e-6 * theirs.abs().max()
