"""Trained classifiers of noised samples, and networks that they guide (Dhariwal & Nichol 2021, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff import checkpoint as checkpoints
from fastdiff import models, schedules
from fastdiff.checkpoint import Checkpoint
from fastdiff.errors import InputError, number, whole
from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Condition, Model
from fastdiff.guidance.networks import ClassifierGuidance
from fastdiff.schedules import Schedule

HOLDS = "classifier"  # what a config says that it holds
CHUNK = 64  # samples that are classified at once
_LEVELS = ("alpha", "sigma", "time", "scale_in")  # what a schedule's networks are trained on


@dataclass(frozen=True)
class Classifier:
    """A trained network p(class | x_t) with what guiding by it needs to know.

    Attributes:
        model: the network `model(x, t) -> logits`, in evaluation mode.
        schedule: the noise levels it was trained on.
        shape: shape of one sample, without the batch.
        classes: names of the classes.
        data: name of the training data.

    Raises:
        InputError: shape or classes are not the network's.
    """

    model: models.Model
    schedule: Schedule
    shape: tuple[int, ...]
    classes: tuple[str, ...]
    data: str

    def __post_init__(self) -> None:
        models.check_kind(self.model, models.CLASSIFIERS, "classifier")
        models.check_fits(self.model, self.shape, len(self.classes))

    def config(self) -> dict[str, Any]:
        """Return what `config.json` says of it, JSON-ready. Raises CheckpointError if the schedule was made by hand."""
        return {
            "holds": HOLDS,
            "schedule": checkpoints.schedule_config(self.schedule),
            "shape": list(self.shape),
            "classes": list(self.classes),
            "data": self.data,
        }

    def log_probability(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return log p(y | x_t) in nats, [B], differentiable in x.

        The null token is any class: its log-probability is 0, and so is the gradient.

        Args:
            x: what the diffusion network is given, `scale_in x_t`, [B, *shape].
            t: its time, [B].
            y: class, int64 [B] in 0..len(classes), the last of them the null token.

        Raises:
            InputError: there is no y, or one out of range (checked where y is on the CPU).
        """
        if y is None:
            raise InputError("a classifier guides towards a class: give labels y in cond")
        if y.device.type == "cpu" and y.numel() and not (0 <= int(y.min()) and int(y.max()) <= len(self.classes)):
            raise InputError(f"labels y must be in 0..{len(self.classes)}, the last of them the null token")
        logits = self._logits(x, t)
        of_class = F.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=1)
        return F.pad(of_class, (0, 1)).gather(1, y[:, None])[:, 0]

    @torch.no_grad()
    def accuracy(self, x0: Tensor, y: Tensor, levels: Sequence[int], seed: int = 0) -> list[float]:
        """Return the share of samples whose own class is the most probable one, at each level.

        Args:
            x0: clean data [B, *shape], B > 0.
            y: their classes, int64 [B].
            levels: schedule indices.
            seed: of the noise.

        Raises:
            InputError: a level is none of the schedule's.
        """
        return [float((self._most_probable(x0, level, seed) == y).double().mean()) for level in levels]

    def _most_probable(self, x0: Tensor, level: int, seed: int) -> Tensor:
        whole("level", level, 0, len(self.schedule) - 1)
        x = q_sample(x0, level, self.schedule, seed, step=level, scaled=True)
        t = torch.full((len(x0),), float(self.schedule.time[level]), device=x0.device)
        parts = zip(torch.split(x, CHUNK), torch.split(t, CHUNK), strict=True)
        return torch.cat([self._logits(*part).argmax(dim=1) for part in parts])

    def _logits(self, x: Tensor, t: Tensor) -> Tensor:
        logits: Tensor = self.model(x.to(next(self.model.parameters()).dtype), t)
        return logits

    def guide(self, checkpoint: Checkpoint, omega: float = 1.0, *, unconditional: bool = False) -> ClassifierGuidance:
        """Return a checkpoint's network guided by this classifier, for `fastdiff.sample` with labels y in cond.

        Under a `guidance` w too, the classifier takes part in the conditional branch alone, so that w scales omega.

        Args:
            checkpoint: of a network with the same classes or without any.
            omega: strength; 0 is none.
            unconditional: do not tell the network the class, if it has classes.

        Raises:
            InputError: schedule, shape or classes are not the same, or omega is not finite.
        """
        number("omega", omega)
        self._check_agrees(checkpoint)
        model: Model = checkpoint.model
        if unconditional or not checkpoint.classes:
            model = _Unconditional(model, len(self.classes))
        return ClassifierGuidance(model, self.log_probability, self.schedule, checkpoint.prediction, omega)

    def _check_agrees(self, checkpoint: Checkpoint) -> None:
        if checkpoint.latents is not None:
            raise InputError("a classifier of data cannot guide a network of latents: use one of the data themselves")
        ours, theirs = self.schedule, checkpoint.schedule
        if not all(np.array_equal(getattr(ours, name), getattr(theirs, name)) for name in _LEVELS):
            raise InputError("classifier and network know different noise levels: train both on one schedule")
        if self.shape != checkpoint.shape:
            shapes = f"{self.shape}, the network of {checkpoint.shape}"
            raise InputError(f"the classifier takes samples of shape {shapes}: train both on the same data")
        if checkpoint.classes not in ((), self.classes):
            numbers = f"{len(self.classes)} classes are not the {len(checkpoint.classes)} of the network"
            raise InputError(f"the classifier's {numbers}: train both on the same data")


class _Unconditional(nn.Module):
    """A network that is not told the class."""

    def __init__(self, model: Model, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.model(x, t)

    def unconditional(self, cond: Condition) -> Condition:
        """Return the classifier's condition with every label replaced by the null token."""
        return {**cond, "y": torch.full_like(cond["y"], self.classes)}


def load_classifier(path: str | Path, device: torch.device | str = "cpu") -> Classifier:
    """Load a classifier: a checkpoint folder, or a run's folder (its newest checkpoint).

    Raises:
        CheckpointError: there is none, it holds something else, or it is truncated, foreign or of another version.
    """

    def build(config: Mapping[str, Any], model: models.Model) -> Classifier:
        return Classifier(
            model=model,
            schedule=schedules.from_config(config["schedule"]),
            shape=tuple(config["shape"]),
            classes=tuple(config["classes"]),
            data=config["data"],
        )

    return checkpoints.read(checkpoints.find(path), HOLDS, build, device)
