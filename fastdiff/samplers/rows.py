"""The part of a row that samplers share: the levels it joins, and how x0 and eps are found from the network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fastdiff import prediction as predictions
from fastdiff.errors import InputError
from fastdiff.samplers import spacing as spacings
from fastdiff.schedules import Array, Schedule


@dataclass(frozen=True)
class Levels:
    """The levels that a plan's rows step between, noisiest first, each float64 [rows].

    Row i goes from (alpha, sigma) to (alpha_prev, sigma_prev); the last row's target is clean data, (1, 0).
    """

    time: Array
    alpha: Array
    sigma: Array
    alpha_prev: Array
    sigma_prev: Array
    scale_in: Array
    init_scale: float

    @property
    def step_variance(self) -> Array:
        """Variance of q(x_t | x_prev), beta_t if every step is taken: `sigma^2 - (alpha/alpha_prev)^2 sigma_prev^2`."""
        return self.sigma**2 - (self.alpha / self.alpha_prev) ** 2 * self.sigma_prev**2

    @property
    def posterior_variance(self) -> Array:
        """Variance of q(x_prev | x_t, x0), beta~_t (Ho et al. 2020, eq. 7): `step_variance sigma_prev^2 / sigma^2`."""
        return self.step_variance * (self.sigma_prev / self.sigma) ** 2


def levels(
    schedule: Schedule, steps: int | None, spacing: str = "leading", timesteps: Sequence[int] | None = None
) -> Levels:
    """Select the levels of a plan by count and spacing, or by `timesteps` (schedule indices, noisiest first).

    Raises:
        InputError: see `spacing.spaced` and `spacing.custom`.
    """
    T = len(schedule)
    index = spacings.spaced(T, steps, spacing) if timesteps is None else spacings.custom(T, timesteps)
    alpha, sigma = schedule.alpha[index], schedule.sigma[index]
    return Levels(
        time=schedule.time[index],
        alpha=alpha,
        sigma=sigma,
        alpha_prev=np.append(alpha[1:], 1.0),
        sigma_prev=np.append(sigma[1:], 0.0),
        scale_in=schedule.scale_in[index],
        init_scale=1.0 if schedule.variance_preserving else float(sigma[0]),
    )


def x0_columns(at: Levels, prediction: str, clip: float | None) -> dict[str, Array | float]:
    """Return the columns scale_in, px, po and clip: what the network is given and how x0 follows.

    Raises:
        InputError: the prediction is unknown or cannot start at alpha = 0, or clip is not positive.
    """
    found = predictions.coefficients(prediction, at.alpha, at.sigma)
    columns: dict[str, Array | float] = {"scale_in": at.scale_in, "px": found.px, "po": found.po}
    if clip is None:
        return columns
    if not clip > 0:
        raise InputError(f"clip must be > 0, or None for no clipping, got {clip}")
    return {**columns, "clip": clip}


def eps_columns(at: Levels, prediction: str, rederive: bool) -> dict[str, Array | float]:
    """Return the columns that find eps: from x and the clipped x0, `(x - alpha x0) / sigma`, or as the network says."""
    if rederive:
        return {"ex": 1 / at.sigma, "e0": -at.alpha / at.sigma}
    found = predictions.coefficients(prediction, at.alpha, at.sigma)
    return {"ex": found.ex, "eo": found.eo}
