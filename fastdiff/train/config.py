"""What a training run is made from: everything here is written into its checkpoints and compared on resume."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from fastdiff import prediction as predictions
from fastdiff import schedules
from fastdiff.errors import InputError, lookup, number, whole
from fastdiff.noise import MAX_SEED, PROBES
from fastdiff.train.objectives import OBJECTIVES
from fastdiff.train.objectives.variational import variance_of
from fastdiff.train.objectives.weights import WEIGHTS
from fastdiff.train.times import TIMES

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRACKERS = {"none": None, "tensorboard": "tensorboard"}
# These may change when a run is resumed: they decide when a run stops and what it shows, not where it goes.
# `latents` may move: tasks compare what lies there.
_FREE = ("latents", "save_every", "sample_every", "workers", "tracker")


@dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
        data: name of the data; see `fastdiff.train.data.load`.
        size, channels: of images read from disk, and size of digits; None is the data's own.
        objective: what is minimised; see `fastdiff.train.objectives`.
        weighting: gamma of L_gamma, by name; None for other objectives.
        variance: of the steps in l_vlb: "small", "large" or "learned_range", which is its own and l_hybrid's; None for
            an objective's own.
        vlb_weight: factor of L_vlb in l_hybrid; None is 0.001.
        latents: run or folder of the autoencoder whose latents are diffused, or "diffusers:FOLDER"; None is the data.
        latent_channels: of the latents of an autoencoder in training.
        kl_weight: of KL in vae, which is the variance of its decoder.
        corruption: standard deviation of the noise that a denoising autoencoder takes away.
        probes: directions of sliced score matching, "rademacher" or "gaussian".
        times: the distribution of t; see `fastdiff.train.times`.
        schedule: name of the noise schedule; T: its levels.
        sigma_min, sigma_max: ends of a schedule that is given by them; None is its own.
        prediction: what the network predicts.
        width, multipliers, blocks, attention: sizes of the U-Net (points take an MLP of `width`).
        dropout: inside the network; condition_dropout: probability that a label is replaced by the null token.
        steps: optimiser steps in all; batch: samples a step over all processes.
        lr: peak of the learning rate: linear warm-up over `warmup` steps, then a cosine down to 0.
        weight_decay: AdamW's; clip_norm: bound of the gradient's norm.
        ema: decay of the averaged weights that are saved for sampling.
        precision: "fp32", or "bf16" for autocast.
        seed: of initialisation, batches, times and noise.
        save_every, sample_every: steps between checkpoints and between sample grids.
        workers: processes that read data.
        tracker: "none" or "tensorboard".

    Raises:
        InputError: a number is out of range or a name is unknown.
    """

    data: str = "digits"
    size: int | None = None
    channels: int | None = None
    objective: str = "l_simple"
    weighting: str | None = None
    variance: str | None = None
    vlb_weight: float | None = None
    latents: str | None = None
    latent_channels: int = 4
    kl_weight: float = 0.001
    corruption: float = 0.3
    probes: str = "rademacher"
    times: str = "uniform"
    schedule: str = "cosine"
    T: int = 1000
    sigma_min: float | None = None
    sigma_max: float | None = None
    prediction: str = "v"
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 1
    attention: tuple[bool, ...] = (False, True)
    dropout: float = 0.0
    condition_dropout: float = 0.1
    steps: int = 5000
    batch: int = 64
    lr: float = 1e-3
    warmup: int = 200
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema: float = 0.999
    precision: str = "fp32"
    seed: int = 0
    save_every: int = 1000
    sample_every: int = 1000
    workers: int = 0
    tracker: str = "none"

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        lookup("objective", self.objective, OBJECTIVES)
        lookup("times", self.times, TIMES)
        lookup("probes", self.probes, PROBES)
        lookup("prediction", self.prediction, dict.fromkeys(predictions.names()))
        lookup("schedule", self.schedule, dict.fromkeys(schedules.names()))
        lookup("precision", self.precision, PRECISIONS)
        lookup("tracker", self.tracker, TRACKERS)
        for name in ("T", "steps", "batch", "save_every", "sample_every"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("lr", "clip_norm"):
            number(name, getattr(self, name), 0, above=True)
        number("weight_decay", self.weight_decay, 0)
        for name in ("dropout", "condition_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 <= self.seed <= MAX_SEED:
            raise InputError(f"seed must be between 0 and {MAX_SEED}, got {self.seed}")
        self._check_weighting()
        self._check_variance()
        self._check_latents()
        for name in ("warmup", "workers"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} must be >= 0, got {getattr(self, name)}")

    def _check_weighting(self) -> None:
        known = ", ".join(WEIGHTS)
        if self.objective == "l_gamma" and self.weighting is None:
            raise InputError(f"l_gamma needs its weights: give --weighting, one of {known}")
        if self.weighting is not None:
            lookup("weighting", self.weighting, WEIGHTS)
            if self.objective != "l_gamma":
                raise InputError(f"{self.objective} has weights of its own: leave --weighting out, or use l_gamma")

    def _check_variance(self) -> None:
        variance_of(self.objective, self.variance)
        if self.vlb_weight is not None:
            number("vlb_weight", self.vlb_weight, 0, above=True)
            if self.objective != "l_hybrid":
                raise InputError(f"{self.objective} has no part to weigh: leave --vlb-weight out, or use l_hybrid")

    def _check_latents(self) -> None:
        whole("latent_channels", self.latent_channels, 1)
        number("kl_weight", self.kl_weight, 0)
        number("corruption", self.corruption, 0)
        if self.latents is not None and OBJECTIVES[self.objective].trains != "diffusion":
            raise InputError(f"{self.objective} works on the data themselves: leave --latents out")

    def to_dict(self) -> dict[str, Any]:
        """Return the settings, JSON-ready."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def check_same_run(self, earlier: dict[str, Any]) -> None:
        """Raise InputError if resuming from `earlier` (a `to_dict`) would not continue the same run."""
        own, defaults = self.to_dict(), TrainConfig().to_dict()
        for name in (field.name for field in fields(self) if field.name not in _FREE):
            # A run of an earlier version did what the default of a newer setting does.
            before = earlier.get(name, defaults[name])
            if own[name] != before:
                raise InputError(
                    f"cannot resume: {name} was {before!r}, now {own[name]!r}: give the same, or a new --out"
                )
