"""The levels that a sampler visits, noisiest first, and what lies between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy.typing as npt

from fastdiff.errors import InputError, lookup
from fastdiff.samplers import sigmas as falling
from fastdiff.samplers import spacing as spacings
from fastdiff.schedules import Schedule

_FINAL = {"zero": "clean data", "sigma_min": "the cleanest level of the schedule"}


class Level(NamedTuple):
    """One noise level: `x = alpha x0 + sigma eps`.

    Attributes:
        alpha, sigma: the scales of signal and noise; sigma is 0 for clean data.
        time, scale_in: what the network is given there, NaN for clean data.
        step_sigma: standard deviation of the schedule's own last step to this level; NaN between its levels.
        place: its index in the schedule; NaN between the levels.
    """

    alpha: float
    sigma: float
    time: float = math.nan
    scale_in: float = math.nan
    step_sigma: float = math.nan
    place: float = math.nan

    @property
    def ratio(self) -> float:
        """sigma / alpha, the sigma of variance-exploding coordinates; inf for pure noise."""
        return self.sigma / self.alpha if self.alpha else math.inf

    @property
    def lambda_(self) -> float:
        """`log(alpha / sigma)`: inf for clean data, -inf for pure noise."""
        return -math.log(self.ratio) if 0 < self.ratio < math.inf else math.inf if self.alpha else -math.inf


CLEAN = Level(1.0, 0.0)


def at_index(schedule: Schedule, index: int) -> Level:
    """Return a level of the schedule."""
    tables = schedule.alpha, schedule.sigma, schedule.time, schedule.scale_in, schedule.step_sigma
    alpha, sigma, time, scale_in, step_sigma = (float(table[index]) for table in tables)
    return Level(alpha, sigma, time, scale_in, step_sigma, place=index)


def at_ratio(schedule: Schedule, ratio: float) -> Level:
    """Return the level with `sigma / alpha = ratio`, which may lie between those of the schedule."""
    time, alpha, sigma, scale_in = schedule.at_lambda(-math.log(ratio))
    return Level(float(alpha), float(sigma), float(time), float(scale_in))


def visited(
    schedule: Schedule,
    steps: int | None,
    spacing: str = "leading",
    timesteps: Sequence[int] | None = None,
    sigmas: npt.ArrayLike | None = None,
    between: tuple[float | None, float | None] = (None, None),
    final: str = "zero",
    start: int = 0,
) -> list[Level]:
    """Return the levels of a plan, noisiest first, and behind them the level that its last step lands on.

    Args:
        schedule: the levels that the network was trained on.
        steps: how many levels to visit; None takes every level of the schedule.
        spacing: a name of `spacing.spaced`, which picks levels of the schedule, or of `sigmas.SPACINGS`, which may
            pick levels in between.
        timesteps: indices of the schedule to visit instead, falling strictly.
        sigmas: values of sigma / alpha to visit instead, falling strictly and positive.
        between: the least and the largest value of sigma / alpha for spacings by sigma; None is the schedule's.
        final: where the last step lands, "zero" (clean data) or "sigma_min" (the cleanest level of the schedule).
        start: how many of the levels to leave out at the noisy end, to begin from noised data.

    Raises:
        InputError: an argument is out of range or a name is unknown, or no step is left.
    """
    lookup("final", final, _FINAL)
    lookup("spacing", spacing, dict.fromkeys((*spacings.names(), *falling.names())))
    lands = final == "sigma_min"
    if timesteps is None and (sigmas is not None or spacing in falling.SPACINGS):
        ratios = falling.spaced(schedule, steps, spacing, between, lands) if sigmas is None else falling.custom(sigmas)
        found = [at_ratio(schedule, ratio) for ratio in ratios.tolist()]
        cleanest = found.pop() if lands and sigmas is None else at_index(schedule, 0)
    else:
        T = len(schedule)
        index = spacings.spaced(T, steps, spacing) if timesteps is None else spacings.custom(T, timesteps)
        found = [at_index(schedule, i) for i in index.tolist()]
        cleanest = at_index(schedule, 0)
    if lands and found[-1].ratio <= cleanest.ratio:
        raise InputError("final='sigma_min' needs a last level above the schedule's cleanest: use another spacing")
    if not 0 <= start < len(found):
        raise InputError(f"start must be in 0..{len(found) - 1}, so that a step is left, got {start}")
    return [*found[start:], cleanest if lands else CLEAN]


def step_variance(now: Level, after: Level) -> float:
    """Variance of q(x_now | x_after), beta_t of a single step: `sigma^2 - (alpha / alpha')^2 sigma'^2`."""
    return now.sigma**2 - (now.alpha / after.alpha) ** 2 * after.sigma**2


def posterior_variance(now: Level, after: Level) -> float:
    """Variance of q(x_after | x_now, x0), beta~_t (Ho et al. 2020, eq. 7): `step_variance sigma'^2 / sigma^2`."""
    return step_variance(now, after) * (after.sigma / now.sigma) ** 2
