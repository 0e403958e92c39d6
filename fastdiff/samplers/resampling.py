"""Back up by noise and down again, to forget errors: Restart (Xu et al. 2023) and RePaint (Lugmayr et al. 2022)."""

from __future__ import annotations

from collections.abc import Sequence

from typing_extensions import Unpack

from fastdiff.errors import InputError, number, whole
from fastdiff.plan import Plan
from fastdiff.samplers import sigmas
from fastdiff.samplers.levels import Level, at_index
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
            level that a step lands on; the `steps` of one way down, from at most the schedule's noisiest level, have
            Karras' spacing.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of two rows a step, but one for a step onto clean data or from pure noise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    rows = Rows(schedule, steps, **options)
    detours: dict[int, list[list[Level]]] = {}
    try:
        parts = [(low, high, restarts, within) for low, high, restarts, within in intervals]
    except (TypeError, ValueError):
        raise InputError(f"intervals are tuples (sigma_min, sigma_max, restarts, steps), got {intervals}") from None
    for low, high, restarts, within in parts:
        low = number("an interval's sigma_min", low, 0)
        place = min(range(1, len(rows.levels)), key=lambda i: abs(rows.levels[i].ratio - low))
        way = _way_down(rows, high, rows.levels[place], within)
        detours.setdefault(place, []).extend([way] * whole("an interval's restarts", restarts, 0))
    for step in straight(rows.levels, detours):
        add_heun(rows, step)
    return rows.plan()


def _way_down(rows: Rows, high: float, end: Level, steps: int) -> list[Level]:
    """Return the levels of so many steps from sigma / alpha = high down to a level, without that."""
    # Onto clean data, which is no level of the network, the last step is from the cleanest one.
    low, top = end.ratio or at_index(rows.schedule, 0).ratio, at_index(rows.schedule, -1).ratio
    if not low < number("an interval's sigma_max", high) <= top:
        raise InputError(f"a restart from sigma = {low:g} needs a sigma_max above it and up to {top:g}, got {high}")
    steps = whole("an interval's steps", steps, 1)
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

    Noise leads up `jump_length` levels in one draw, and steps back down. As in the authors' schedule, the first jump is
    from the cleanest level with noise, and clean data come once, at the end. `fd.sample(..., known=, mask=)` puts in
    the known region after each row.

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
    jump_length, jump_samples = whole("jump_length", jump_length, 1), whole("jump_samples", jump_samples, 1)
    options.setdefault("spacing", "leading")
    rows = Rows(schedule, steps, **options)
    places = range(len(rows.levels) - 2, jump_length - 1, -jump_length)
    detours = {place: [rows.levels[place - jump_length : place]] * (jump_samples - 1) for place in places}
    for step in straight(rows.levels, detours):
        add_euler(rows, ancestral(rows, step, eta))
    return rows.plan()
