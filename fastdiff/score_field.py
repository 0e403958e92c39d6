"""The score that a network of any prediction has learned, on a lattice of points of the plane."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff import prediction as predictions
from fastdiff.errors import InputError
from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Model
from fastdiff.schedules import Schedule


class ScoreField(NamedTuple):
    """The score at one level.

    Attributes:
        sigma: of the level.
        noised: data at the level [N, 2].
        points: a square lattice over them [M, 2].
        score: at the points [M, 2].
    """

    sigma: float
    noised: Tensor
    points: Tensor
    score: Tensor


@torch.no_grad()
def score_field(
    model: Model, x0: Tensor, level: int, schedule: Schedule, prediction: str, *, side: int = 20, seed: int = 0
) -> ScoreField:
    """Return the score `-eps / sigma` at a level, over the data noised to it.

    A network with classes is asked without one.

    Args:
        model: the network.
        x0: points of the data [N, 2], where the network is.
        level: index of the schedule.
        schedule: the noise levels.
        prediction: what the network predicts.
        side: points on a side of the lattice.
        seed: of the noise.

    Raises:
        InputError: the data are no points of the plane, the prediction is unknown, or the level is not the schedule's.
    """
    if x0.ndim != 2 or x0.shape[1] != 2:
        raise InputError(f"a score field is drawn in the plane: x0 must be [N, 2], got {tuple(x0.shape)}")
    noised = q_sample(x0, level, schedule, seed)
    reach = float(noised.abs().max())
    line = torch.linspace(-reach, reach, side, device=x0.device)
    points = torch.cartesian_prod(line, line)
    at = slice(level, level + 1)
    alpha, sigma, step_sigma = schedule.alpha[at], schedule.sigma[at], schedule.step_sigma[at]
    found = predictions.coefficients(prediction, alpha, sigma, step_sigma)
    time = points.new_full((len(points),), float(schedule.time[level]))
    out = model(points * float(schedule.scale_in[level]), time)[:, :2]
    eps = float(found.ex[0]) * points + float(found.eo[0]) * out
    return ScoreField(float(sigma[0]), noised, points, -eps / float(sigma[0]))
