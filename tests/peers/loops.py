"""What the tests against peers share: a network, its noise, our states and theirs, and float64 tables for diffusers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.plan import Plan
from fastdiff.schedules import Schedule
from tests.samplers import loops
from tests.samplers.exploding import error as error

SHAPE = (2, 3, 2, 2)
PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
SPACINGS = ["leading", "trailing", "linspace"]


def schedule_of(T: int) -> Schedule:
    """The linear schedule, with the betas of a shorter one scaled so that it too ends in noise."""
    return fd.schedules.linear(T, beta_start=1e-4 * 1000 / T, beta_end=2e-2 * 1000 / T)


def gaussian(draw: int) -> Tensor:
    """Standard normals [SHAPE] in float64."""
    return loops.gaussian(*SHAPE, seed=draw)


def network(T: int, learns_variance: bool = False) -> Callable[[Tensor, float], Tensor]:
    """A fixed nonlinear network: channels mix, the level counts, and the clip acts on what follows from it."""

    def model(x: Tensor, t: float) -> Tensor:
        out = 1.2 * torch.tanh(0.9 * x + 0.3 * x.roll(1, dims=1) - 0.5 * t / T + 0.2)
        return torch.cat([out, torch.sin(3 * x)], dim=1) if learns_variance else out

    return model


def ours(plan: Plan, T: int) -> list[Tensor]:
    """The state after every row, from the noise of `gaussian`: draw 10_000 at the start, then one for each row."""
    states: list[Tensor] = []
    model = network(T, plan.learns_variance)
    fd.sample(
        lambda x, t: model(x, float(t[0])),
        plan,
        SHAPE,
        dtype=torch.float64,
        noise=lambda stream, draw, shape: gaussian(10_000 if stream == "init" else draw),
        callback=lambda row, x, x0: states.append(x.clone()),
    )
    return states


def in_float64(scheduler: Any, schedule: Schedule) -> Any:
    """Give a diffusers scheduler the levels of a schedule."""
    scheduler.alphas_cumprod = torch.from_numpy(schedule.alpha**2)
    alpha_bar = np.append(1.0, schedule.alpha**2)
    scheduler.alphas = torch.from_numpy(alpha_bar[1:] / alpha_bar[:-1])
    scheduler.betas = 1 - scheduler.alphas
    scheduler.final_alpha_cumprod = scheduler.one = torch.tensor(1.0, dtype=torch.float64)
    return scheduler


def theirs(scheduler: Any, T: int, times: npt.ArrayLike | None = None, **step: Any) -> list[Tensor]:
    """The states of a diffusers scheduler with set timesteps, from the start of `ours`.

    The network is given `times` where they are not the peer's own timesteps, which are rounded here and there.
    """
    model, states = network(T), []
    x = gaussian(10_000) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    at = scheduler.timesteps.tolist() if times is None else np.asarray(times).tolist()
    for t, time in zip(scheduler.timesteps, at, strict=True):
        x = scheduler.step(model(scaled(x, t), time), t, x, **step).prev_sample
        states.append(x)
    return states
