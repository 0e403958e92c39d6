"""Diffusion models: a U-Net for images, an MLP for points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import pictures, schedules
from fastdiff.checkpoint import Checkpoint
from fastdiff.errors import InputError
from fastdiff.guidance.branches import Model as Network
from fastdiff.latents import Autoencoder, from_diffusers, load
from fastdiff.models import Model
from fastdiff.sample import sample
from fastdiff.samplers.ddpm import LEARNED
from fastdiff.schedules import Schedule
from fastdiff.score_field import score_field
from fastdiff.train.batch import Batch
from fastdiff.train.config import TrainConfig
from fastdiff.train.data import Data
from fastdiff.train.objectives import OBJECTIVES, Loss
from fastdiff.train.objectives.variational import variance_of

SAMPLES_PER_CLASS = 8


class Diffusion:
    """A network that undoes noise; see `Task`."""

    def __init__(self, config: TrainConfig, data: Data) -> None:
        self.latents = latents_of(config, data.shape)
        if self.latents is not None:
            data = replace(data, shape=self.latents.latent_shape, levels=None)
        self.config, self.data = config, data
        self.schedule = schedule_of(config)
        self.levels = len(self.schedule)
        loss = OBJECTIVES[config.objective].make(config, self.schedule, data)
        self.loss = loss if self.latents is None else of_latents(loss, self.latents)
        over_sigma = {"over_sigma": self.schedule.config} if config.prediction == "score" else {}
        self.description: Mapping[str, Any] = {**network_of(config, data.shape, len(data.classes)), **over_sigma}

    def saved(self, model: Model) -> Checkpoint:
        """See `Task`."""
        return Checkpoint(
            model=model,
            schedule=self.schedule,
            prediction=self.config.prediction,
            shape=self.data.shape,
            classes=self.data.classes,
            clip=1.0 if len(self.data.shape) == 3 and self.latents is None else None,
            data=self.data.name,
            latents=self.latents,
        )

    def check_same_run(self, earlier: Mapping[str, Any]) -> None:
        """See `Task`: it must have the same autoencoder."""
        before = earlier.get("latents") or {}
        if before.get("digest") != (None if self.latents is None else self.latents.digest):
            raise InputError(
                "cannot resume: the run began with another autoencoder, or with none: give the same --latents"
            )

    def draw(self, model: Model, file: Path) -> None:
        """See `Task`: samples, a line for each class; for scores of points of the plane, their field too."""
        checkpoint = self.saved(model)
        classes = max(1, len(checkpoint.classes))
        each = SAMPLES_PER_CLASS if len(checkpoint.shape) == 3 else 1000 // classes
        place = next(model.parameters()).device
        labels = torch.arange(classes, device=place).repeat_interleave(each)
        levels = len(self.schedule)
        field = self.config.prediction == "score" and checkpoint.shape == (2,)
        if field and self.schedule.variance_exploding:
            plan = checkpoint.plan("annealed_langevin", steps=min(10, levels), per_level=30)
        else:
            plan = checkpoint.plan("ddim", steps=min(50, levels))
        x = sample(
            checkpoint.model,
            plan,
            (len(labels), *checkpoint.shape),
            seed=self.config.seed,
            cond={"y": labels} if checkpoint.classes else None,
            decode=checkpoint.decode,
        )
        if field:
            self._draw_score(model, x, file)
        else:
            pictures.save(x, file, columns=each)

    def _draw_score(self, model: Model, samples: Tensor, file: Path) -> None:
        """Draw the score at the noisiest, the middle and the cleanest level between data and samples."""
        data = torch.stack([self.data.dataset[i][0] for i in range(len(samples))]).to(samples.device)
        levels = sorted({len(self.schedule) - 1, len(self.schedule) // 2, 0}, reverse=True)
        fields = [score_field(model, data, level, self.schedule, "score") for level in levels]
        pictures.save_score_fields(fields, data, samples, file)


def latents_of(config: TrainConfig, shape: tuple[int, ...]) -> Autoencoder | None:
    """Return the autoencoder of a run, if it diffuses latents.

    Raises:
        CheckpointError: there is none where `config.latents` says.
        InputError: it is not for samples of the shape.
    """
    if config.latents is None:
        return None
    kind, _, folder = config.latents.partition(":")
    if kind == "diffusers":
        return from_diffusers(folder, shape)
    autoencoder = load(config.latents)
    if autoencoder.shape != shape:
        raise InputError(
            f"the autoencoder {config.latents} is for samples of shape {autoencoder.shape}, and {config.data} has "
            f"{shape}: give the --size and --channels that it was trained with, or train another"
        )
    return autoencoder


def of_latents(loss: Loss, autoencoder: Autoencoder) -> Loss:
    """Return a loss of data, whose latents, drawn from the posterior, it gives to a loss of latents."""

    def on_latents(model: Network, batch: Batch) -> Tensor:
        autoencoder.model.to(batch.x0.device)
        z = autoencoder.encode(batch.x0, seed=batch.seed, index=batch.index, step=batch.step)
        return loss(model, replace(batch, x0=z))

    return on_latents


def schedule_of(config: TrainConfig) -> Schedule:
    """Return the schedule of a run. Raises InputError if it is not given by sigma_min and sigma_max and these are."""
    ends = {name: getattr(config, name) for name in ("sigma_min", "sigma_max") if getattr(config, name) is not None}
    schedule = schedules.make(config.schedule, T=config.T, **ends)
    return schedule.with_unit_input() if schedule.variance_exploding else schedule


def network_of(config: TrainConfig, shape: tuple[int, ...], classes: int) -> Mapping[str, Any]:
    """Return the description of a network for samples of a shape."""
    learn_variance = variance_of(config.objective, config.variance) == LEARNED
    if len(shape) == 1:
        return {
            "kind": "mlp",
            "dimensions": shape[0],
            "width": config.width,
            "classes": classes,
            "learn_variance": learn_variance,
        }
    return {
        "kind": "unet",
        "channels": shape[0],
        "width": config.width,
        "multipliers": config.multipliers,
        "blocks": config.blocks,
        "attention": config.attention,
        "classes": classes,
        "dropout": config.dropout,
        "learn_variance": learn_variance,
    }
