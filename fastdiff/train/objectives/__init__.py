"""Training objectives by name: each gives the loss of each sample of a batch.

To add one, write a function that returns a `Loss` in a file here, and name it in `OBJECTIVES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from fastdiff.errors import InputError
from fastdiff.schedules import Schedule
from fastdiff.train.objectives.autoencoding import autoencoder, denoising_autoencoder, vae
from fastdiff.train.objectives.classification import cross_entropy
from fastdiff.train.objectives.loss import Loss
from fastdiff.train.objectives.regression import l_gamma, l_simple
from fastdiff.train.objectives.score_matching import check_exact, l_implicit, l_sliced
from fastdiff.train.objectives.variational import l_hybrid, l_vlb, variance_of

if TYPE_CHECKING:
    from fastdiff.train.config import TrainConfig
    from fastdiff.train.data import Data

__all__ = [
    "OBJECTIVES",
    "Loss",
    "Objective",
    "autoencoder",
    "cross_entropy",
    "denoising_autoencoder",
    "l_gamma",
    "l_hybrid",
    "l_implicit",
    "l_simple",
    "l_sliced",
    "l_vlb",
    "vae",
]


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


def _classifier(config: TrainConfig, schedule: Schedule, data: Data) -> Loss:
    if not data.classes:
        raise InputError(f"{data.name} has no classes to tell apart: train a classifier on data that has")
    return cross_entropy(schedule)


def _implicit(config: TrainConfig, schedule: Schedule, data: Data) -> Loss:
    check_exact(math.prod(data.shape))
    return _of_slopes(config, l_implicit(schedule, config.prediction))


def _sliced(config: TrainConfig, schedule: Schedule, data: Data) -> Loss:
    return _of_slopes(config, l_sliced(schedule, config.prediction, config.probes))


def _of_slopes(config: TrainConfig, loss: Loss) -> Loss:
    if config.precision != "fp32":
        raise InputError(f"{config.objective} takes derivatives of the score, in float32: give --precision fp32")
    return loss


def _l_vlb(config: TrainConfig, schedule: Schedule, data: Data) -> Loss:
    variance = variance_of(config.objective, config.variance)
    assert variance is not None
    return l_vlb(schedule, config.prediction, variance, data.levels)


def _l_hybrid(config: TrainConfig, schedule: Schedule, data: Data) -> Loss:
    weight = {} if config.vlb_weight is None else {"weight": config.vlb_weight}
    return l_hybrid(schedule, config.prediction, data.levels, **weight)


OBJECTIVES: dict[str, Objective] = {
    "l_simple": Objective("diffusion", lambda config, schedule, data: l_simple(schedule, config.prediction)),
    "l_gamma": Objective("diffusion", _l_gamma),
    "l_vlb": Objective("diffusion", _l_vlb),
    "l_hybrid": Objective("diffusion", _l_hybrid),
    "implicit": Objective("diffusion", _implicit),
    "sliced": Objective("diffusion", _sliced),
    "classifier": Objective("classification", _classifier),
    "autoencoder": Objective("autoencoding", lambda config, schedule, data: autoencoder()),
    "denoising_autoencoder": Objective(
        "autoencoding", lambda config, schedule, data: denoising_autoencoder(config.corruption)
    ),
    "vae": Objective("autoencoding", lambda config, schedule, data: vae(config.kl_weight)),
}
