"""The distribution of every state of a plan, without sampling: for a network that is affine in x it follows exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.plan import Plan

Array = npt.NDArray[np.float64]


def marginals(plan: Plan, model: Callable[..., Tensor], mean: float, deviation: float) -> tuple[Array, Array]:
    """Mean and standard deviation of the scalar state after each row, float64 [rows].

    The states of `fd.sample` are affine in the start and in the noise of each row, all independent. So one batch tells
    all: sample 0 starts at the mean and has no noise, and each other differs from it by one standard deviation of one
    of them. What that changes is squared and added up.
    """
    sources = 1 + (len(plan) if plan.draws_noise else 0)
    start = torch.full((1 + sources, 1), mean, dtype=torch.float64)
    start[1] += deviation
    states: list[Array] = []

    def impulse(stream: str, row: int, shape: tuple[int, ...]) -> Tensor:
        z = torch.zeros(shape, dtype=torch.float64)
        z[2 + row] = 1.0
        return z

    def keep(row: int, x: Tensor, x0: Tensor) -> None:
        states.append(x[:, 0].numpy().copy())

    fd.sample(model, plan, start.shape, dtype=torch.float64, x_init=start, noise=impulse, callback=keep)
    state = np.array(states)
    return state[:, 0], np.linalg.norm(state[:, 1:] - state[:, :1], axis=1)
