"""Quality: distances against closed forms and brute force, a judge that repeats itself, and runs that resume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff import models, pictures
from fastdiff.bench import classifier, frechet, neighbours, quality, quality_report
from fastdiff.errors import InputError

# --- Frechet distance


def rotation(dimensions: int) -> frechet.Floats:
    """A random orthogonal matrix."""
    q: frechet.Floats = np.linalg.qr(np.random.default_rng(dimensions).standard_normal((dimensions, dimensions)))[0]
    return q


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("spread", [[0.5, 2.0, 3.0], [0.0, 0.0, 4.0], [1e-8, 1.0, 1e4]], ids=["full", "flat", "wide"])
def test_frechet_of_gaussians_that_share_their_axes(spread: list[float], rotated: bool) -> None:
    """With common axes it is `|m1 - m2|^2 + |s1 - s2|^2`, s the standard deviations along them."""
    first, second, gap = np.array(spread), np.array([1.0, 0.0, 2.0]), np.array([1.0, -2.0, 0.5])
    turn = rotation(3) if rotated else np.eye(3)
    covariances = [turn @ np.diag(s**2) @ turn.T for s in (first, second)]
    found = frechet.between_gaussians(gap, covariances[0], np.zeros(3), covariances[1])
    assert found == pytest.approx(gap @ gap + ((first - second) ** 2).sum(), rel=1e-9)


def test_frechet_of_gaussians_with_different_axes() -> None:
    """In two dimensions `tr (A B)^(1/2) = sqrt(tr A B + 2 sqrt(det A det B))`."""
    a, b = np.array([[2.0, 0.3], [0.3, 0.5]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    overlap = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a) * np.linalg.det(b)))
    found = frechet.between_gaussians(np.zeros(2), a, np.zeros(2), b)
    assert found == pytest.approx(np.trace(a + b) - 2 * overlap, rel=1e-12)


def test_frechet_of_a_line_and_a_full_gaussian() -> None:
    """For `A = u u^T`, `tr (A B)^(1/2) = sqrt(u^T B u)`."""
    u, turn = np.array([1.0, 2.0, -1.0, 0.5]), rotation(4)
    a, b = np.outer(u, u), turn @ np.diag([0.1, 1.0, 2.0, 5.0]) @ turn.T
    found = frechet.between_gaussians(np.zeros(4), a, np.zeros(4), b)
    assert found == pytest.approx(u @ u + 8.1 - 2 * np.sqrt(u @ b @ u), rel=1e-7)


def test_frechet_of_samples() -> None:
    """It is 0 from a set to itself, in any order and precision, and the squared shift to a shifted one."""
    x = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float32)
    x[:, 2] = -1  # as the border of a digit
    shift = np.array([3.0, 0, 0, 0, 4.0, 0])
    assert frechet.distance(x, x[::-1]) == pytest.approx(0, abs=1e-9)
    assert frechet.distance(x, x.astype(np.float64) + shift) == pytest.approx(25, rel=1e-9)


# --- nearest neighbours


def test_nearest_is_brute_force() -> None:
    x, reference = torch.randn(13, 1, 8, 8), torch.randn(70, 1, 8, 8)
    reference[41] = x[5]
    distances, index = neighbours.nearest(x, reference)
    gaps = x.double().numpy()[:, None] - reference.double().numpy()
    every = np.sqrt((gaps**2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(distances, every.min(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(index, every.argmin(axis=1))
    assert distances[5] == 0


def test_nearest_is_exact_where_it_is_near() -> None:
    """A distance far below the norms is not lost in their difference."""
    reference = torch.full((40, 64), 100.0, dtype=torch.float64)
    x = reference + 1e-9
    assert neighbours.nearest(x, reference)[0].numpy() == pytest.approx(8e-9, rel=1e-4)


def test_compare_counts_what_is_too_near() -> None:
    held_out = torch.arange(1, 102, dtype=torch.float64)  # minimum 1, 1 % quantile 2
    found = neighbours.compare(torch.tensor([0.1, 0.9, 1.5, 3.0], dtype=torch.float64), held_out)
    assert found["samples"]["count"] == 4
    assert found["samples"]["below 1 %"] == 0.75
    assert found["samples"]["below minimum"] == 0.5
    assert found["samples"]["copies"] == 1
    assert found["samples"]["quantiles"]["median"] == pytest.approx(1.2)
    assert found["held-out"]["quantiles"] == {"min": 1, "5 %": 6, "25 %": 26, "median": 51, "75 %": 76}
    assert found["held-out"]["below minimum"] == 0


# --- classifier


def test_classifier_is_a_function_of_its_arguments() -> None:
    """Neither torch's global state nor the number of threads shows, and the global state is left alone."""
    x, labels = (part[:100] for part in quality.split("train"))
    first = classifier.train(x, labels, epochs=1)
    torch.set_num_threads(2)
    torch.manual_seed(7)
    state = torch.get_rng_state()
    again, other = classifier.train(x, labels, epochs=1), classifier.train(x, labels, epochs=1, seed=1)
    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), state)
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()
    assert torch.equal(first.features(x), again.features(x))
    assert first.features(x).shape == (100, classifier.FEATURES)
    assert first.predict(x).shape == (100,)


