"""Two evaluations a step: Heun's method (Karras et al. 2022) and the midpoint methods of k-diffusion."""

from __future__ import annotations

import math

from typing_extensions import Unpack

from fastdiff.plan import Plan
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.stages import add_heun, add_midpoint, ancestral, churned_plan, straight
from fastdiff.schedules import Schedule


@sampler
def heun(
    schedule: Schedule,
    steps: int | None = 20,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    **options: Unpack[Options],
) -> Plan:
    """Heun's method with churn in sigma / alpha: EDM's sampler (Karras et al. 2022, Algorithm 2).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        churn, churn_min, churn_max, churn_noise: S_churn, S_tmin, S_tmax and S_noise; see `stages.churned`.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of two rows a step, but one for a step onto clean data or from pure noise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    return churned_plan(rows, add_heun, churn, churn_min, churn_max, churn_noise)


@sampler
def kdpm2(
    schedule: Schedule,
    steps: int | None = 20,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    **options: Unpack[Options],
) -> Plan:
    """The midpoint method in log(sigma / alpha) with churn: k-diffusion's DPM2, DPM-Solver-2 of Lu et al. 2022a.

    Arguments, rows and errors are those of `heun`.
    """
    rows = Rows(schedule, steps, **options)
    return churned_plan(rows, add_midpoint, churn, churn_min, churn_max, churn_noise)


@sampler
def kdpm2_ancestral(schedule: Schedule, steps: int | None = 20, eta: float = 1.0, **options: Unpack[Options]) -> Plan:
    """The midpoint method down to less than the next level, and noise up to it (k-diffusion's DPM2 ancestral).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        eta: amount of noise, >= 0, as in `euler_ancestral`; 0 is `kdpm2`.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of two rows a step, but one for a step onto clean data or from pure noise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    for step in straight(rows.levels):
        add_midpoint(rows, ancestral(rows, step, eta))
    return rows.plan()
