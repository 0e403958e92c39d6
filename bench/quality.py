"""Sample quality on scikit-learn's digits: agreement with the label, Frechet distances, nearest training images.

    python -m fastdiff.bench.quality                  # the shipped checkpoint, into bench/results/
    python -m fastdiff.bench.quality --resume         # go on where a run was interrupted
    python -m fastdiff.bench.quality --render-only    # tables and figures from the numbers that are there

The labels asked for are those of training images in random order, each four times for the headline, so that class
counts are the train split's. Every cell starts from the same noise. A distance is between the samples and the held-out
split; its floor is that of the train split. Few samples raise a distance, so beside each stands that of a copier: as
many training images drawn with replacement, what a network that had learned its training set by heart would get.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
import typer
from sklearn.svm import SVC
from torch import Tensor
from torch.utils.data import TensorDataset
from tqdm import tqdm

import fastdiff as fd
from fastdiff import checkpoint as checkpoints
from fastdiff.bench import classifier, frechet, neighbours, quality_report
from fastdiff.bench import machine as machines
from fastdiff.bench.quality_report import Results
from fastdiff.errors import FastdiffError, InputError
from fastdiff.files import write_text
from fastdiff.train import data

STEPS = (5, 10, 20, 50, 100, 1000)
ETAS = (0, 0.2, 0.5, 1, "sigma-hat")
GUIDANCE = (1.5, 2, 3)  # and 1, which the table has
HEADLINE_STEPS = 50
HEADLINE_SAMPLES = 4 * 1437
GRID_STEPS = (5, 10, 20, 50, 100)
NEIGHBOURS_SHOWN = 12
COPIER_REPEATS = 16

Advance = Callable[[int], None]


class Split(NamedTuple):
    """Real images [N, 1, 8, 8] in [-1, 1] and their labels, int64 [N]."""

    x: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Settings:
    """A run.

    Attributes:
        samples: drawn for a cell of the tables; samples_at_1000: for one of 1000 steps; headline_samples: for the
            headline.
        spacing: which levels DDIM visits; see `fastdiff.samplers.spacing.spaced`.
        seed: of the samples, the labels and the classifier.
        batch: samples drawn at a time; they do not depend on it but for rounding.
        steps: columns of the table.
        epochs: the classifier's.
    """

    samples: int = 1000
    samples_at_1000: int = 200
    headline_samples: int = HEADLINE_SAMPLES
    spacing: str = "leading"
    seed: int = 0
    batch: int = 500
    steps: tuple[int, ...] = STEPS
    epochs: int = 40

    def headline(self) -> Cell:
        """Return the cell that is measured with the most samples."""
        return Cell("headline", HEADLINE_STEPS, 0, 1, self.headline_samples)

    def cells(self) -> list[Cell]:
        """Return what to measure, the headline first."""
        guidance = [Cell("guidance", HEADLINE_STEPS, 0, w, self.samples) for w in GUIDANCE]
        counts = {steps: self.samples_at_1000 if steps == 1000 else self.samples for steps in self.steps}
        table = [Cell("table", steps, eta, 1, count) for steps, count in counts.items() for eta in ETAS]
        return [self.headline(), *guidance, *table]


@dataclass(frozen=True)
class Cell:
    """One entry of a table: the sampler's numbers and how many samples were drawn."""

    table: str
    steps: int
    eta: float | str
    guidance: float
    samples: int

    @property
    def evaluations(self) -> int:
        """Network evaluations of all samples; guidance takes two a step."""
        return self.samples * self.steps * _branches(self.guidance)


