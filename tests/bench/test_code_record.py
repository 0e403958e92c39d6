"""The record of generated code keeps the limits, and what the compilers here make of the kernels is no worse."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastdiff.bench.code.__main__ import RECORD, main
from fastdiff.bench.code.cases import cases
from fastdiff.bench.code.limits import misses
from fastdiff.bench.code.record import Record
from fastdiff.bench.code.report import markdown
from fastdiff.bench.code.toolchain import TARGETS

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not in PATH")


@pytest.fixture(scope="module")
def record() -> Record:
    return Record.load(RECORD)


@pytest.mark.parametrize("backend", TARGETS)
def test_the_record_keeps_the_limits(record: Record, backend: str) -> None:
    chosen = [entry for entry in record.entries if entry.backend == backend]
    assert [f"{entry.name}: {miss}" for entry in chosen for miss in misses(entry)] == []


def test_the_record_has_every_case_on_every_target(record: Record) -> None:
    recorded = {(entry.backend, entry.target, entry.case) for entry in record.entries if entry.work}
    assert recorded == {
        (backend, target, case.name) for backend, targets in TARGETS.items() for target in targets for case in cases()
    }


def test_the_table_is_that_of_the_record(record: Record) -> None:
    assert RECORD.with_suffix(".md").read_text() == markdown(record)


def check(cache: Path, backend: str, targets: str, *parts: str) -> None:
    """Compile and compare in a process of its own, in which nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "fastdiff.bench.code", "--check", "--backends", backend, "--targets", targets]
    done = subprocess.run(
        [*command, "--cases", *parts],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env={**environment, "TRITON_CACHE_DIR": str(cache)},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_triton
def test_triton_kernels_are_no_worse(tmp_path: Path) -> None:
    parts = ["ddim eta 1 clipped, guided, bf16", "dpmpp-2m, guided, fp32", "q_sample, bf16", "guidance_rescale, bf16"]
    check(tmp_path, "triton", ",".join(TARGETS["triton"]), *parts)


@needs_nvcc
def test_cuda_kernels_are_no_worse(tmp_path: Path) -> None:
    check(tmp_path, "cuda", "sm_90", "bf16")


def test_a_part_does_not_replace_the_record(capsys: pytest.CaptureFixture[str]) -> None:
    before = RECORD.read_bytes()
    assert main(["--targets", "sm_90"]) == 2
    assert "--out" in capsys.readouterr().err and RECORD.read_bytes() == before


@needs_triton
def test_a_name_that_does_not_exist_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for given in (["--backends", "tritn"], ["--targets", "sm_9"], ["--cases", "ddimm"]):
        assert main(["--check", *given]) == 2
        assert capsys.readouterr().err.count("\n") == 1