def test_classifier_learns() -> None:
    """A few passes beat guessing by far: labels and images belong together."""
    held_out = quality.split("held-out")
    found = classifier.train(*quality.split("train"), epochs=3).predict(held_out.x)
    assert (found == held_out.labels).float().mean() > 0.7


# --- runs

SETTINGS = quality.Settings(samples=6, samples_at_1000=4, headline_samples=8, batch=5, steps=(2, 3), epochs=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make what a run always does short. One thread: several that wait for each other crawl on a busy machine."""
    short = {
        "GUIDANCE": (2,),
        "ETAS": (0, "sigma-hat"),
        "HEADLINE_STEPS": 3,
        "GRID_STEPS": (2, 3),
        "COPIER_REPEATS": 2,
    }
    for name, value in short.items():
        monkeypatch.setattr(quality, name, value)
    with threadpool_limits(1):
        yield


def checkpoint(folder: Path, seed: int = 0, data: str = "digits") -> str:
    """Save an untrained network."""
    config = models.UNetConfig(channels=1, width=4, multipliers=(1,), blocks=1, attention=(False,), classes=10)
    network = models.UNet(config, seed=seed)
    digits = tuple("0123456789")
    checkpoints.save(folder, fd.Checkpoint(network, fd.schedules.cosine(20), "v", (1, 8, 8), digits, 1.0, data))
    return str(folder)


def timeless(results: dict[str, Any]) -> dict[str, Any]:
    """Leave out what differs from run to run."""
    cells = [{key: value for key, value in row.items() if key != "seconds"} for row in results["cells"]]
    return {**results, "started": None, "cells": cells}


def stop_after(monkeypatch: pytest.MonkeyPatch, draws: int) -> list[int]:
    """Interrupt the run when it draws once more; return the list that grows by the size of each draw."""
    drawn: list[int] = []
    draw = quality.Sampler.draw

    def counted(sampler: quality.Sampler, labels: torch.Tensor, *args: Any) -> torch.Tensor:
        if len(drawn) == draws:
            raise KeyboardInterrupt
        drawn.append(len(labels))
        return draw(sampler, labels, *args)

    monkeypatch.setattr(quality.Sampler, "draw", counted)
    return drawn


def test_interrupted_run_resumes_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished cells are kept and skipped; the numbers are those of a run that never stopped."""
    name = checkpoint(tmp_path / "network")
    whole = quality.run(name, tmp_path / "whole", SETTINGS)
    assert len(whole["cells"]) == len(SETTINGS.cells())
    assert quality.remaining(SETTINGS.cells(), whole) == []
    with monkeypatch.context() as patch:
        stop_after(patch, len(quality.GRID_STEPS) + 4)
        with pytest.raises(KeyboardInterrupt):
            quality.run(name, tmp_path / "parts", SETTINGS)
    saved = quality_report.read(tmp_path / "parts" / quality_report.JSON)
    assert len(saved["cells"]) == 4
    with monkeypatch.context() as patch:
        drawn = stop_after(patch, len(SETTINGS.cells()))
        parts = quality.run(name, tmp_path / "parts", SETTINGS, resume=True)
    assert drawn == [6] * (len(SETTINGS.cells()) - 4)
    assert parts["cells"][:4] == saved["cells"]
    assert timeless(parts) == timeless(whole)
    assert quality_report.read(tmp_path / "parts" / quality_report.JSON) == parts


def test_resume_refuses_to_mix(tmp_path: Path) -> None:
    """Cells of another checkpoint or other settings are no part of the run, and the file stays as it is."""
    first, second = checkpoint(tmp_path / "first"), checkpoint(tmp_path / "second", seed=1)
    quality.run(first, tmp_path, SETTINGS)
    before = (tmp_path / quality_report.JSON).read_bytes()
    with pytest.raises(InputError, match="cannot resume .* checkpoint was"):
        quality.run(second, tmp_path, SETTINGS, resume=True)
    with pytest.raises(InputError, match="cannot resume .* spacing was 'leading' and is now 'trailing'"):
        quality.run(first, tmp_path, quality.Settings(**{**vars(SETTINGS), "spacing": "trailing"}), resume=True)
    assert (tmp_path / quality_report.JSON).read_bytes() == before


def test_run_takes_checkpoints_of_the_digits_only(tmp_path: Path) -> None:
    name = checkpoint(tmp_path / "network", data="moons")
    with pytest.raises(InputError, match="give a checkpoint of the digits"):
        quality.run(name, tmp_path, SETTINGS)


def test_samples_do_not_depend_on_the_batch(tmp_path: Path) -> None:
    network = fd.load(checkpoint(tmp_path / "network"))
    labels = torch.arange(7) % 10
    parts, whole = (
        quality.Sampler(network, quality.Settings(batch=batch)).draw(labels, 3, 1, 2.0) for batch in (3, 100)
    )
    torch.testing.assert_close(parts, whole)
    assert not torch.equal(whole[0], whole[1])


def test_headline_asks_for_the_classes_of_the_train_split() -> None:
    labels = quality.split("train").labels
    for count, times in ((1437, 1), (2874, 2)):
        chosen = labels[quality.asked(len(labels), count, seed=3)]
        assert torch.equal(chosen.bincount(), times * labels.bincount())
    assert torch.equal(quality.asked(1437, 10, seed=3), quality.asked(1437, 1437, seed=3)[:10])


def test_a_copier_gets_what_training_images_get() -> None:
    train, held_out = quality.split("train"), quality.split("held-out")
    judge = quality.Judge(train, held_out, epochs=1, seed=0)
    assert judge.distances(held_out.x) == pytest.approx({"pixel": 0, "feature": 0}, abs=1e-8)
    few, many = (judge.copier(train, count, seed=0) for count in (50, 20_000))
    # 20,000 draws are still biased upwards: measured 6 % in feature space, where the distance is small.
    assert many == pytest.approx(judge.distances(train.x), rel=0.1)
    assert all(few[space] > many[space] for space in quality_report.SPACES)


# --- report


def results() -> dict[str, Any]:
    """Results made by hand: two finished cells of the table and the headline."""
    cell = {"agreement": {"network": 0.996, "svc": 0.99}, "frechet": {"pixel": 1.1, "feature": 6.0}, "seconds": 12.34}
    grey = quality_report.pack(torch.zeros(8, 1, 8, 8))
    summary = {"count": 2, "quantiles": {"min": 0.25}, "below 1 %": 0.5, "below minimum": 0.25, "copies": 1}
    return {
        "setup": {
            "checkpoint": "c0ffee",
            "network": {"prediction": "v", "schedule": {"name": "cosine"}},
            "classifier": {"features": 32, "held-out accuracy": {"network": 0.9972, "svc": 0.9917}},
            "samples": 1000,
            "samples at 1000": 250,
            "spacing": "leading",
            "seed": 0,
            "machine": {
                "cpu": "abacus",
                "cores": 2,
                "threads": 2,
                "torch": "2.10",
                "python": "3.10",
                "fastdiff": "0.1",
            },
        },
        "started": "2026-01-01T00:00:00+00:00",
        "floor": {"pixel": 1.0, "feature": 5.0},
        "copier": {"5748": {"pixel": 1.2, "feature": 5.5}, "1000": {"pixel": 2.2, "feature": 12.0}},
        "grid": {"5": grey, "10": grey},
        "neighbours": {
            "samples": summary,
            "held-out": summary,
            "pairs": {"distances": [0.25] * 8, "samples": grey, "training": grey},
        },
        "cells": [
            {"table": "headline", "steps": 50, "eta": 0, "guidance": 1, "samples": 5748, **cell},
            {"table": "guidance", "steps": 50, "eta": 0, "guidance": 1.5, "samples": 1000, **cell},
            {"table": "table", "steps": 50, "eta": 0, "guidance": 1, "samples": 1000, **cell},
            {"table": "table", "steps": 5, "eta": 0, "guidance": 1, "samples": 1000, **cell},
            {"table": "table", "steps": 10, "eta": "sigma-hat", "guidance": 1, "samples": 1000, **cell},
        ],
    }


@pytest.mark.parametrize(
    "line",
    [
        "| label agreement, by network | 99.60% | >= 99.5% | yes |",
        "| label agreement, by svc | 99.00% | >= 99.5% | no |",
        "| Frechet distance, pixel space | 1.1 = 1.100 x floor 1 (a copier: 1.200 x) | <= 1.15 x floor | yes |",
        "| Frechet distance, feature space | 6 = 1.200 x floor 5 (a copier: 1.100 x) | <= 1.15 x floor | no |",
        "| 1 | 99.60% | 99.00% | 1.1 (0.50) | 6 (0.50) | 1000 |",
        "| 1.5 | 99.60% | 99.00% | 1.1 (0.50) | 6 (0.50) | 1000 |",
        "| eta | 50 steps | 5 steps | 10 steps |",
        "| 0 | 6 (0.50) | 6 (0.50) |  |",
        "| sigma-hat |  |  | 1.1 (0.50) |",
        "| samples | 2 | 0.250 | 50.00% | 25.00% | 1 |",
    ],
)
def test_markdown_holds_the_numbers(line: str) -> None:
    assert line in quality_report.markdown(results()).splitlines()


def test_render_writes_everything(tmp_path: Path) -> None:
    written = quality_report.render(results(), tmp_path)
    assert sorted(written) == sorted(tmp_path.iterdir())
    assert {path.suffix for path in written} == {".md", ".png"}
    assert "c0ffee" in (tmp_path / quality_report.MARKDOWN).read_text()


def test_render_only_needs_the_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="error: .* holds no results"):
        quality.main(out=tmp_path, render_only=True)
    saved = quality.run(checkpoint(tmp_path / "network"), tmp_path, SETTINGS)
    quality.main(out=tmp_path, render_only=True)
    assert (tmp_path / quality_report.MARKDOWN).read_text() == quality_report.markdown(saved)
    assert quality_report.TABLE in capsys.readouterr().out


def test_packed_pictures_come_back() -> None:
    x = torch.linspace(-1, 1, 256).view(4, 1, 8, 8)
    assert torch.equal(pictures.to_uint8(quality_report.unpack(quality_report.pack(x))), pictures.to_uint8(x))
