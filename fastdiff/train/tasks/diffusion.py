"""Diffusion models: a U-Net for images, an MLP for points."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fastdiff import pictures, schedules
from fastdiff.checkpoint import Checkpoint
from fastdiff.models import Model
from fastdiff.sample import sample
from fastdiff.schedules import Schedule
from fastdiff.train.config import TrainConfig
from fastdiff.train.data import Data
from fastdiff.train.objectives import OBJECTIVES

SAMPLES_PER_CLASS = 8


class Diffusion:
    """A network that undoes noise; see `Task`."""

    def __init__(self, config: TrainConfig, data: Data) -> None:
        self.config, self.data = config, data
        self.schedule = schedule_of(config)
        self.levels = len(self.schedule)
        self.loss = OBJECTIVES[config.objective].make(config, self.schedule, data)
        self.description = network_of(config, data.shape, len(data.classes))

    def saved(self, model: Model) -> Checkpoint:
        """See `Task`."""
        return Checkpoint(
            model=model,
            schedule=self.schedule,
            prediction=self.config.prediction,
            shape=self.data.shape,
            classes=self.data.classes,
            clip=1.0 if len(self.data.shape) == 3 else None,
            data=self.data.name,
        )

    def draw(self, model: Model, file: Path) -> None:
        """See `Task`: samples, a line for each class."""
        checkpoint = self.saved(model)
        classes = max(1, len(checkpoint.classes))
        each = SAMPLES_PER_CLASS if len(checkpoint.shape) == 3 else 1000 // classes
        place = next(model.parameters()).device
        labels = torch.arange(classes, device=place).repeat_interleave(each)
        x = sample(
            checkpoint.model,
            checkpoint.plan("ddim", steps=min(50, len(self.schedule))),
            (len(labels), *checkpoint.shape),
            seed=self.config.seed,
            cond={"y": labels} if checkpoint.classes else None,
        )
        pictures.save(x, file, columns=each)


def schedule_of(config: TrainConfig) -> Schedule:
    """Return the schedule of a run. Raises InputError if it is not given by sigma_min and sigma_max and these are."""
    ends = {name: getattr(config, name) for name in ("sigma_min", "sigma_max") if getattr(config, name) is not None}
    schedule = schedules.make(config.schedule, T=config.T, **ends)
    return schedule.with_unit_input() if schedule.variance_exploding else schedule


def network_of(config: TrainConfig, shape: tuple[int, ...], classes: int) -> Mapping[str, Any]:
    """Return the description of a network for samples of a shape."""
    if len(shape) == 1:
        return {"kind": "mlp", "dimensions": shape[0], "width": config.width, "classes": classes}
    return {
        "kind": "unet",
        "channels": shape[0],
        "width": config.width,
        "multipliers": config.multipliers,
        "blocks": config.blocks,
        "attention": config.attention,
        "classes": classes,
        "dropout": config.dropout,
    }
