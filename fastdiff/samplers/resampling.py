"""Back up by noise and down again, to forget errors: Restart (Xu et al. 2023) and RePaint (Lugmayr et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from typing_extensions import Unpack

from fastdiff.errors import InputError
from fastdiff.plan import Plan
from fastdiff.samplers import sigmas
from fastdiff.samplers.levels import Level
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.stages import add_euler, add_heun, ancestral, straight
from fastdiff.schedules import Schedule

Interval = tuple[float, float, int, int]


@sampler
def restart(
    schedule: Schedule,
    steps: int | None = 20,
    intervals: Sequence[Interval] = ((0.06, 0.3, 2, 3),),
    **options: Unpack[Options],
) -> Plan:
    """Heun's method with restarts: back up from sigma_min to sigma_max by noise, and down again (Xu et al. 2023).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps beside the restarts; None is one for every level.
        intervals: `(sigma_min, sigma_max, restarts, steps)` of each, in sigma / alpha. sigma_min becomes the nearest
            level that a step lands on; the `steps` of one way down have Karras' spacing.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of two rows a step, but one for a step onto clean data or from pure noise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    detours: dict[int, list[list[Level]]] = {}
    for low, high, restarts, within in intervals:
        place = min(range(1, len(rows.levels)), key=lambda i: abs(rows.levels[i].ratio - low))
        way = _way_down(rows, high, rows.levels[place], within)
        detours.setdefault(place, []).extend([way] * restarts)
    for step in straight(rows.levels, detours):
        add_heun(rows, step)
    return rows.plan()


def _way_down(rows: Rows, high: float, end: Level, steps: int) -> list[Level]:
    """Return the levels of so many steps from sigma / alpha = high down to a level, without that."""
    # Onto clean data, which is no level of the network, the last step is from the cleanest one.
    low = end.ratio or float(rows.schedule.sigma[0] / rows.schedule.alpha[0])
    if not low < high < math.inf:
        raise InputError(f"a restart from sigma = {low:g} needs a larger sigma_max, got {high}: use more steps")
    if not isinstance(steps, int) or steps < 1:
        raise InputError(f"a restart needs a whole number of steps, at least 1, got {steps!r}")
    return [rows.between(ratio) for ratio in sigmas.karras(steps + bool(end.sigma), low, high)[:steps].tolist()]


@sampler
def repaint(
    schedule: Schedule,
    steps: int | None = 50,
    jump_length: int = 10,
    jump_samples: int = 10,
    eta: float = 1.0,
    **options: Unpack[Options],
) -> Plan:
    """DDPM that keeps going back: the resampling of RePaint (Lugmayr et al. 2022, Algorithm 1 and appendix B).

    Noise leads up `jump_length` levels in one draw, and steps back down. `fd.sample(..., known=, mask=)` puts in the
    known region after each row.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many levels; None is every one. The plan has about `jump_samples` times as many rows.
        jump_length: how many levels a jump goes up, and how far apart jumps begin, at least 1; j in the paper.
        jump_samples: how often each stretch is walked, at least 1: once more than jumps; r in the paper.
        eta: amount of noise of the steps down, as in `ddim`: 1 is DDPM, 0 is DDIM.
        options: what most samplers take; see `Options`. The default spacing is "leading".

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    if not (isinstance(jump_length, int) and isinstance(jump_samples, int) and jump_length >= 1 and jump_samples >= 1):
        raise InputError(
            f"jump_length and jump_samples must be whole numbers, at least 1, got {jump_length!r} and {jump_samples!r}"
        )
    options.setdefault("spacing", "leading")
    rows = Rows(schedule, steps, **options)
    places = range(len(rows.levels) - 1, jump_length, -jump_length)
    detours = {place: [rows.levels[place - jump_length : place]] * (jump_samples - 1) for place in places}
    for step in straight(rows.levels, detours):
        add_euler(rows, ancestral(rows, step, eta))
    return rows.plan()
