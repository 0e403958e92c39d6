"""The benchmark of a pipeline's step: its ways agree, it finds one that does not, and it counts what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fastdiff.bench.pipelines import __main__ as command
from fastdiff.bench.pipelines import case, measure, report

SHAPE = (2, 4, 8, 8)


def tiny(scheduler: str = "DDIMScheduler") -> case.Case:
    return case.Case(scheduler, SHAPE, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("scheduler", case.SCHEDULERS)
def test_the_ways_agree(scheduler: str) -> None:
    assert measure.check(tiny(scheduler)) < measure.TOLERANCE[torch.float32]


def test_a_wrong_way_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny()
    run = found.run
    monkeypatch.setattr(found, "run", lambda way, *steps: run(way, *steps) * (1.001 if way == "loop" else 1))
    with pytest.raises(measure.Mismatch, match="no speed is reported"):
        measure.check(found)


def test_a_way_that_is_not_finite_has_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    found = tiny()
    run = found.run
    monkeypatch.setattr(found, "run", lambda way, *steps: run(way, *steps) * (torch.nan if way == "accelerate" else 1))
    with pytest.raises(measure.Mismatch, match="no speed is reported"):
        measure.check(found)


def test_values_read() -> None:
    """Ours read none in a step, however it is run; diffusers' DDIM compares the timestep."""
    found = measure.reads(tiny())
    assert found["accelerate"] == found["loop"] == 0 and found["diffusers"] >= 1


def test_a_step_is_the_difference_of_two_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a call costs once falls out: 1 s, with 3 ms a step for diffusers and 1 ms for the others."""

    def timed(found: Any, way: str, steps: int) -> dict[str, float]:
        taken = 1 + steps * (0.003 if way == "diffusers" else 0.001)
        return {"host": taken, "device": taken / 2}

    monkeypatch.setattr(measure, "_timed", timed)
    found = measure.seconds(tiny(), rounds=3)
    assert found["diffusers"] == pytest.approx({"host": 0.003, "device": 0.0015})
    assert found["loop"] == pytest.approx({"host": 0.001, "device": 0.0005})


def test_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One small case, measured, written and read back; a table of a GPU has its clocks too."""
    monkeypatch.setattr(command, "SHAPES", [SHAPE])
    monkeypatch.setattr(command, "SCHEDULERS", ["EulerDiscreteScheduler"])
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    app = command.typer.Typer()
    app.command()(command.main)
    result = CliRunner().invoke(app, ["--out", str(tmp_path), "--rounds", "1"])
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "pipelines.json").read_text())
    text = (tmp_path / "pipelines.md").read_text()
    assert "| EulerDiscreteScheduler | 2x4x8x8 | float32 |" in text and "device us" not in text
    on_gpu = report.markdown({**results, "device": "cuda"})
    assert "loop, device us" in on_gpu and "loop, waits" in on_gpu
