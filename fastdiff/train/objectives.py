"""Training objectives."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import prediction as predictions
from fastdiff.forward import q_sample
from fastdiff.schedules import Schedule


def l_simple(
    model: Callable[..., Tensor],
    x0: Tensor,
    t: Tensor,
    schedule: Schedule,
    prediction: str,
    cond: Mapping[str, Any],
    *,
    seed: int,
    index: Tensor,
    step: int,
) -> Tensor:
    """L_simple (Ho et al. 2020, eq. 14) for any prediction: mean squared error against the prediction's own target.

    A score's error is weighted by sigma^2 (Song & Ermon 2019, eq. 6), which makes it the error of eps.

    Args:
        model: `model(x, t, **cond) -> out`.
        x0: clean data [B, ...].
        t: schedule indices, int64 [B].
        schedule: the noise levels.
        prediction: what the network predicts; see `fastdiff.prediction`.
        cond: keyword arguments of the model.
        seed, index, step: whose noise to draw from the stream "train": a sample's noise depends on no batch or process.

    Returns:
        The loss, a float32 scalar.
    """
    x_t, eps = q_sample(x0, t, schedule, seed, index=index, step=step, stream="train", return_noise=True)
    # int64 index of a float32 table: one small gather gives time, input scale, target coefficients and weight.
    row = _table(schedule, prediction, x0.device)[t]
    time, scale_in, t0, te, weight = (value.reshape(-1, *[1] * (x0.ndim - 1)) for value in row.unbind(1))
    out = model(x_t * scale_in, time.flatten(), **cond).float()
    return (weight * (out - (t0 * x0 + te * eps)) ** 2).mean()


@functools.lru_cache(maxsize=16)
def _table(schedule: Schedule, prediction: str, device: torch.device) -> Tensor:
    """Per level: network time, input scale, coefficients of the target, weight; float32 [T, 5]."""
    target = predictions.coefficients(prediction, schedule.alpha, schedule.sigma, schedule.step_sigma)
    weight = schedule.sigma**2 if prediction == "score" else np.ones(len(schedule))
    columns = [schedule.time, schedule.scale_in, target.t0, target.te, weight]
    return torch.from_numpy(np.stack(columns, axis=1)).to(device=device, dtype=torch.float32)
