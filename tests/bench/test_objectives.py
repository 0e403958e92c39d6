"""The benchmark of objectives: runs that go on, numbers that are kept with their weights, and what they are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from threadpoolctl import threadpool_limits

from fastdiff import checkpoint as checkpoints
from fastdiff.bench import quality
from fastdiff.bench.objectives import __main__ as command
from fastdiff.bench.objectives import cells, measure, report, runs
from fastdiff.errors import InputError
from fastdiff.train.trainer import Trainer

IMAGES = 60  # of each split, all classes among them


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of two steps of the smallest networks, few images, and no pictures."""
    images = measure._images

    def few(split: str, size: int) -> quality.Split:
        return quality.Split(*(part[:IMAGES] for part in images(split, size)))

    short: dict[str, Any] = {"width": 4, "steps": 2, "batch": 4, "warmup": 0, "save_every": 1}
    monkeypatch.setattr(runs, "BASE", replace(runs.BASE, T=8, **short))
    monkeypatch.setattr(runs, "AUTOENCODER", replace(runs.AUTOENCODER, **short))
    monkeypatch.setattr(runs, "STEPS_OF_EQUAL_TIME", 1)
    monkeypatch.setattr(cells, "REPEATED", ("simple",))
    for name in ("DDIM", "DDPM", "DDPM_100", "SOLVER", "SOLVER_OF_SIGMAS", "LANGEVIN"):
        monkeypatch.setitem(getattr(cells, name), "steps", 2)
    monkeypatch.setattr(measure, "_images", few)
    monkeypatch.setattr(measure, "EPOCHS", 1)
    monkeypatch.setattr(quality, "COPIER_REPEATS", 1)
    monkeypatch.setattr(measure, "TIMED_STEPS", (1, 2))
    monkeypatch.setattr(Trainer, "_draw_samples", lambda self: None)
    measure.digits.cache_clear()
    with threadpool_limits(1):  # more threads do not pay for so few images
        yield
    measure.digits.cache_clear()


def bench(folder: Path, tables: str = ",".join(cells.TABLES), **options: bool) -> dict[str, Any]:
    command.main(out=folder, runs=folder / "runs", tables=tables, **options)
    found: dict[str, Any] = json.loads((folder / report.JSON).read_text())
    return found


def test_everything_is_trained_measured_and_written(tiny: None, tmp_path: Path) -> None:
    """Each cell has its numbers, and the Markdown a number for each cell of its tables."""
    results = bench(tmp_path)
    wanted = [cell for table in cells.TABLES.values() for cell in table()]
    assert len(results["cells"]) == len(wanted)
    for row in results["cells"]:
        if "frechet" in row:
            assert row["frechet"]["pixel"] > 0 and row["frechet"]["feature"] > 0
            assert 0 <= row["agreement"] <= 1 and row["spread"] > 0
    text = (tmp_path / report.MARKDOWN).read_text()
    for line in text.splitlines():
        assert "|  |" not in line or line.startswith(f"| {report.TITLES['vae']}")
    assert (tmp_path / report.FIGURE).stat().st_size


def test_numbers_are_kept_with_their_weights(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second call measures nothing; where a run's weights are others, its cells alone are measured again."""
    first = bench(tmp_path, "scores")
    monkeypatch.setitem(measure.MEASURES, "samples", lambda *args, **options: {"again": True})
    assert bench(tmp_path, "scores", train_only=True) == first
    path = tmp_path / report.JSON
    path.write_text(
        json.dumps(
            first
            | {"cells": [row | ({"weights": ["others"]} if row["run"] == "ncsn" else {}) for row in first["cells"]]}
        )
    )
    monkeypatch.setattr(report, "render", lambda results, out: [])
    second = bench(tmp_path, "scores")
    assert len(second["cells"]) == len(first["cells"])
    assert all(row.get("again", False) == (row["run"] == "ncsn") for row in second["cells"])
    assert [row for row in second["cells"] if row["run"] != "ncsn"] == [r for r in first["cells"] if r["run"] != "ncsn"]


def test_interrupted_run_goes_on(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the weights of a run that was not interrupted, and is then left alone."""
    whole = runs.trained(tmp_path / "whole", "simple", 0)
    advance = Trainer._advance

    def once(self: Trainer, batch: Any) -> Any:
        if self.step == 1:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_advance", once)
        with pytest.raises(KeyboardInterrupt):
            runs.trained(tmp_path / "stopped", "simple", 0)
    resumed = runs.trained(tmp_path / "stopped", "simple", 0)
    assert (resumed / checkpoints.WEIGHTS).read_bytes() == (whole / checkpoints.WEIGHTS).read_bytes()
    monkeypatch.setattr(Trainer, "__init__", lambda self, *args, **options: pytest.fail("a finished run was opened"))
    assert runs.trained(tmp_path / "stopped", "simple", 0) == resumed


def test_finished_run_of_other_settings_is_refused(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that was changed must not be filled from the runs of the old one."""
    runs.trained(tmp_path, "simple", 0)
    monkeypatch.setattr(runs, "BASE", replace(runs.BASE, lr=0.5))
    with pytest.raises(InputError, match="cannot resume: lr was 0.001, now 0.5"):
        runs.trained(tmp_path, "simple", 0)


def test_budget_is_equal() -> None:
    """Runs that one table compares have the same network, steps, batch and learning rate."""
    budget = ("data", "width", "multipliers", "blocks", "attention", "steps", "batch", "lr", "warmup", "ema", "dropout")
    found = runs.runs(Path())
    for names in (cells.VARIANCES, cells.SAMPLERS_OF_SCORES, ("simple", "classifier", "latent")):
        assert len({tuple(getattr(found[name], key) for key in budget) for name in names}) == 1


def test_spread_of_a_class() -> None:
    """The mean distance of its pairs: for the corners of a square of side 1, (4 + 2 sqrt(2)) / 6, at any scale."""
    square = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    x = torch.cat([square * (label + 1) for label in range(10)])
    found = measure.spread(x, torch.arange(10).repeat_interleave(4))
    assert found == pytest.approx((4 + 2 * math.sqrt(2)) / 6 * 5.5, rel=1e-6)


def test_large_images_are_judged_by_their_averages() -> None:
    """An image of 32 x 32 in which every pixel of 8 x 8 stands 16 times is that image."""
    x = torch.rand(3, 1, 8, 8)
    large = x.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    torch.testing.assert_close(measure.averaged(large), x)
    assert torch.equal(measure.averaged(x), x)


def test_unknown_table_costs_one_line(tmp_path: Path) -> None:
    """With the nearest name, before anything is trained."""
    with pytest.raises(SystemExit, match="error: unknown table 'scorse': did you mean 'scores'"):
        command.main(out=tmp_path, runs=tmp_path, tables="scorse")
    with pytest.raises(SystemExit, match="error: .*holds no results"):
        command.main(out=tmp_path, runs=tmp_path, render_only=True)
    assert not any(tmp_path.iterdir())
