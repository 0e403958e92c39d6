"""The samplers that are timed, as each peer has them: a plan, a few lines of plain torch, a diffusers scheduler.

All stand in row ROW of the same schedule, and none clips x0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.bench.speed.work import Unavailable
from fastdiff.plan import Plan
from fastdiff.samplers.spacing import spaced

SCHEDULE = fd.schedules.linear(1000, beta_start=1e-4, beta_end=2e-2)  # the default of diffusers' schedulers
# Near level 180, where a step multiplies x by 1.04: repeated in place it does not overflow within a thousand calls.
STEPS, ROW = 50, 40


class Step(NamedTuple):
    """The levels that a step joins; `r` is the gap in log-SNR that led to it over its own."""

    alpha: float
    sigma: float
    alpha_prev: float
    sigma_prev: float
    r: float

    @property
    def beta(self) -> float:
        """Variance of q(x_t | x_prev)."""
        return 1 - (self.alpha / self.alpha_prev) ** 2

    @property
    def posterior_deviation(self) -> float:
        """Standard deviation of q(x_prev | x_t, x0)."""
        return math.sqrt(self.beta) * self.sigma_prev / self.sigma


def ddim(x: Tensor, eps: Tensor, step: Step, eta: float) -> tuple[Tensor]:
    """DDIM (Song et al. 2020, eq. 12)."""
    x0 = (x - step.sigma * eps) / step.alpha
    s = eta * step.posterior_deviation
    x = step.alpha_prev * x0 + math.sqrt(step.sigma_prev**2 - s**2) * eps
    return (x + s * torch.randn_like(x) if eta else x,)


def ddpm(x: Tensor, eps: Tensor, step: Step) -> tuple[Tensor]:
    """DDPM (Ho et al. 2020, Algorithm 2), on a subsequence of the levels."""
    mean = (x - step.beta / step.sigma * eps) * (step.alpha_prev / step.alpha)
    return (mean + step.posterior_deviation * torch.randn_like(x),)


def dpmpp_2m(x: Tensor, eps: Tensor, step: Step, last_x0: Tensor) -> tuple[Tensor, Tensor]:
    """DPM-Solver++ 2M (Lu et al. 2022, Algorithm 2)."""
    x0 = (x - step.sigma * eps) / step.alpha
    d = (1 + 1 / (2 * step.r)) * x0 - 1 / (2 * step.r) * last_x0
    decay = step.alpha * step.sigma_prev / (step.alpha_prev * step.sigma)  # e^-h
    return step.sigma_prev / step.sigma * x + step.alpha_prev * (1 - decay) * d, x0


def dpmpp_2m_plan(steps: int) -> Plan:
    """DPM-Solver++ 2M as a plan, at diffusers' default timesteps; of first order in the first and the last row."""
    timesteps = spaced(len(SCHEDULE), steps + 1, "linspace")[:-1].tolist()
    return fd.samplers.dpmpp_2m(SCHEDULE, timesteps=timesteps, clip=None)


@dataclass(frozen=True)
class Sampler:
    """A sampler as each peer has it.

    Attributes:
        plan: fastdiff's.
        eager: `(x, eps, step, *history) -> (x', *history)` in plain torch, as one would write it.
        scheduler: name of the diffusers class, which takes `config`; its method `step` takes `options`.
    """

    plan: Plan
    eager: Callable[..., tuple[Tensor, ...]]
    scheduler: str
    config: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)

    def step(self) -> Step:
        """Return the levels of ROW; the times of these plans are indices of the schedule."""
        before, at, to = (int(self.plan.t[row]) for row in (ROW - 1, ROW, ROW + 1))
        alpha, sigma = SCHEDULE.alpha, SCHEDULE.sigma
        log_snr = np.log(alpha / sigma)
        r = (log_snr[at] - log_snr[before]) / (log_snr[to] - log_snr[at])
        return Step(*(float(value) for value in (alpha[at], sigma[at], alpha[to], sigma[to], r)))


def scheduler(name: str, config: Mapping[str, Any]) -> Any:
    """Return a diffusers scheduler. Raises Unavailable if diffusers is not installed or cannot be imported."""
    try:
        import diffusers

        kind = getattr(diffusers, name)  # imports more, and calls what goes wrong there a RuntimeError
    except (ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise Unavailable(f"diffusers cannot be imported ({reason}): pip install 'fastdiff-sampler[bench]'") from None
    return kind(**config)


def _ddim(eta: float) -> Sampler:
    plan = fd.samplers.ddim(SCHEDULE, STEPS, eta, clip=None)
    options = {"eta": eta, "generator": None}
    return Sampler(plan, partial(ddim, eta=eta), "DDIMScheduler", {"clip_sample": False}, options)


def _ddpm() -> Sampler:
    plan = fd.samplers.ddpm(SCHEDULE, STEPS, clip=None)
    return Sampler(plan, ddpm, "DDPMScheduler", {"clip_sample": False}, {"generator": None})


SAMPLERS: dict[str, Callable[[], Sampler]] = {
    "ddim": lambda: _ddim(eta=0.0),
    "ddim-eta1": lambda: _ddim(eta=1.0),
    "ddpm": _ddpm,
    "dpmpp-2m": lambda: Sampler(dpmpp_2m_plan(STEPS), dpmpp_2m, "DPMSolverMultistepScheduler"),
}
