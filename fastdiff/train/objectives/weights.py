"""Weights gamma_t of L_gamma, by name: functions of the signal-to-noise ratio, float64.

Each is the weight of the squared error of x0, as the papers of SNR weighting write it. An error of eps is
`alpha / sigma` times one of x0, so that the weight SNR is that of L_simple for a network of eps.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from fastdiff import prediction as predictions
from fastdiff.errors import InputError, lookup
from fastdiff.prediction import SIGMA_DATA
from fastdiff.schedules import Array, Schedule

WEIGHTS: dict[str, Callable[[Array], Array]] = {
    "uniform": np.ones_like,
    "snr": lambda snr: snr,  # uniform in eps: Ho et al. 2020, eq. 14
    "truncated_snr": lambda snr: np.maximum(snr, 1),  # Salimans & Ho 2022, section 4
    "snr+1": lambda snr: snr + 1,  # uniform in v: the same
    "min_snr": lambda snr: np.minimum(snr, 5),  # Hang et al. 2023, gamma = 5
    "p2": lambda snr: snr / (1 + snr),  # Choi et al. 2022, eq. 8 with k = gamma = 1
    "edm": lambda snr: snr + 1 / SIGMA_DATA**2,  # (sigma^2 + sigma_data^2) / (sigma sigma_data)^2: Karras et al. 2022
}


def of_output(gamma: str | npt.ArrayLike, schedule: Schedule, prediction: str) -> Array:
    """Return the weights of the squared error of a network's output that weigh that of x0 by gamma, float64 [T].

    Args:
        gamma: a name of `WEIGHTS`, or a weight >= 0 for each level, [T].
        schedule: the noise levels.
        prediction: what the network predicts.

    Raises:
        InputError: a name is unknown, the prediction cannot be found at a level of the schedule, or there is not one
            finite weight >= 0 for each level.
    """
    found = predictions.coefficients(prediction, schedule.alpha, schedule.sigma, schedule.step_sigma)
    if isinstance(gamma, str):
        weights = lookup("weighting", gamma, WEIGHTS)(schedule.snr)
    else:
        weights = np.asarray(gamma, dtype=np.float64)
        if weights.shape != (len(schedule),) or not (np.isfinite(weights) & (weights >= 0)).all():
            raise InputError(f"gamma must be one finite weight >= 0 for each of {len(schedule)} levels")
    return weights * found.po**2
