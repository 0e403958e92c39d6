"""Networks whose likelihood is known."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from fastdiff.models import GaussianMixture
from fastdiff.samplers.levels import CLEAN, at_index, step_variance
from fastdiff.schedules import Schedule

Network = Callable[..., Tensor]


def exact_gaussian(mean: float, deviation: float, schedule: Schedule, prediction: str) -> Network:
    """The reverse process of 1-D data N(mean, deviation^2) itself, of a learned variance, in float64.

    q(x_{k-1} | x_k) has the variance `beta (alpha'^2 d^2 + sigma'^2) / (alpha^2 d^2 + sigma^2)`, and
    `log beta~ + (v + 1) / 2 log(beta / beta~)` is its logarithm, where the first beta~ is that of the next level.
    """
    network = GaussianMixture([[mean]], [deviation]).network(schedule, prediction)
    levels = [CLEAN, *(at_index(schedule, k) for k in range(len(schedule)))]
    alpha, sigma = (np.array([getattr(level, name) for level in levels]) for name in ("alpha", "sigma"))
    beta = np.array([step_variance(now, after) for after, now in pairwise(levels)])
    small = beta * (sigma[:-1] / sigma[1:]) ** 2
    small[0] = small[1]
    spread = (alpha * deviation) ** 2 + sigma**2
    reverse = beta * spread[:-1] / spread[1:]
    v = torch.from_numpy(2 * np.log(reverse / small) / np.log(beta / small) - 1)
    places = {float(time): k for k, time in enumerate(schedule.time)}

    def model(x: Tensor, t: Tensor) -> Tensor:
        which = torch.tensor([places[time] for time in t.tolist()])
        return torch.cat([network(x, t), v[which, None]], dim=1)

    return model
