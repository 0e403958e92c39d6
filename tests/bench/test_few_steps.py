"""The benchmark of few steps: its distance, how it counts evaluations and replaced steps, and runs that resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import fastdiff as fd
from fastdiff.bench import few_steps, few_steps_report, wasserstein
from fastdiff.errors import InputError

SAMPLES = {"digits": 20, "mixture": 50}


def test_sliced_distance_of_shifted_samples() -> None:
    """A shift by d moves every projection by d u: on a line that is |d|, in the plane |d| / sqrt(2) on average."""
    x = fd.noise.normal((500, 2), seed=1)
    assert wasserstein.sliced(x[:, :1], x[:, :1] + 3, projections=4) == pytest.approx(3, rel=1e-6)  # float32
    # Directions are drawn: the mean of 4096 values of cos^2, whose deviation is 0.35.
    found = wasserstein.sliced(x, x + torch.tensor([3.0, 4.0]), projections=4096)
    assert found == pytest.approx(5 / math.sqrt(2), rel=5 * 0.35 / 64)
    assert wasserstein.sliced(x, x.flip(0)) == 0


def test_replaced_steps() -> None:
    """Where DDIM's error is 1 / n, an error of 1 / 30 at 10 evaluations replaces 30 steps."""
    baseline = {5: 1 / 5, 10: 1 / 10, 20: 1 / 20, 50: 1 / 50}
    assert few_steps_report.replaced({10: 1 / 30}, baseline, 10) == pytest.approx(30)
    assert few_steps_report.replaced({10: 1 / 60}, baseline, 10) == math.inf
    assert few_steps_report.replaced({10: 1 / 4}, baseline, 10) == 0
    # What the baseline reached and lost again by chance was reached.
    noisy = {**baseline, 15: 1 / 9, 20: 1 / 8}
    assert few_steps_report.replaced({10: 1 / 10}, noisy, 10) == pytest.approx(10)
    assert few_steps_report.replaced({10: 1 / 25}, noisy, 10) == pytest.approx(25)


def test_incomplete_rows_are_ranked_last() -> None:
    """A sampler that has numbers only where all do well is not the best."""
    cells = [
        {"problem": "mixture", "sampler": sampler, "spacing": spacing, "nfe": nfe, "distance": distance}
        for sampler, spacing, numbers in [
            ("heun", "trailing", {10: 0.1}),
            ("heun", "karras", {5: 0.9, 10: 0.2}),
            ("ddim", "karras", {5: 0.8, 10: 0.2}),
            ("restart", "karras", {10: 0.01}),
        ]
        for nfe, distance in numbers.items()
    ]
    best = few_steps_report.best_spacings({"cells": cells}, "mixture", "distance")
    assert [(sampler, spacing) for sampler, (spacing, _) in best.items()] == [
        ("ddim", "karras"),
        ("heun", "karras"),
        ("restart", "karras"),
    ]


class Named:
    """A problem whose network nobody asks."""

    def plan(self, sampler, **options):
        return fd.samplers.make(sampler, fd.schedules.linear(100), **options)


@pytest.mark.parametrize("evaluations", [1, 5, 8])
def test_most_steps_within_a_number_of_evaluations(evaluations: int) -> None:
    """DDIM takes one a step, Heun two but for the last one."""
    assert few_steps.largest(Named(), "ddim", evaluations).nfe == evaluations
    assert few_steps.largest(Named(), "heun", evaluations).nfe == evaluations - (evaluations % 2 == 0)


def test_what_is_left_out_exists() -> None:
    """Each name that is left out is a sampler's, and the rest is compared."""
    assert set(few_steps.LEFT_OUT) <= set(fd.samplers.SAMPLERS)
    assert {*few_steps.compared(), *few_steps.LEFT_OUT} == set(fd.samplers.SAMPLERS)


def test_a_run_resumes_and_renders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished cells are kept, missing ones measured again, another setup refused; the table names every sampler."""
    monkeypatch.setattr(few_steps, "compared", lambda: ["ddim", "heun"])
    monkeypatch.setattr(few_steps, "EVALUATIONS", (1, 2))
    monkeypatch.setattr(few_steps, "EXACT_STEPS", 3)
    monkeypatch.setattr(few_steps, "SPACINGS", {name: {"exponential": {}} for name in SAMPLES})
    results = few_steps.run(tmp_path, SAMPLES)
    assert len(results["cells"]) == 2 * 2 * 2
    path = tmp_path / few_steps_report.JSON
    kept = json.loads(path.read_text())
    lost = kept["cells"].pop(3)
    kept["cells"][0]["seconds"] = -1.0  # to be known again
    path.write_text(json.dumps(kept))
    resumed = few_steps.run(tmp_path, SAMPLES, resume=True)
    assert resumed["cells"][0]["seconds"] == -1.0
    again = next(cell for cell in resumed["cells"] if all(cell[key] == lost[key] for key in few_steps_report.KEYS))
    assert {**again, "seconds": 0} == {**lost, "seconds": 0}
    with pytest.raises(InputError, match="cannot resume"):
        few_steps.run(tmp_path, {**SAMPLES, "mixture": 51}, resume=True)
    for written in few_steps_report.render(resumed, tmp_path):
        assert written.stat().st_size
    text = (tmp_path / few_steps_report.MARKDOWN).read_text()
    assert text.count("| heun | exponential |") == sum(map(len, few_steps_report.MEASURES.values()))
