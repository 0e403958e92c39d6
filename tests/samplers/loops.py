"""What the tests of samplers share: levels in the paper's terms, one row and whole loops in float64, and a network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.ops import reference
from fastdiff.plan import Plan
from fastdiff.schedules import Schedule

Array = npt.NDArray[np.float64]

T = 1000
STEPS = [1, 7, 13, 50, 1000]  # 7 and 13 do not divide T
BETAS = np.linspace(1e-4, 2e-2, T)
LINEAR = fd.schedules.linear(T)


def alpha_bars(index: list[int]) -> tuple[Array, Array]:
    """abar at the levels and at the next cleaner ones, abar_prev = 1 at the end: from the paper's betas."""
    alpha_bar = np.cumprod(1 - BETAS)
    return alpha_bar[index], np.append(alpha_bar[index[1:]], 1.0)


def update(plan: Plan, row: int, x: Tensor, out: Tensor, z: Tensor, variance: Tensor | None = None) -> Tensor:
    """Carry out one row in float64."""
    x = x.clone()
    rows = torch.full((len(x),), row)
    table = torch.from_numpy(plan.table.copy())
    reference.step(x, out, table, plan.layout, rows, z=z, variance=variance)
    return x


def denoiser(schedule: Schedule, name: str, learns_variance: bool = False) -> Callable[..., Tensor]:
    """A network of the given prediction whose x0 is always tanh(x / 2 + level / T); its learned v is cos x."""

    def model(x: Tensor, t: Tensor) -> Tensor:
        level = t.long()
        alpha, sigma = (torch.from_numpy(s.copy())[level][:, None] for s in (schedule.alpha, schedule.sigma))
        x0 = torch.tanh(x / 2 + level[:, None] / len(schedule))
        eps = (x - alpha * x0) / sigma
        norm = (sigma**2 + 0.25 * alpha**2).sqrt()
        above = sigma - 0.002 * alpha
        skip, scale = 0.25 * alpha / (above**2 + 0.25 * alpha**2), 0.5 * above / norm
        targets = {
            "x0": x0,
            "eps": eps,
            "v": alpha * eps - sigma * x0,
            "score": -eps / sigma,
            "flow": eps - x0,
            "edm": 2 * sigma / norm * x0 - alpha / 2 / norm * eps,  # (D - c_skip x / alpha) / c_out, sigma_data = 0.5
            "consistency": (x0 - skip * x) / scale,  # sigma_min = 0.002
            "eps_step": torch.from_numpy(schedule.step_sigma.copy())[level][:, None] / sigma * eps,
        }
        return torch.cat([targets[name], torch.cos(x)], dim=1) if learns_variance else targets[name]

    return model


def trajectory(model: Callable[..., Tensor], plan: Plan, x_init: Tensor) -> tuple[Tensor, Tensor]:
    """Every state [rows, B, ...] of a float64 run with fixed noise, and the last x0."""
    states, x0s = [], []

    def keep(row: int, x: Tensor, x0: Tensor) -> None:
        states.append(x.clone())
        x0s.append(x0.clone())

    def noise(stream: str, draw: int, shape: tuple[int, ...]) -> Tensor:
        return gaussian(*shape, seed=draw)

    fd.sample(model, plan, x_init.shape, dtype=torch.float64, x_init=x_init, noise=noise, callback=keep)
    return torch.stack(states), x0s[-1]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    """Standard normals in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
