"""DDIM backwards: from data to the noise that DDIM makes them of."""

from __future__ import annotations

from typing_extensions import Unpack

from fastdiff.plan import Plan
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Schedule


@sampler
def ddim_inversion(schedule: Schedule, steps: int | None = 50, **options: Unpack[Options]) -> Plan:
    """DDIM from data to noise: `x' / alpha' = x / alpha + (s' - s) eps`, s = sigma / alpha (Song et al. 2020, 4.3).

    Run it as `fd.sample(model, plan, shape, x_init=data)`. DDIM over the same levels leads back, the closer the more
    steps there are.

    The network is asked as if the state were already at the level to go to: its time (as in diffusers) and input scale,
    and how x0 and eps follow from its output, are that level's. So eps can be found at clean data too, and is the same
    for every prediction.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        options: what most samplers take; see `Options`. The default spacing is "leading", as in `ddim`. The levels are
            visited the other way round: from where the plan of DDIM lands (`final`) to where it begins (`start`).

    Returns:
        A plan of one row a step, whose start state is 0 unless `x_init` is given.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    options.setdefault("spacing", "leading")
    rows = Rows(schedule, steps, **options)
    for after, now in reversed(rows.steps()):
        rows.add(now, after, after, cx=after.alpha / now.alpha, ce=after.sigma - after.alpha * now.ratio)
    return rows.plan(init_scale=0.0)
