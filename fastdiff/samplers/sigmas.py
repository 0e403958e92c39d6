"""Noise levels by the ratio sigma / alpha, between those of a schedule where need be: Karras' and other spacings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastdiff.errors import InputError, lookup
from fastdiff.schedules import Array, Schedule


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Array:
    """Return sigmas whose 1/rho-th power falls evenly, float64 [steps] (Karras et al. 2022, eq. 5)."""
    return np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho


def exponential(steps: int, sigma_min: float, sigma_max: float) -> Array:
    """Return sigmas whose logarithm falls evenly, float64 [steps]: even in log-SNR (Lu et al. 2022, appendix D)."""
    return np.geomspace(sigma_max, sigma_min, steps)


SPACINGS: dict[str, Callable[[int, float, float], Array]] = {"karras": karras, "exponential": exponential}


def names() -> tuple[str, ...]:
    """Return the names of the spacings by sigma."""
    return tuple(SPACINGS)


def spaced(
    schedule: Schedule,
    steps: int | None,
    spacing: str,
    between: tuple[float | None, float | None] = (None, None),
    lands: bool = False,
) -> Array:
    """Return `steps` falling values of sigma / alpha, float64 [steps]; with `lands` one more, to land on.

    Args:
        schedule: the levels that the network was trained on.
        steps: how many; None is as many as the schedule has.
        spacing: a name of SPACINGS.
        between: the least and the largest of them; None is the schedule's.
        lands: whether the last step lands on the least, rather than on clean data.

    Raises:
        InputError: the spacing is unknown, steps is no whole number above 0, the range is empty, or the schedule
            begins in pure noise.
    """
    steps = len(schedule) if steps is None else steps
    if not isinstance(steps, (int, np.integer)) or steps < 1:
        raise InputError(f"steps must be a whole number, at least 1, got {steps!r}")
    low, high = between
    if high is None and schedule.alpha[-1] == 0:
        raise InputError(f"spacing {spacing!r} needs some signal in the noisiest level: give sigma_max or sigmas")
    low = schedule.sigma[0] / schedule.alpha[0] if low is None else low
    high = schedule.sigma[-1] / schedule.alpha[-1] if high is None else high
    if not 0 < low < high < np.inf:
        raise InputError(f"sigmas need 0 < sigma_min < sigma_max, got {low:g} and {high:g}")
    return lookup("spacing", spacing, SPACINGS)(int(steps) + lands, float(low), float(high))


def custom(sigmas: npt.ArrayLike) -> Array:
    """Check sigmas chosen by hand: positive, finite, falling strictly. Raises InputError if they are not."""
    try:
        given = np.asarray(sigmas, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.ndim != 1 or given.size == 0 or not np.isfinite(given).all():
        raise InputError("sigmas must be a non-empty list of numbers")
    if given[-1] <= 0 or (np.diff(given) >= 0).any():
        raise InputError("sigmas must fall strictly and stay above 0; leave out the final 0")
    return given
