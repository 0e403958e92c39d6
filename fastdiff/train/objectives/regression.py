"""Denoising objectives: the squared error of what the network predicts, weighted by the level."""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastdiff import prediction as predictions
from fastdiff.errors import InputError
from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Model
from fastdiff.noise_loss import noise_loss
from fastdiff.schedules import Array, Schedule
from fastdiff.train.batch import Batch
from fastdiff.train.objectives.loss import Loss
from fastdiff.train.objectives.weights import of_output


def l_simple(schedule: Schedule, prediction: str) -> Loss:
    """Return L_simple (Ho et al. 2020, eq. 14): mean squared error against the prediction's own target.

    A score's error is weighted by sigma^2 (Song & Ermon 2019, eq. 6), which makes it the error of eps.

    Raises:
        InputError: the prediction is unknown, cannot be found at a level of the schedule, or is "consistency", whose
            target grows without bound towards sigma_min.
    """
    if prediction == "consistency":
        raise InputError("l_simple would weigh a consistency output without bound: use l_gamma, --weighting edm")
    return _weighted(schedule, prediction, schedule.sigma**2 if prediction == "score" else np.ones(len(schedule)))


def l_gamma(schedule: Schedule, prediction: str, gamma: str | npt.ArrayLike) -> Loss:
    """Return `gamma_t mean (x0_hat - x0)^2` for any weights (Song et al. 2020, eq. 5, there of eps).

    Args:
        schedule: the noise levels.
        prediction: what the network predicts.
        gamma: weights of the error of x0, a name of `weights.WEIGHTS` or [T].

    Raises:
        InputError: as `l_simple`, or the weights are unknown or not one for each level.
    """
    return _weighted(schedule, prediction, of_output(gamma, schedule, prediction))


def _weighted(schedule: Schedule, prediction: str, weight: Array) -> Loss:
    predictions.coefficients(prediction, schedule.alpha, schedule.sigma, schedule.step_sigma)  # or it cannot be trained
    table = functools.cache(torch.from_numpy(np.stack([schedule.time, weight], axis=1)).float().to)

    def loss(model: Model, batch: Batch) -> Tensor:
        x0, t, whose = batch.x0, batch.t, batch.whose_noise
        time, factor = table(x0.device)[t].unbind(1)
        out = model(q_sample(x0, t, schedule, scaled=True, **whose), time, **batch.cond)
        errors = noise_loss(out, reduction="none", x0=x0, t=t, schedule=schedule, prediction=prediction, **whose)
        return factor * errors

    return loss
