"""DDPM (Ho et al. 2020): ancestral sampling from the posterior q(x_prev | x_t, x0)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastdiff.errors import lookup
from fastdiff.plan import Plan
from fastdiff.samplers.rows import Levels, levels, x0_columns
from fastdiff.schedules import Array, Schedule


def _small(at: Levels) -> dict[str, Array]:
    return {"cz": np.sqrt(at.posterior_variance)}


def _large(at: Levels) -> dict[str, Array]:
    return {"cz": np.append(np.sqrt(at.step_variance[:-1]), 0.0)}


def _learned_range(at: Levels) -> dict[str, Array]:
    # exp(v' log beta + (1 - v') log beta~) with v' = (v + 1) / 2 is a geometric mean times exp(v times half the gap).
    small, large = np.log(at.posterior_variance[:-1]), np.log(at.step_variance[:-1])
    return {
        "cz": np.append(np.exp((small + large) / 4), 0.0),
        "cv": np.append((large - small) / 4, 0.0),
    }


_VARIANCES: dict[str, Callable[[Levels], dict[str, Array]]] = {
    "small": _small,
    "large": _large,
    "learned_range": _learned_range,
}


def ddpm(
    schedule: Schedule,
    steps: int | None = None,
    variance: str = "small",
    spacing: str = "leading",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    prediction: str = "eps",
) -> Plan:
    """Ancestral sampling: the posterior mean of (x, x0) plus noise (Ho et al. 2020, eqs. 6-7 and Algorithm 2).

    On a subsequence of the levels, beta is that of the longer steps (Nichol & Dhariwal 2021, section 4). Written in
    (alpha, sigma), so it holds for every schedule.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations, 1..T; None takes every level.
        variance: "small" (beta~), "large" (beta, which depends on the coordinates: sigma^2 - sigma_prev^2 in
            variance-exploding ones), or "learned_range": `exp(v' log beta + (1 - v') log beta~)`,
            `v' = (v + 1) / 2`, where v in [-1, 1] is the second half of the network's output channels
            (Nichol & Dhariwal 2021, eq. 15).
        spacing: as for `ddim`.
        timesteps: schedule indices to visit instead, falling strictly; `steps` and `spacing` are then not used.
        clip: bound on |x0|; None for none.
        prediction: "eps", "x0", "v", "score" or "flow".

    Returns:
        A plan of `steps` rows whose last row lands on x0 without noise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    at = levels(schedule, steps, spacing, timesteps)
    noise = lookup("variance", variance, _VARIANCES)(at)
    columns = {
        **x0_columns(at, prediction, clip),
        "cx": at.alpha / at.alpha_prev * (at.sigma_prev / at.sigma) ** 2,
        "c0": at.alpha_prev * at.step_variance / at.sigma**2,
        **noise,
    }
    return Plan.build(f"ddpm(steps={len(at.time)}, variance={variance})", at.time, columns, init_scale=at.init_scale)
