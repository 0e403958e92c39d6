"""Distilled models: samplers that jump to the data, or close to it, and add noise for the next level."""

from __future__ import annotations

import math

import numpy as np
from typing_extensions import Unpack

from fastdiff.errors import InputError, number
from fastdiff.plan import Plan
from fastdiff.prediction import SIGMA_DATA
from fastdiff.samplers.levels import Level, at_index, step_variance
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.spacing import distilled
from fastdiff.schedules import Schedule


@sampler
def consistency(schedule: Schedule, steps: int | None = 2, **options: Unpack[Options]) -> Plan:
    """Multistep consistency sampling (Song et al. 2023, Algorithm 1): each row jumps to x0 and noises it again.

    `x' = alpha' x0 + sqrt(sigma'^2 - alpha'^2 ratio_end^2) z`, where ratio_end is that of the level to land on: with
    final="sigma_min" the network's x0 is taken to hold the noise of the cleanest level, as in the paper, and with
    "zero" none. On `schedules.flow` the latter is flow matching with stochastic sampling.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations; None is one for every level.
        options: what most samplers take; see `Options`. Prediction "consistency" applies the paper's boundary
            condition to a raw network, and "x0" takes the output as it is.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    end = rows.levels[-1].ratio
    for now, after in rows.steps():
        rows.add(now, c0=after.alpha, cz=math.sqrt(max(after.sigma**2 - (after.alpha * end) ** 2, 0.0)))
    return rows.plan()


@sampler
def lcm(
    schedule: Schedule,
    steps: int = 4,
    original_steps: int = 50,
    timestep_scaling: float | None = 10.0,
    **options: Unpack[Options],
) -> Plan:
    """Latent consistency models (Luo et al. 2023, Algorithm 3): `x' = alpha' (c_skip x + c_out x0) + sigma' z`.

    `c_skip = d^2 / (s^2 + d^2)`, `c_out = s / sqrt(s^2 + d^2)`, s = timestep_scaling t, d = 0.5.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations, 1..original_steps.
        original_steps: how many levels the model was distilled on; `steps` of these are visited, unless timesteps,
            sigmas or a spacing are given.
        timestep_scaling: how soon the boundary condition lets go of x, > 0; None leaves it out: x0 is taken as it is.
        options: what most samplers take; see `Options`.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    if timestep_scaling is not None:
        timestep_scaling = number("timestep_scaling", timestep_scaling, 0, above=True)
    rows = _distilled_rows(schedule, steps, original_steps, options)
    for now, after in rows.steps():
        skip, out = (0.0, 1.0) if timestep_scaling is None else boundary(timestep_scaling * now.time)
        rows.add(now, cx=after.alpha * skip, c0=after.alpha * out, cz=after.sigma)
    return rows.plan()


@sampler
def tcd(
    schedule: Schedule,
    steps: int = 4,
    gamma: float = 0.3,
    original_steps: int = 50,
    **options: Unpack[Options],
) -> Plan:
    """Trajectory consistency (Zheng et al. 2024, Algorithm 4): DDIM to s = (1 - gamma) t', and noise from s to t'.

    Args:
        schedule: the noise levels the network was trained on, with times that rise with the index.
        steps: network evaluations, 1..original_steps.
        gamma: 0 (deterministic) to 1 (each row jumps to the cleanest level).
        original_steps: how many levels the model was distilled on; `steps` of these are visited, unless timesteps,
            sigmas or a spacing are given.
        options: what most samplers take; see `Options`.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    gamma = number("gamma", gamma, 0, 1)
    if (np.diff(schedule.time) <= 0).any():
        raise InputError("tcd needs a schedule whose times rise with the index: see Schedule.with_time")
    rows = _distilled_rows(schedule, steps, original_steps, options)
    for now, after in rows.steps():
        add_tcd(rows, now, _aim(schedule, after, gamma), after)
    return rows.plan()


def add_tcd(rows: Rows, now: Level, s: Level, after: Level, **columns: float) -> None:
    """Add the row of a step by DDIM to the level s and by noise from there to another, with further columns."""
    share = after.alpha / s.alpha
    noise = math.sqrt(step_variance(after, s))
    rows.add(now, None, after, c0=after.alpha, ce=share * s.sigma, cz=noise, **columns)


def _distilled_rows(schedule: Schedule, steps: int, original_steps: int, options: Options) -> Rows:
    if not {"timesteps", "sigmas", "spacing"} & options.keys():
        options["timesteps"] = distilled(len(schedule), steps, original_steps).tolist()
    return Rows(schedule, steps, **options)


def boundary(s: float) -> tuple[float, float]:
    """Return c_skip and c_out of `x0 = c_skip x + c_out x0` at the scaled time s, which is x at s = 0; see `lcm`."""
    norm = math.hypot(s, SIGMA_DATA)
    return (SIGMA_DATA / norm) ** 2, s / norm


def _aim(schedule: Schedule, after: Level, gamma: float) -> Level:
    """Return the noisiest level of the schedule at or below time (1 - gamma) t'; `after` if that is not below it."""
    if gamma == 0 or not after.sigma:
        return after
    # Rounding may put a product a last digit below the whole number that it is.
    index = np.searchsorted(schedule.time, (1 - gamma) * after.time * (1 + 1e-12), side="right") - 1
    s = at_index(schedule, max(int(index), 0))
    return s if s.ratio < after.ratio else after
