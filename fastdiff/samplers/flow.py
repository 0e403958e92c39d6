"""Rectified flow: what is not already DDIM, which on `schedules.flow` is flow matching's Euler method."""

from __future__ import annotations

from typing_extensions import Unpack

from fastdiff.plan import Plan
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Schedule


@sampler
def flow_heun(schedule: Schedule, steps: int | None = 20, **options: Unpack[Options]) -> Plan:
    """Heun's method on `dx = x0 d alpha + eps d sigma`, in the schedule's own coordinates.

    On `schedules.flow` that is the mean of two velocities eps - x0, which begins in pure noise; on a variance-exploding
    schedule it is Algorithm 1 of Karras et al. 2022. A step onto clean data is Euler's.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps, of two evaluations each; None is one for every level.
        options: what most samplers take; see `Options`. Spacing is "trailing" unless it is given: on `schedules.flow`
            the times 1, 1 - 1 / steps, ..., as its shift moves them.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    options.setdefault("spacing", "trailing")
    rows = Rows(schedule, steps, **options)
    for now, after in rows.steps():
        if not after.sigma:
            rows.add(now, c0=after.alpha)
            continue
        alpha, sigma = (after.alpha - now.alpha) / 2, (after.sigma - now.sigma) / 2
        rows.add(now, c0=after.alpha, ce=after.sigma, dx=1.0, dy=0.0, d0=alpha, de=sigma)
        rows.add(after, cy=1.0, c0=alpha, ce=sigma)
    return rows.plan()
