"""Levels as diffusers' schedulers have them, for plans of `fastdiff.samplers`."""

from __future__ import annotations

import math

import numpy as np

from fastdiff import prediction as predictions
from fastdiff.errors import lookup
from fastdiff.prediction import Parameterisation, Prediction, edm
from fastdiff.samplers.levels import Level
from fastdiff.schedules import Array, Schedule

# Two levels far apart each: all levels of a run lie between them, and samplers ask for nothing but the coordinates.
PRESERVING = Schedule(np.array([1.0, 0.0]), np.array([1e-12, 1.0]))
EXPLODING = Schedule(np.ones(2), np.array([1e-12, 1e12]))

# The least alpha: where a schedule ends in pure noise, diffusers divides by 0 and clips the infinity that follows.
TINY = 2.0**-60


def variance_preserving(alpha_bar: float, time: float = math.nan) -> Level:
    """Return the level of `x = sqrt(abar) x0 + sqrt(1 - abar) eps`."""
    return Level(max(math.sqrt(alpha_bar), TINY), math.sqrt(1 - alpha_bar), time, 1.0)


def exploding(sigma: float, time: float = math.nan) -> Level:
    """Return the level of `x = x0 + sigma eps`, whose network is given `x / sqrt(sigma^2 + 1)`."""
    return Level(1.0, sigma, time, 1 / math.hypot(sigma, 1.0))


def edm_level(sigma: float, sigma_data: float, time: float = math.nan) -> Level:
    """Return the level of `x = x0 + sigma eps`, whose network is given `x / sqrt(sigma^2 + sigma_data^2)`."""
    return Level(1.0, sigma, time, 1 / math.hypot(sigma, sigma_data))


def v_of_unit_variance(alpha: Array, sigma: Array) -> Prediction:
    """Return the coefficients of v where the network knows x as `x / sqrt(alpha^2 + sigma^2)`, as diffusers has it."""
    norm = np.hypot(alpha, sigma)
    signal, noise = alpha / norm, sigma / norm
    return Prediction(px=signal / norm, po=-noise, ex=noise / norm, eo=signal, t0=-noise, te=signal)


def edm_prediction(sigma_data: float, prediction_type: str) -> Parameterisation:
    """Return the coefficients of EDM's F for data of deviation sigma_data, turned in sign for "v_prediction".

    Raises:
        InputError: the type is neither "epsilon" nor "v_prediction".
    """
    sign = lookup("prediction_type", prediction_type, {"epsilon": 1.0, "v_prediction": -1.0})
    positive = edm(sigma_data)

    def coefficients(alpha: Array, sigma: Array) -> Prediction:
        found = positive(alpha, sigma)
        return found._replace(po=sign * found.po, eo=sign * found.eo, t0=sign * found.t0, te=sign * found.te)

    return coefficients


PREDICTIONS: dict[str, str | Parameterisation] = {
    "epsilon": "eps",
    "sample": "x0",
    "v_prediction": v_of_unit_variance,
    "flow_prediction": "flow",
}


def prediction(prediction_type: str) -> str | Parameterisation:
    """Return what a network predicts, as samplers name it. Raises InputError for an unknown type."""
    return lookup("prediction_type", prediction_type, PREDICTIONS)


def x0_over(read: str | Parameterisation, scale: float) -> str | Parameterisation:
    """Return the prediction whose x0 is divided by a number <= 1, as diffusers divides by its largest bound."""

    def coefficients(alpha: Array, sigma: Array) -> Prediction:
        found = predictions.coefficients(read, alpha, sigma)
        return found._replace(px=found.px / scale, po=found.po / scale)

    return coefficients if scale < 1 else read
