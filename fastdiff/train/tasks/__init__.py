"""What the trainer can train, by name; `objectives.OBJECTIVES` says which objective belongs to which."""

from __future__ import annotations

from collections.abc import Callable

from fastdiff.errors import lookup
from fastdiff.train.config import TrainConfig
from fastdiff.train.data import Data
from fastdiff.train.objectives import OBJECTIVES
from fastdiff.train.tasks.autoencoding import Autoencoding
from fastdiff.train.tasks.classification import Classification
from fastdiff.train.tasks.diffusion import Diffusion
from fastdiff.train.tasks.task import Task

__all__ = ["TASKS", "Task", "make"]

TASKS: dict[str, Callable[[TrainConfig, Data], Task]] = {
    "diffusion": Diffusion,
    "classification": Classification,
    "autoencoding": Autoencoding,
}


def make(config: TrainConfig, data: Data) -> Task:
    """Return what a run trains. Raises InputError where objective, prediction, schedule and data do not fit."""
    return TASKS[lookup("objective", config.objective, OBJECTIVES).trains](config, data)
