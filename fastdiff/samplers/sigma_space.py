"""The two numbers of Permenter & Yuan 2024: mu, how much of a step is noise, and gamma, how far eps is extrapolated."""

from __future__ import annotations

from typing_extensions import Unpack

from fastdiff.errors import number
from fastdiff.plan import Plan
from fastdiff.samplers.adams import add_adams
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.stages import add_euler, lowered, straight
from fastdiff.schedules import Schedule


@sampler
def sigma_space(schedule: Schedule, steps: int | None = 20, mu: float = 0.5, **options: Unpack[Options]) -> Plan:
    """The mu family: `x <- x + (s_down - s) eps + sqrt(s'^2 - s_down^2) z` with `s' = s^mu s_down^(1 - mu)`.

    In variance-exploding coordinates, s = sigma / alpha (Permenter & Yuan 2024, section 2).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        mu: in 0..1, without 1: 0 is DDIM, 1/2 is DDPM.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    number("mu", mu, 0, 1, below=True)
    rows = Rows(schedule, steps, **options)
    for step in straight(rows.levels):
        # s_down / s', from s' = s^mu s_down^(1 - mu).
        add_euler(rows, lowered(rows, step, (step.down.ratio / step.now.ratio) ** (mu / (1 - mu))))
    return rows.plan()


@sampler
def gradient_estimation(
    schedule: Schedule, steps: int | None = 20, gamma: float = 2.0, **options: Unpack[Options]
) -> Plan:
    """DDIM along `gamma eps_t + (1 - gamma) eps_{t+1}`, first along eps_t alone (Permenter & Yuan 2024, section 5).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        gamma: weight of the newest eps; 1 is DDIM, 2 the paper's.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    number("gamma", gamma)
    rows = Rows(schedule, steps, **options)
    for i, (now, after) in enumerate(rows.steps()):
        past = [(1 - gamma) * (after.ratio - now.ratio)] if i else []
        add_adams(rows, i, 2, now, after, past)
    return rows.plan(stores="eps")
