"""Noise levels by the ratio sigma / alpha, between those of a schedule where need be: Karras' and other spacings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastdiff.errors import InputError, lookup, number, whole
from fastdiff.schedules import Array, Schedule


def karras(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Array:
    """Return sigmas whose 1/rho-th power falls evenly, rho > 0, float64 [steps] (Karras et al. 2022, eq. 5)."""
    number("rho", rho, 0, above=True)
    return np.linspace(sigma_max ** (1 / rho), sigma_min ** (1 / rho), steps) ** rho


def exponential(steps: int, sigma_min: float, sigma_max: float, rho: float = 1.0) -> Array:
    """Return sigmas whose logarithm falls as the power rho of an even ramp, float64 [steps].

    rho = 1 is even in log-SNR (Lu et al. 2022, appendix D; diffusers' "lu"), another, > 0, is k-diffusion's
    polyexponential.
    """
    number("rho", rho, 0, above=True)
    low, high = np.log(sigma_min), np.log(sigma_max)
    sigmas: Array = np.exp(low + np.linspace(1, 0, steps) ** rho * (high - low))
    return sigmas


def linear_sigma(steps: int, sigma_min: float, sigma_max: float) -> Array:
    """Return sigmas that fall evenly, float64 [steps]."""
    return np.linspace(sigma_max, sigma_min, steps)


def beta(steps: int, sigma_min: float, sigma_max: float, a: float = 0.6, b: float = 0.6) -> Array:
    """Return sigmas at even quantiles of a beta distribution over their range, float64 [steps] (Lee et al. 2024).

    Its shapes a and b are > 0.
    """
    number("a", a, 0, above=True)
    number("b", b, 0, above=True)
    return sigma_min + beta_quantile(np.linspace(1, 0, steps), a, b) * (sigma_max - sigma_min)


def vp(steps: int, sigma_min: float, sigma_max: float, end: float = 1e-3) -> Array:
    """Return `sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1)` for t falling evenly from 1 to `end`, float64 [steps].

    Even in the time of the VP-SDE whose sigmas at `end` and 1 are sigma_min and sigma_max (Karras et al. 2022, Table 1
    and appendix C.1, which has end = 1e-3). Raises InputError where these do not fall, as sigma_min is too large, or
    unless end is in 0..1, without both.
    """
    number("end", end, 0, 1, above=True, below=True)
    low, high = np.log1p(np.square([sigma_min, sigma_max]))
    beta_d = 2 * (high - low / end) / (1 - end)
    if high + beta_d / 2 <= 0:
        raise InputError(f"sigmas of 'vp' do not fall to sigma_min = {sigma_min:g}: use a smaller one, or a larger end")
    t = np.linspace(1, end, steps)
    sigmas: Array = np.sqrt(np.expm1(beta_d * t**2 / 2 + (high - beta_d / 2) * t))
    return sigmas


def flow(
    steps: int, sigma_min: float, sigma_max: float = np.inf, shift: float = 1.0, terminal: float | None = None
) -> Array:
    """Return sigma / alpha at even times of a rectified flow, float64 [steps].

    Args:
        steps: how many.
        sigma_min, sigma_max: the range of `sigma / alpha = t / (1 - t)`; infinity is t = 1, pure noise.
        shift: moves the times, `t <- shift t / (1 + (shift - 1) t)` (Esser et al. 2024, eq. 23), > 0.
        terminal: stretches 1 - t so that the last time is this one, in 0..1, without both (LTX-Video); None leaves it.

    Raises:
        InputError: shift or terminal is out of range.
    """
    number("shift", shift, 0, above=True)
    if terminal is not None:
        number("terminal", terminal, 0, 1, above=True, below=True)
    # 1 - t rather than t, as its digits count near pure noise.
    clean = np.linspace(1 / (1 + sigma_max), 1 / (1 + sigma_min), steps)
    clean = clean / (clean + shift * (1 - clean))
    clean = clean if terminal is None else clean * ((1 - terminal) / clean[-1])
    with np.errstate(divide="ignore"):
        return (1 - clean) / clean


# Sabour et al. 2024, "Align Your Steps": the levels of 10 steps, and the one below them.
_ALIGNED = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def ays(steps: int, model: str = "sd15") -> Array:
    """Return the sigmas of "Align Your Steps" (Sabour et al. 2024), float64 [steps], to be given as `sigmas`.

    The models are Stable Diffusion 1.5, SDXL and Stable Video Diffusion. The tables have 10 steps; for another number
    their logarithm is interpolated.

    Raises:
        InputError: the model is not "sd15", "sdxl" or "svd", or steps is no whole number above 0.
    """
    whole("steps", steps, 1)
    table = np.log(lookup("model", model, _ALIGNED))
    return np.exp(np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(table)), table))[:-1]


SPACINGS: dict[str, Callable[[int, float, float], Array]] = {
    "karras": karras,
    "exponential": exponential,
    "linear_sigma": linear_sigma,
    "beta": beta,
    "vp": vp,
}


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
    steps = len(schedule) if steps is None else whole("steps", steps, 1)
    sigma_min, sigma_max = between
    if sigma_max is None and not schedule.alpha[-1]:
        raise InputError(f"spacing {spacing!r} cannot begin in pure noise: give sigma_max, or take spacing='trailing'")
    low = schedule.sigma[0] / schedule.alpha[0] if sigma_min is None else number("sigma_min", sigma_min)
    high = schedule.sigma[-1] / schedule.alpha[-1] if sigma_max is None else number("sigma_max", sigma_max)
    if not 0 < low < high:
        raise InputError(f"sigmas need 0 < sigma_min < sigma_max, got {low:g} and {high:g}")
    return lookup("spacing", spacing, SPACINGS)(steps + lands, float(low), float(high))


def custom(sigmas: npt.ArrayLike) -> Array:
    """Check sigmas chosen by hand: positive, falling strictly, finite after the first. Raises InputError otherwise."""
    try:
        given = np.asarray(sigmas, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.ndim != 1 or given.size == 0 or np.isnan(given).any():
        raise InputError("sigmas must be a non-empty list of numbers")
    if given[-1] <= 0 or (given[1:] >= given[:-1]).any():
        raise InputError("sigmas must fall strictly and stay above 0; leave out the final 0")
    return given


def beta_quantile(p: Array, a: float, b: float) -> Array:
    """Return the quantiles of the beta distribution, of the shape of p in 0..1, by bisection to the last digit."""
    lower, upper = incomplete_beta(np.array(0.5), a, b), incomplete_beta(np.array(0.5), b, a)
    mirrored = p * (lower + upper) > lower  # where the quantile is above 1/2, which leaves few digits of 1 - x
    target = np.where(mirrored, 1 - p, p) * (lower + upper)
    low, high = np.zeros_like(p), np.full_like(p, 0.5)
    for _ in range(60):
        x = (low + high) / 2
        area = np.where(mirrored, incomplete_beta(x, b, a), incomplete_beta(x, a, b))
        low, high = np.where(area < target, x, low), np.where(area < target, high, x)
    return np.where(mirrored, 1 - low, low)


def incomplete_beta(x: Array, a: float, b: float) -> Array:
    """Return the integral of `t^(a-1) (1-t)^(b-1)` over 0..x, x in 0..1/2 (the series of DLMF 8.17.7)."""
    n = np.arange(1, 60)
    coefficients = np.append(1.0, np.cumprod((n - b) / n)) / (a + np.arange(60))
    area: Array = x**a * np.polynomial.polynomial.polyval(x, coefficients)
    return area
