"""What a training run trains, beside the loop that trains it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from fastdiff.checkpoint import Saved
from fastdiff.models import Model
from fastdiff.train.objectives import Loss


class Task(Protocol):
    """A network, its loss, and what becomes of it.

    Attributes:
        description: what `models.build` makes the network from.
        levels: number of levels that t is drawn from.
        loss: the loss of each sample of a batch.
    """

    description: Mapping[str, Any]
    levels: int
    loss: Loss

    def saved(self, model: Model) -> Saved:
        """Return what a checkpoint of the run holds, with this network."""

    def check_same_run(self, earlier: Mapping[str, Any]) -> None:
        """Raise InputError if a run whose checkpoint has this config.json cannot go on, though its settings agree."""

    def draw(self, model: Model, file: Path) -> None:
        """Write a PNG that shows what the network does."""
