"""DDPM (Ho et al. 2020): ancestral sampling from the posterior q(x_prev | x_t, x0)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from typing_extensions import Unpack

from fastdiff.errors import lookup
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level, step_variance
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Common, Rows
from fastdiff.schedules import Schedule

# Least posterior variance, so that it has a logarithm where a step lands on clean data.
_LEAST = 1e-20


def _learned_range(small: float, large: float) -> dict[str, float]:
    # exp(v' log beta + (1 - v') log beta~) with v' = (v + 1) / 2 is a geometric mean times exp(v times half the gap).
    small, large = math.log(small), math.log(large)
    return {"cz": math.exp((small + large) / 4), "cv": (large - small) / 4}


LEARNED = "learned_range"
# The columns of the noise, of beta~ and beta.
_VARIANCES: dict[str, Callable[[float, float], dict[str, float]]] = {
    "small": lambda small, large: {"cz": math.sqrt(small)},
    "large": lambda small, large: {"cz": math.sqrt(large)},
    LEARNED: _learned_range,
    "none": lambda small, large: {},
}


@sampler
def ddpm(
    schedule: Schedule,
    steps: int | None = None,
    variance: str = "small",
    spacing: str | None = "leading",
    timesteps: Sequence[int] | None = None,
    **options: Unpack[Common],
) -> Plan:
    """Ancestral sampling: the posterior mean of (x, x0) plus noise (Ho et al. 2020, eqs. 6-7 and Algorithm 2).

    On a subsequence of the levels, beta is that of the longer steps (Nichol & Dhariwal 2021, section 4). Written in
    (alpha, sigma), so it holds for every schedule.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations, 1..T; None takes every level.
        variance: "small" (beta~), "large" (beta, which depends on the coordinates: sigma^2 - sigma_prev^2 in
            variance-exploding ones), "none" (the mean alone), or "learned_range":
            `exp(v' log beta + (1 - v') log beta~)`, `v' = (v + 1) / 2`, where v in [-1, 1] is the second half of the
            network's output channels (Nichol & Dhariwal 2021, eq. 15).
        spacing: which levels to visit; see `fastdiff.samplers.spacing` and `fastdiff.samplers.sigmas`.
        timesteps: schedule indices to visit instead, falling strictly; `steps` and `spacing` are then not used.
        options: what every sampler takes; see `Common`.

    Returns:
        A plan of `steps` rows whose last row lands on x0 without noise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    lookup("variance", variance, _VARIANCES)
    rows = Rows(schedule, steps, spacing=spacing, timesteps=timesteps, **options)
    for now, after in rows.steps():
        add_ddpm(rows, now, after, variance if after.sigma else "none")
    return rows.plan()


def add_ddpm(rows: Rows, now: Level, after: Level, variance: str, beta: float | None = None, **columns: float) -> None:
    """Add the row of a step to the posterior at another level, with further columns; see `ddpm`.

    `beta` is the variance of the noise between the levels, where that is known better than from their difference.
    """
    beta = step_variance(now, after) if beta is None else beta
    share = (after.sigma / now.sigma) ** 2
    noise = _VARIANCES[variance](max(beta * share, _LEAST), beta)
    state = {"cx": now.alpha / after.alpha * share, "c0": after.alpha * beta / now.sigma**2}
    rows.add(now, None, after, **state, **noise, **columns)
