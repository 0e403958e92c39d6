"""Steps of one and two stages, and the noise that may end them: Euler, Heun, midpoint; churned, ancestral, restarted.

With `s = sigma / alpha` the ODE is `d(x / alpha) = eps ds` (Karras et al. 2022, eq. 4 with s as the time).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from fastdiff.errors import number
from fastdiff.plan import Plan
from fastdiff.samplers.levels import CLEAN, Level
from fastdiff.samplers.rows import Rows

MAX_CHURN = math.sqrt(2) - 1  # of Karras et al. 2022, Algorithm 2


class Step(NamedTuple):
    """One step: down along the ODE, and then up again by noise.

    Attributes:
        now: where it begins.
        down: where the ODE is followed to.
        after: where the noise leads and the next step begins; `down` itself for no noise.
        noise_scale: factor of the noise, 1 for what the level asks for.
    """

    now: Level
    down: Level
    after: Level
    noise_scale: float = 1.0

    @property
    def noise(self) -> float:
        """Standard deviation of the noise that ends the step."""
        variance = self.after.ratio**2 - self.down.ratio**2
        return self.after.alpha * self.noise_scale * math.sqrt(max(variance, 0.0))


# --- stages


def add_euler(rows: Rows, step: Step) -> None:
    """Add the row of an Euler step, which is DDIM's `x' / alpha' = x0 + s_down eps`, and noise."""
    rows.add(step.now, c0=step.after.alpha, ce=step.after.alpha * step.down.ratio, cz=step.noise)


def add_heun(rows: Rows, step: Step) -> None:
    """Add the rows of a Heun step: the mean of the slopes at both ends."""
    _add_two_stages(rows, step, step.down, weight=0.5)


def add_midpoint(rows: Rows, step: Step, middle: Level | None = None) -> None:
    """Add the rows of a midpoint step: the slope halfway in log(sigma / alpha), whose level may be given."""
    if middle is None:
        middle = _at(rows, math.sqrt(step.now.ratio * step.down.ratio)) if step.now.alpha else step.down
    _add_two_stages(rows, step, middle, weight=1.0)


def _add_two_stages(rows: Rows, step: Step, middle: Level, weight: float) -> None:
    """Add an Euler row to the middle, and one that takes `weight` of the slope there and the rest of the first.

    With the middle at the end and half the weight it is Algorithm 1 of Karras et al. 2022. Euler does alone down to
    clean data, where no slope is known, and from pure noise, where s is infinite.
    """
    if not (step.down.sigma and step.now.alpha):
        add_euler(rows, step)
        return
    scale = step.after.alpha
    slope = scale * (step.down.ratio - step.now.ratio)
    # The anchor waits for the second slope.
    anchor = {"dx": scale / step.now.alpha, "dy": 0.0, "de": (1 - weight) * slope}
    rows.add(step.now, c0=middle.alpha, ce=middle.sigma, **anchor)
    rows.add(middle, cy=1.0, ce=weight * slope, cz=step.noise)


# --- where steps lead


def ancestral(rows: Rows, step: Step, eta: float) -> Step:
    """Return the step that follows the ODE further down, to make room for eta times the posterior's noise.

    From s to s', `s_up = eta s' sqrt(1 - s'^2 / s^2)` and `s_down^2 = s'^2 - s_up^2`: 0 is the ODE alone, 1 is DDPM
    (Ho et al. 2020, eq. 7). The noise is at most all of s'. Raises InputError unless eta is >= 0 and finite.
    """
    share = 1 - number("eta", eta, 0) ** 2 * (1 - (step.down.ratio / step.now.ratio) ** 2)
    return lowered(rows, step, math.sqrt(max(share, 0.0)))


def lowered(rows: Rows, step: Step, share: float) -> Step:
    """Return the step that follows the ODE down to a share, 0..1, of the sigma / alpha it went to."""
    return step._replace(down=_at(rows, share * step.down.ratio)) if share < 1 else step


def straight(levels: Sequence[Level], detours: Mapping[int, Sequence[Sequence[Level]]] | None = None) -> list[Step]:
    """Return the steps from each level down to the next.

    Args:
        levels: to visit, and to land on.
        detours: by the place in `levels` where they begin and end: noise leads up to the first of their levels, and
            steps back down over the others.
    """
    legs = [[levels[0]]]
    for place, level in enumerate(levels[1:], start=1):
        legs[-1].append(level)
        legs += [[*detour, level] for detour in (detours or {}).get(place, [])]
    return [
        Step(now, down, down if down is not leg[-1] else start)
        for leg, start in zip(legs, [*(leg[0] for leg in legs[1:]), levels[-1]], strict=True)
        for now, down in pairwise(leg)
    ]


def churned(
    rows: Rows, churn: float, churn_min: float = 0.0, churn_max: float = math.inf, churn_noise: float = 1.0
) -> list[Step]:
    """Return steps that begin above their levels (Karras et al. 2022, Algorithm 2).

    Args:
        rows: whose levels to visit.
        churn: S_churn >= 0. Noise before a step raises sigma / alpha by 1 + min(S_churn / steps, sqrt(2) - 1), even
            beyond the schedule's.
        churn_min, churn_max: S_tmin and S_tmax, between which it is raised.
        churn_noise: S_noise > 0, factor of that noise.

    Raises:
        InputError: an argument is out of range.
    """
    gamma = min(number("churn", churn, 0) / len(rows.steps()), MAX_CHURN)
    number("churn_noise", churn_noise, 0, above=True)
    number("churn_min", churn_min, 0)
    if churn_max != math.inf:
        number("churn_max", churn_max, churn_min)

    def raised(level: Level) -> Level:
        within = level.alpha and level.sigma and churn_min <= level.ratio <= churn_max
        return rows.between(level.ratio * (1 + gamma)) if within and gamma else level

    begins = [*(raised(level) for level in rows.levels[:-1]), rows.levels[-1]]
    downs = rows.levels[1:]
    return [Step(now, down, after, churn_noise) for (now, after), down in zip(pairwise(begins), downs, strict=True)]


def churned_plan(
    rows: Rows, add_step: Callable[[Rows, Step], None], churn: float, churn_min: float, churn_max: float, noise: float
) -> Plan:
    """Return the plan whose steps, `churned` with these arguments, are added by `add_step`."""
    steps = churned(rows, churn, churn_min, churn_max, noise)
    for step in steps:
        add_step(rows, step)
    return rows.plan(init_scale=start_scale(rows, steps[0]))


def start_scale(rows: Rows, first: Step) -> float:
    """Return the standard deviation of the start state, with the noise that leads up to the first step."""
    level = rows.levels[0]
    if first.now is level:
        return rows.start_scale(level)
    noise = Step(level, level, first.now, first.noise_scale).noise
    return math.hypot(first.now.alpha / level.alpha * rows.start_scale(level), noise)


def _at(rows: Rows, ratio: float) -> Level:
    return rows.between(ratio) if ratio else CLEAN
