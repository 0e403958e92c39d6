"""The levels that a sampler visits, noisiest first, and what lies between two of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy.typing as npt
from typing_extensions import Unpack

from fastdiff.errors import InputError, lookup, whole
from fastdiff.samplers import sigmas as falling
from fastdiff.samplers import spacing as spacings
from fastdiff.schedules import Schedule

# Whether the last step lands on a level with noise, rather than on clean data.
_LANDS = {"zero": False, "sigma_min": True}
# Largest sigma / alpha from which levels are spaced by sigma unless told to: the cosine schedule's is 2e4.
_FARTHEST = 1e4


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
        if not self.alpha:
            return -math.inf
        return -math.log(self.ratio) if self.sigma else math.inf


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


class Visits(TypedDict, total=False):
    """Which levels to visit, beside the spacing.

    Attributes:
        sigmas: values of sigma / alpha to visit, falling strictly, such as `samplers.sigmas.ays(10)`; they may lie
            between the schedule's.
        sigma_min, sigma_max: where spacings by sigma begin and end; None is the schedule's own range.
        final: where the last step lands: "zero" (clean data) or "sigma_min" (the schedule's cleanest level).
        start: how many levels to leave out at the noisy end, to begin from noised data.
        levels: the levels themselves, noisiest first, and the one to land on; steps and spacing are then not used.
    """

    sigmas: npt.ArrayLike | None
    sigma_min: float | None
    sigma_max: float | None
    final: str
    start: int
    levels: Sequence[Level] | None


def visited(
    schedule: Schedule,
    steps: int | None,
    spacing: str | None = None,
    timesteps: Sequence[int] | None = None,
    **which: Unpack[Visits],
) -> tuple[Level, ...]:
    """Return the levels of a plan, noisiest first, and behind them the level that its last step lands on.

    Args:
        schedule: the levels that the network was trained on.
        steps: how many levels to visit; None takes every level of the schedule.
        spacing: a name of `spacing.spaced`, which picks levels of the schedule, or of `sigmas.SPACINGS`, which may
            pick levels in between. None is "karras", but "trailing" where the schedule has one level or begins in pure
            noise or nearly so (sigma / alpha > 1e4), where most levels by sigma would go to waste.
        timesteps: indices of the schedule to visit instead, falling strictly.
        which: see `Visits`.

    Raises:
        InputError: an argument is out of range, a name is unknown, two say which levels to visit, or no step is left.
    """
    given = which.get("levels")
    if given is not None:
        return _given(given, timesteps, which)
    lands = lookup("final", which.get("final", "zero"), _LANDS)
    if spacing is None:
        near = schedule.sigma[-1] <= _FARTHEST * schedule.alpha[-1] or which.get("sigma_max") is not None
        spacing = "karras" if len(schedule) > 1 and near else "trailing"
    found = _chosen(schedule, steps, spacing, timesteps, lands, which)
    if lands and found[-2].ratio <= found[-1].ratio:
        raise InputError("final='sigma_min' needs a last level above the schedule's cleanest: use another spacing")
    levels = found if lands else (*found, CLEAN)
    return levels[whole("start", which.get("start", 0), 0, len(levels) - 2) :]


def _given(levels: Sequence[Level], timesteps: Sequence[int] | None, which: Visits) -> tuple[Level, ...]:
    """Return levels that the caller gave, as they are. Raises InputError if there is no step, or more to choose by."""
    if timesteps is not None or which.keys() - {"levels"}:
        raise InputError("levels say all of which levels to visit: leave out timesteps, sigmas and the like")
    if len(levels) < 2:
        raise InputError(f"levels need one to visit and one to land on, got {len(levels)}")
    return tuple(levels)


def _chosen(
    schedule: Schedule, steps: int | None, spacing: str, timesteps: Sequence[int] | None, lands: bool, which: Visits
) -> tuple[Level, ...]:
    """Return the levels to visit and, where the plan lands on one with noise, that."""
    lookup("spacing", spacing, dict.fromkeys((*spacings.names(), *falling.names())))
    sigmas, between = which.get("sigmas"), (which.get("sigma_min"), which.get("sigma_max"))
    if timesteps is not None and sigmas is not None:
        raise InputError("timesteps and sigmas both say which levels to visit: give one of them")
    if timesteps is None and sigmas is None and spacing in falling.SPACINGS:
        ratios = falling.spaced(schedule, steps, spacing, between, lands)
        return tuple(at_ratio(schedule, ratio) for ratio in ratios.tolist())
    if between != (None, None):
        raise InputError(f"sigma_min and sigma_max need a spacing by sigma: one of {', '.join(falling.names())}")
    cleanest = [at_index(schedule, 0)] if lands else []
    if sigmas is not None:
        return *(at_ratio(schedule, ratio) for ratio in falling.custom(sigmas).tolist()), *cleanest
    T = len(schedule)
    index = spacings.spaced(T, steps, spacing) if timesteps is None else spacings.custom(T, timesteps)
    return *(at_index(schedule, i) for i in index.tolist()), *cleanest


def start_scale(schedule: Schedule, at: Level) -> float:
    """Return the standard deviation of the noise that sampling begins with at a level."""
    return 1.0 if schedule.variance_preserving else at.sigma


def step_variance(now: Level, after: Level) -> float:
    """Variance of q(x_now | x_after), beta_t of a single step: `sigma^2 - (alpha / alpha')^2 sigma'^2`."""
    return now.sigma**2 - (now.alpha / after.alpha) ** 2 * after.sigma**2


def posterior_variance(now: Level, after: Level) -> float:
    """Variance of q(x_after | x_now, x0), beta~_t (Ho et al. 2020, eq. 7): `step_variance sigma'^2 / sigma^2`."""
    return step_variance(now, after) * (after.sigma / now.sigma) ** 2
