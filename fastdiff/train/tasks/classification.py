"""Classifiers of noised samples, for classifier guidance."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.files import replacing
from fastdiff.guidance.classifier import Classifier
from fastdiff.models import Model
from fastdiff.pictures import checked
from fastdiff.train import data as datasets
from fastdiff.train.config import TrainConfig
from fastdiff.train.data import Data
from fastdiff.train.libraries import require
from fastdiff.train.objectives import OBJECTIVES
from fastdiff.train.tasks.diffusion import network_of, schedule_of

SAMPLES, LEVELS = 500, 11  # at most, of each split, in a picture


class Classification:
    """A network of p(class | x_t), of the sizes that a diffusion network of these settings has; see `Task`."""

    def __init__(self, config: TrainConfig, data: Data) -> None:
        self.config, self.data = config, data
        self.schedule = schedule_of(config)
        self.levels = len(self.schedule)
        self.loss = OBJECTIVES[config.objective].make(config, self.schedule, data)
        network = network_of(config, data.shape, len(data.classes))
        self.description: Mapping[str, Any] = {**network, "kind": f"{network['kind']}_classifier"}

    def saved(self, model: Model) -> Classifier:
        """See `Task`."""
        return Classifier(model, self.schedule, self.data.shape, self.data.classes, self.data.name)

    def check_same_run(self, earlier: Mapping[str, Any]) -> None:
        """See `Task`: the settings say all."""

    def draw(self, model: Model, file: Path) -> None:
        """See `Task`: accuracy at each level, on what it is trained on and on what is held out."""
        classifier, place = self.saved(model), next(model.parameters()).device
        levels = np.linspace(0, self.levels - 1, min(LEVELS, self.levels)).round().astype(int).tolist()
        figure = require("matplotlib.figure", "train").Figure(figsize=(4, 4), layout="constrained")
        axes = figure.add_subplot(xlabel="level", ylabel="accuracy", ylim=(0, 1.02))
        for name, (x0, y) in self._splits.items():
            axes.plot(levels, classifier.accuracy(x0.to(place), y.to(place), levels), label=name)
        axes.axhline(1 / len(classifier.classes), color="gray", linestyle="dotted", label="chance")
        axes.legend()
        with replacing(checked(file)) as temporary:
            figure.savefig(temporary, dpi=120, format="png")

    @functools.cached_property
    def _splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Samples and their classes, by the name of their split."""
        found = {"train": _some(self.data)}
        with suppress(InputError):  # not all data holds something out
            held_out = datasets.load(
                self.config.data, split="held-out", size=self.config.size, channels=self.config.channels
            )
            found["held out"] = _some(held_out)
        return found


def _some(data: Data) -> tuple[Tensor, Tensor]:
    """Return up to `SAMPLES` of the data, from all of its parts."""
    x0, y = zip(*(data.dataset[i] for i in datasets.spread(len(data), SAMPLES)), strict=True)
    return torch.stack(x0), torch.stack(y)
