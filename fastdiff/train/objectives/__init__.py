"""Training objectives by name: each gives the loss of each sample of a batch.

To add one, write a function that returns a `Loss` in a file here, and name it in `OBJECTIVES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fastdiff.schedules import Schedule
from fastdiff.train.objectives.loss import Loss
from fastdiff.train.objectives.regression import l_gamma, l_simple

if TYPE_CHECKING:
    from fastdiff.train.config import TrainConfig
    from fastdiff.train.data import Data

__all__ = ["OBJECTIVES", "Loss", "Objective", "l_gamma", "l_simple"]


class Objective(NamedTuple):
    """What a run minimises.

    Attributes:
        trains: the kind of network, a name of `fastdiff.train.tasks.TASKS`.
        make: (config, schedule, data) -> loss. Raises InputError where they do not fit together.
    """

    trains: str
    make: Callable[[TrainConfig, Schedule, Data], Loss]


def _l_gamma(config: TrainConfig, schedule: Schedule, data: Data) -> Loss:
    assert config.weighting is not None  # TrainConfig says so
    return l_gamma(schedule, config.prediction, config.weighting)


OBJECTIVES: dict[str, Objective] = {
    "l_simple": Objective("diffusion", lambda config, schedule, data: l_simple(schedule, config.prediction)),
    "l_gamma": Objective("diffusion", _l_gamma),
}
