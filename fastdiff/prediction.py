"""What a network predicts, as coefficients: every parameterisation is linear in (x, out).

With `x = alpha x0 + sigma eps`, each prediction names a target `out` and how x0 and eps follow from (x, out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fastdiff.errors import InputError, lookup
from fastdiff.schedules import Array


class Prediction(NamedTuple):
    """Coefficients of one parameterisation, each float64 of the shape of alpha.

    `x0 = px x + po out`, `eps = ex x + eo out`, and the training target is `out = t0 x0 + te eps`.
    """

    px: Array
    po: Array
    ex: Array
    eo: Array
    t0: Array
    te: Array


def _eps(alpha: Array, sigma: Array) -> Prediction:
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    return Prediction(px=1 / alpha, po=-sigma / alpha, ex=zero, eo=one, t0=zero, te=one)


def _x0(alpha: Array, sigma: Array) -> Prediction:
    one, zero = np.ones_like(alpha), np.zeros_like(alpha)
    return Prediction(px=zero, po=one, ex=1 / sigma, eo=-alpha / sigma, t0=one, te=zero)


def _v(alpha: Array, sigma: Array) -> Prediction:
    norm = alpha**2 + sigma**2
    return Prediction(px=alpha / norm, po=-sigma / norm, ex=sigma / norm, eo=alpha / norm, t0=-sigma, te=alpha)


def _score(alpha: Array, sigma: Array) -> Prediction:
    zero = np.zeros_like(alpha)
    return Prediction(px=1 / alpha, po=sigma**2 / alpha, ex=zero, eo=-sigma, t0=zero, te=-1 / sigma)


def _flow(alpha: Array, sigma: Array) -> Prediction:
    total = alpha + sigma
    one = np.ones_like(alpha)
    return Prediction(px=1 / total, po=-sigma / total, ex=1 / total, eo=alpha / total, t0=-one, te=one)


_PREDICTIONS: dict[str, Callable[[Array, Array], Prediction]] = {
    "eps": _eps,  # Ho et al. 2020, eq. 11
    "x0": _x0,
    "v": _v,  # alpha eps - sigma x0: Salimans & Ho 2022, appendix D
    "score": _score,  # -eps / sigma: Song & Ermon 2019
    "flow": _flow,  # eps - x0: Liu et al. 2022
}
_NEEDS_SIGNAL = ("eps", "score")


def names() -> tuple[str, ...]:
    """Return the names of the known predictions."""
    return tuple(_PREDICTIONS)


def coefficients(prediction: str, alpha: Array, sigma: Array) -> Prediction:
    """Return the coefficients of a prediction at levels (alpha, sigma), float64 [n].

    Raises:
        InputError: the name is unknown, or x0 cannot be found because alpha is 0 (eps and score predictions).
    """
    build = lookup("prediction", prediction, _PREDICTIONS)
    if prediction in _NEEDS_SIGNAL and (alpha == 0).any():
        raise InputError(f"a {prediction} prediction says nothing of x0 where alpha is 0: use v, x0 or flow")
    return build(alpha, sigma)
