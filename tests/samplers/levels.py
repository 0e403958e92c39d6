"""The levels of a plan as arrays, in the papers' terms: what the tests write formulas in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastdiff.samplers.levels import visited
from fastdiff.schedules import Schedule

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Levels:
    """Row i steps from (alpha, sigma) to (alpha_prev, sigma_prev), float64 [rows]; the last to clean data, (1, 0)."""

    time: Array
    alpha: Array
    sigma: Array
    alpha_prev: Array
    sigma_prev: Array

    @property
    def step_variance(self) -> Array:
        """beta_t of the steps taken."""
        return self.sigma**2 - (self.alpha / self.alpha_prev) ** 2 * self.sigma_prev**2

    @property
    def posterior_variance(self) -> Array:
        """beta~_t of the steps taken."""
        return self.step_variance * (self.sigma_prev / self.sigma) ** 2


def levels(schedule: Schedule, steps: int | None, spacing: str = "leading") -> Levels:
    """Return the levels that a sampler visits."""
    alpha, sigma, time, *_ = np.array(visited(schedule, steps, spacing)).T
    return Levels(time[:-1], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:])
