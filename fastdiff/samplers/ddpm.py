"""DDPM (Ho et al. 2020): ancestral sampling from the posterior q(x_prev | x_t, x0)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from typing_extensions import Unpack

from fastdiff.errors import lookup
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level, posterior_variance, step_variance
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Common, Rows
from fastdiff.schedules import Schedule

# Least posterior variance, so that it has a logarithm where a step lands on clean data.
_LEAST = 1e-20


def _beta_tilde(now: Level, after: Level) -> float:
    return max(posterior_variance(now, after), _LEAST)


def _small(now: Level, after: Level) -> dict[str, float]:
    return {"cz": math.sqrt(_beta_tilde(now, after))}


def _large(now: Level, after: Level) -> dict[str, float]:
    return {"cz": math.sqrt(step_variance(now, after))}


def _learned_range(now: Level, after: Level) -> dict[str, float]:
    # exp(v' log beta + (1 - v') log beta~) with v' = (v + 1) / 2 is a geometric mean times exp(v times half the gap).
    small, large = math.log(_beta_tilde(now, after)), math.log(step_variance(now, after))
    return {"cz": math.exp((small + large) / 4), "cv": (large - small) / 4}


LEARNED = "learned_range"
_VARIANCES: dict[str, Callable[[Level, Level], dict[str, float]]] = {
    "small": _small,
    "large": _large,
    LEARNED: _learned_range,
    "none": lambda now, after: {},
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
        add_ddpm(rows, now, after, **(noise_columns(variance, now, after) if after.sigma else {}))
    return rows.plan()


def add_ddpm(rows: Rows, now: Level, after: Level, **noise: float) -> None:
    """Add the row of a step to the posterior mean at another level, with the columns of its noise; see `ddpm`."""
    rows.add(
        *(now, None, after),
        cx=now.alpha / after.alpha * (after.sigma / now.sigma) ** 2,
        c0=after.alpha * step_variance(now, after) / now.sigma**2,
        **noise,
    )


def noise_columns(variance: str, now: Level, after: Level) -> dict[str, float]:
    """Return the columns of the noise of a step, by the name of its variance in `ddpm`."""
    return lookup("variance", variance, _VARIANCES)(now, after)