class Judge:
    """Scores samples against the held-out split, by classifiers that saw the train split only."""

    def __init__(self, train: Split, held_out: Split, epochs: int, seed: int) -> None:
        self.network = classifier.train(*train, epochs=epochs, seed=seed)
        self.svc = SVC(gamma=0.02, C=10).fit(_flat(train.x), train.labels.numpy())
        self.real = self._spaces(held_out.x)
        self.description = {
            "features": classifier.FEATURES,
            "sha256": self.network.fingerprint(),
            "held-out accuracy": self.agreement(*held_out),
        }

    def agreement(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the share of images [N, 1, 8, 8] that each classifier gives the label int64 [N]."""
        predicted = {"network": self.network.predict(x).numpy(), "svc": self.svc.predict(_flat(x))}
        return {name: float(np.mean(found == labels.numpy())) for name, found in predicted.items()}

    def distances(self, x: Tensor) -> dict[str, float]:
        """Return the Frechet distance of images [N, 1, 8, 8] to the held-out split, in each space."""
        return {name: frechet.distance(points, self.real[name]) for name, points in self._spaces(x).items()}

    def copier(self, train: Split, count: int, seed: int) -> dict[str, float]:
        """Return the mean of `distances` of `count` training images drawn with replacement, over random choices."""
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(train.x), (COPIER_REPEATS, count), generator=generator)
        found = [self.distances(train.x[index]) for index in chosen]
        return {name: float(np.mean([distances[name] for distances in found])) for name in self.real}

    def _spaces(self, x: Tensor) -> dict[str, frechet.Floats]:
        return {"pixel": _flat(x).astype(np.float64), "feature": self.network.features(x).double().numpy()}


@dataclass(frozen=True)
class Sampler:
    """Draws from a checkpoint with DDIM; a sample depends on the seed and its label's place alone."""

    checkpoint: fd.Checkpoint
    settings: Settings

    def draw(
        self,
        labels: Tensor,
        steps: int,
        eta: float | str = 0,
        guidance: float = 1,
        advance: Advance = lambda evaluations: None,
    ) -> Tensor:
        """Return one sample for each label int64 [N], float32 [N, 1, 8, 8]; tell `advance` of network evaluations."""
        plan = self.checkpoint.plan("ddim", steps=steps, eta=eta, spacing=self.settings.spacing)
        parts = torch.split(torch.arange(len(labels)), self.settings.batch)
        return torch.cat([self._batch(plan, labels, part, guidance, advance) for part in parts])

    def _batch(self, plan: fd.Plan, labels: Tensor, index: Tensor, guidance: float, advance: Advance) -> Tensor:
        evaluations = len(index) * _branches(guidance)
        return fd.sample(
            self.checkpoint.model,
            plan,
            (len(index), *self.checkpoint.shape),
            seed=self.settings.seed,
            index=index,
            cond={"y": labels[index]},
            guidance=guidance,
            callback=lambda row, x, x0: advance(evaluations),
        )


def run(name: str, out: Path, settings: Settings, *, resume: bool = False) -> Results:
    """Measure every cell and return the results; each finished cell is written to `out/quality.json` at once.

    Args:
        name: the checkpoint, as `fastdiff.load` takes it.
        out: folder of the results.
        settings: the run.
        resume: keep the cells that the file has.

    Raises:
        InputError: the checkpoint was not trained on the digits, or resuming would mix two runs.
        CheckpointError: there is no such checkpoint.
    """
    checkpoint = fd.load(name)
    if checkpoint.data != "digits":
        raise InputError(f"{name} was trained on {checkpoint.data!r}: give a checkpoint of the digits")
    train, held_out = split("train"), split("held-out")
    judge, sampler = Judge(train, held_out, settings.epochs, settings.seed), Sampler(checkpoint, settings)
    setup = describe(name, checkpoint, judge, settings)
    path = out / quality_report.JSON
    if resume and path.exists():
        results = continued(path, setup)
    else:
        counts = sorted({cell.samples for cell in settings.cells()})
        real = {
            "floor": judge.distances(train.x),
            "copier": {str(count): judge.copier(train, count, settings.seed) for count in counts},
        }
        results = {"setup": setup, "started": machines.now(), **real, "grid": grid(sampler), "cells": []}

    todo = remaining(settings.cells(), results)
    with tqdm(total=sum(cell.evaluations for cell in todo), desc="quality", unit="eval", disable=None) as bar:
        for cell in todo:
            labels = train.labels[asked(len(train.x), cell.samples, settings.seed)]
            start = time.perf_counter()
            x = sampler.draw(labels, cell.steps, cell.eta, cell.guidance, bar.update)
            seconds = time.perf_counter() - start
            scores = {"agreement": judge.agreement(x, labels), "frechet": judge.distances(x), "seconds": seconds}
            results["cells"].append({**asdict(cell), **scores})
            if cell == settings.headline():
                results["neighbours"] = copying(x, train.x, held_out.x)
            write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def split(name: str) -> Split:
    """Return the "train" or the "held-out" split of the digits."""
    return Split(*cast(TensorDataset, data.load("digits", split=name).dataset).tensors)


def asked(length: int, count: int, seed: int) -> Tensor:
    """Return `count` of the indices below `length` in random order, each once before any comes twice, int64 [count]."""
    order = torch.randperm(length, generator=torch.Generator().manual_seed(seed))
    return order.repeat(-(-count // length))[:count]


def remaining(cells: list[Cell], results: Results) -> list[Cell]:
    """Return the cells that the results lack."""
    return [cell for cell in cells if not any(asdict(cell).items() <= row.items() for row in results["cells"])]


def grid(sampler: Sampler) -> dict[str, list[str]]:
    """Draw each digit from the same noise with each of GRID_STEPS: packed pictures by number of steps."""
    digits = torch.arange(classifier.CLASSES)
    return {str(steps): quality_report.pack(sampler.draw(digits, steps)) for steps in GRID_STEPS}


def copying(x: Tensor, train: Tensor, held_out: Tensor) -> Results:
    """Compare the distances of samples x and of held-out images to train, all [N, 1, 8, 8], with some pairs to look at.

    The pairs are evenly spaced in rank, from the sample that is nearest to its training image to the farthest.
    """
    distances, index = neighbours.nearest(x, train)
    ranks = torch.linspace(0, len(x) - 1, NEIGHBOURS_SHOWN).round().long()
    shown = distances.argsort()[ranks]
    return {
        **neighbours.compare(distances, neighbours.nearest(held_out, train)[0]),
        "pairs": {
            "distances": distances[shown].tolist(),
            "samples": quality_report.pack(x[shown]),
            "training": quality_report.pack(train[index[shown]]),
        },
    }


def describe(name: str, checkpoint: fd.Checkpoint, judge: Judge, settings: Settings) -> Results:
    """Return all that the numbers depend on, as JSON gives it back: cells of two setups never share a file."""
    weights = checkpoints.find(name) / checkpoints.WEIGHTS
    setup = {
        "checkpoint": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "network": checkpoints.config_of(checkpoint),
        "classifier": judge.description,
        "samples": settings.samples,
        "samples at 1000": settings.samples_at_1000,
        "headline samples": settings.headline_samples,
        "spacing": settings.spacing,
        "seed": settings.seed,
        "machine": machine(),
    }
    as_read: Results = json.loads(json.dumps(setup))
    return as_read


def machine() -> dict[str, Any]:
    """Return what the numbers were found on, JSON-ready."""
    return {
        "cpu": machines.cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fastdiff": fd.__version__,
    }


def continued(path: Path, setup: Results) -> Results:
    """Read the results of an interrupted run. Raises InputError if its setup was another."""
    results = quality_report.read(path)
    for name, value in setup.items():
        if results["setup"].get(name) != value:
            before = results["setup"].get(name)
            raise InputError(f"cannot resume {path}: {name} was {before!r} and is now {value!r}; give another --out")
    return results


def _branches(guidance: float) -> int:
    return 1 if guidance == 1 else 2


def _flat(x: Tensor) -> npt.NDArray[np.float32]:
    flat: npt.NDArray[np.float32] = x.flatten(1).numpy()
    return flat


def main(
    checkpoint: Annotated[str, typer.Option(help="a checkpoint's folder, a run's, or a shipped one's name")] = "digits",
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("bench/results"),
    samples: Annotated[int, typer.Option(min=2, help="samples for a cell of the tables")] = 1000,
    samples_at_1000: Annotated[int, typer.Option(min=2, help="samples for a cell of 1000 steps")] = 200,
    headline_samples: Annotated[int, typer.Option(min=2, help="samples for the headline")] = HEADLINE_SAMPLES,
    spacing: Annotated[str, typer.Option(help="which levels DDIM visits")] = "leading",
    seed: Annotated[int, typer.Option(min=0, help="of samples, labels and classifier")] = 0,
    batch: Annotated[int, typer.Option(min=1, help="samples drawn at a time")] = 500,
    resume: Annotated[bool, typer.Option("--resume", help="keep the cells that are finished")] = False,
    render_only: Annotated[bool, typer.Option("--render-only", help="measure nothing")] = False,
) -> None:
    """Measure the sample quality of a checkpoint of the digits."""
    settings = Settings(samples, samples_at_1000, headline_samples, spacing, seed, batch)
    saved = out / quality_report.JSON
    try:
        results = quality_report.read(saved) if render_only else run(checkpoint, out, settings, resume=resume)
    except (FastdiffError, OSError) as error:
        sys.exit(f"error: {error}")
    for path in quality_report.render(results, out):
        print(path)


if __name__ == "__main__":
    typer.run(main)
