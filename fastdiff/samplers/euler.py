"""Euler's method in sigma / alpha, with churn (Karras et al. 2022) and ancestral."""

from __future__ import annotations

import math

from typing_extensions import Unpack

from fastdiff.plan import Plan
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.stages import add_euler, ancestral, churned_plan, straight
from fastdiff.schedules import Schedule


@sampler
def euler(
    schedule: Schedule,
    steps: int | None = 20,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    **options: Unpack[Options],
) -> Plan:
    """Euler's method with churn (Karras et al. 2022, Algorithm 2 without its second stage). Without churn it is DDIM.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        churn, churn_min, churn_max, churn_noise: S_churn, S_tmin, S_tmax and S_noise; see `stages.churned`.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    return churned_plan(rows, add_euler, churn, churn_min, churn_max, churn_noise)


@sampler
def euler_ancestral(schedule: Schedule, steps: int | None = 20, eta: float = 1.0, **options: Unpack[Options]) -> Plan:
    """Euler's method down to less than the next level, and noise up to it (k-diffusion's Euler ancestral).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        eta: amount of noise, >= 0: 0 is DDIM, 1 is DDPM; more is cut off where the noise is all of the next level.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    for step in straight(rows.levels):
        add_euler(rows, ancestral(rows, step, eta))
    return rows.plan()
