"""What is measured of a run: bits per dimension, samples before a judge, and time."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

import fastdiff as fd
from fastdiff.bench import classifier
from fastdiff.bench.objectives.runs import one_thread, runs, trained
from fastdiff.bench.quality import Judge, Split
from fastdiff.guidance import load_classifier
from fastdiff.guidance.branches import Model
from fastdiff.train import data
from fastdiff.train.trainer import train

SEED = 0
EPOCHS = 40  # the judge's
BATCH = 500
LEVELS = 17  # of a pixel of the digits
BOUND_IMAGES = 120  # of the held-out split, in random order: the bound takes an evaluation for every level
TIMED_STEPS = 5, 25

Numbers = dict[str, Any]


class Digits:
    """Images of a side of 8, or of 32, and a judge of both sizes: what is larger is averaged to 8 x 8 first."""

    def __init__(self, size: int) -> None:
        self.train, self.held_out = (_images(name, size) for name in ("train", "held-out"))
        self.judge = Judge(_small(self.train), _small(self.held_out), EPOCHS, SEED)
        self._spread = spread(*_small(self.train))

    def real(self) -> Numbers:
        """Return the Frechet distances of the train split, and of a copier of as many images."""
        small = _small(self.train)
        return {
            "count": len(small.x),
            "floor": self.judge.distances(small.x),
            "copier": self.judge.copier(small, len(small.x), SEED),
            "judge": self.judge.description,
        }

    def judged(self, x: Tensor, labels: Tensor) -> Numbers:
        """Return agreement, Frechet distances, and the spread within classes beside that of the train split."""
        x = averaged(x.clamp(-1, 1))
        return {
            "agreement": self.judge.agreement(x, labels)["network"],
            "frechet": self.judge.distances(x),
            "spread": spread(x, labels) / self._spread,
        }


@functools.cache
def digits(size: int) -> Digits:
    """Return the images of a size, and their judge."""
    return Digits(size)


def _images(split: str, size: int) -> Split:
    images = data.load("digits", split=split, size=None if size == 8 else size)
    x, labels = zip(*(images.dataset[i] for i in range(len(images))), strict=True)
    return Split(torch.stack(x), torch.stack(labels))


def _small(images: Split) -> Split:
    return Split(averaged(images.x), images.labels)


def averaged(x: Tensor) -> Tensor:
    """Return images [N, 1, S, S] as [N, 1, 8, 8]: the means of squares."""
    return F.adaptive_avg_pool2d(x, 8)


def spread(x: Tensor, labels: Tensor) -> float:
    """Return the mean distance between two images [N, ...] of a class, averaged over the classes."""
    groups = (x[labels == label].flatten(1) for label in range(classifier.CLASSES))
    return float(torch.stack([F.pdist(group).mean() for group in groups]).mean())


def variational(folder: Path, run: str, seed: int, variance: str) -> Numbers:
    """Return the variational bound of held-out images in bits per dimension, with its standard error."""
    checkpoint = fd.load(trained(folder, run, seed))
    x0, labels = (part[:BOUND_IMAGES] for part in digits(8).held_out)
    found = fd.likelihood.bound(
        checkpoint.model,
        x0,
        checkpoint.schedule,
        prediction=checkpoint.prediction,
        variance=variance,
        levels=LEVELS,
        clip=checkpoint.clip,
        cond={"y": labels},
        seed=SEED,
        progress=True,
    )
    return {"bits": found.mean, "error": found.standard_error}


def samples(folder: Path, run: str, seed: int, sampler: str, **options: Any) -> Numbers:
    """Judge a sample for each label of the train split."""
    checkpoint = fd.load(trained(folder, run, seed))
    return _drawn(checkpoint, checkpoint.model, 1.0, sampler, **options)


def guided(folder: Path, run: str, seed: int, by: str, strength: float, sampler: str, **options: Any) -> Numbers:
    """Judge samples guided by "cfg" with w, or by a "classifier" with omega, of an unconditional network or "both"."""
    checkpoint = fd.load(trained(folder, run, seed))
    if by == "cfg":
        return _drawn(checkpoint, checkpoint.model, strength, sampler, **options)
    guide = load_classifier(trained(folder, "classifier", seed))
    model = guide.guide(checkpoint, strength, unconditional=by == "classifier")
    return _drawn(checkpoint, model, 1.0, sampler, **options)


def _drawn(checkpoint: fd.Checkpoint, model: Model, guidance: float, sampler: str, **options: Any) -> Numbers:
    plan = checkpoint.plan(sampler, **options)
    shape = checkpoint.shape if checkpoint.latents is None else checkpoint.latents.shape
    real = digits(shape[-1])
    labels = real.train.labels
    started = time.process_time()
    x = torch.cat(
        [
            fd.sample(
                model,
                plan,
                (len(index), *checkpoint.shape),
                seed=SEED,
                index=index,
                cond={"y": labels[index]},
                guidance=guidance,
                decode=checkpoint.decode,
            )
            for index in torch.split(torch.arange(len(labels)), BATCH)
        ]
    )
    taken = time.process_time() - started
    return {**real.judged(x, labels), "nfe": plan.nfe, "cpu seconds": round(taken, 1)}


def reconstructions(folder: Path, run: str, seed: int) -> Numbers:
    """Judge what an autoencoder makes of the train split: what latent diffusion could at best draw."""
    autoencoder = fd.latents.load(trained(folder, run, seed))
    real = digits(autoencoder.shape[-1])
    x, labels = real.train
    found = autoencoder.decode(autoencoder.encode(x, seed=SEED))
    return {**real.judged(found, labels), "mse": float((found - x).square().mean())}


def seconds(folder: Path, run: str, seed: int) -> Numbers:
    """Return the processor time of a training step, from the difference of two short runs, and how many there are."""
    config = runs(folder)[run]
    taken = []
    for steps in TIMED_STEPS:
        with tempfile.TemporaryDirectory() as out, one_thread():
            started = time.process_time()
            train(replace(config, steps=steps, warmup=0, seed=seed), out, progress=False)
            taken.append(time.process_time() - started)
    step = (taken[1] - taken[0]) / (TIMED_STEPS[1] - TIMED_STEPS[0])
    return {"cpu seconds a step": step, "steps": config.steps}


MEASURES: Mapping[str, Callable[..., Numbers]] = {
    "variational": variational,
    "samples": samples,
    "guided": guided,
    "reconstructions": reconstructions,
    "seconds": seconds,
}
