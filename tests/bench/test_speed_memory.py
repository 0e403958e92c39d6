"""What `fastdiff bench` counts as memory: the peak of a call's own allocations."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fastdiff.bench.speed import memory, report, run
from fastdiff.bench.speed.cases import CASES
from fastdiff.bench.speed.results import Entry, Results
from fastdiff.bench.speed.work import Job
from tests.backends import needs_extension

SHAPE = (2, 3, 64, 64)
IMAGE = 4 * 2 * 3 * 64 * 64  # bytes of a float32 batch
WORK = CASES["train-step"].work(SHAPE, torch.float32)


def three_at_once(x: Tensor) -> Tensor:
    """Of four images that it makes, it holds three at a time: two of them are gone before the last."""
    first, second = x + 1, x + 2
    third = first * second
    del first, second
    return third + 1


def test_peak() -> None:
    """Counted exactly, and not what was there before."""
    job = Job(partial(three_at_once, torch.zeros(SHAPE)), lambda found: {}, lambda z: {})
    assert memory.peak(WORK, job) == 3 * IMAGE


@needs_extension
def test_a_training_step_holds_its_input_and_its_gradient() -> None:
    """fastdiff makes nothing else of an image's size; plain torch holds noise, target and what it takes to make it."""
    with torch.enable_grad():
        peaks = {peer: memory.peak(WORK, make()) / IMAGE for peer, make in WORK.jobs().items()}
    # Beside images there are numbers for each sample: some hundred bytes.
    assert peaks["fastdiff"] == pytest.approx(2, abs=0.02)
    assert peaks["eager"] == pytest.approx(5, abs=0.02)


@needs_extension
def test_measured_reported_and_kept(tmp_path: Path) -> None:
    """An entry of such a case has the bytes of its peers; they stand in the table and survive the file."""
    brief = replace(run.QUICK, cases=("train-step",), shapes=(SHAPE,), dtypes=("float32",), peers=("fastdiff", "eager"))
    entries: list[Entry] = []
    results = run.run([replace(brief, rounds=1)], tmp_path / "it.json", entries.append)
    assert not entries[0].wrong and sorted(entries[0].bytes) == ["eager", "fastdiff"]
    assert Results.load(tmp_path / "it.json").entries == results.entries
    table = report.markdown(results, tmp_path / "it.json", None)
    assert "## Memory" in table and "| train-step | 2x3x64x64 | float32 | 0.197 MB | 2 | 2.5 |" in table
