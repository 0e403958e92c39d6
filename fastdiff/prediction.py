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


Parameterisation = Callable[[Array, Array], Prediction]
SIGMA_DATA = 0.5
SIGMA_MIN = 0.002


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


def edm(sigma_data: float) -> Parameterisation:
    """Return EDM's prediction, F of `x0 = c_skip x / alpha + c_out F`, for data of deviation `sigma_data` > 0.

    Karras et al. 2022, Table 1.
    """

    def coefficients_of(alpha: Array, sigma: Array) -> Prediction:
        norm = np.hypot(sigma, sigma_data * alpha)
        skip, scale = sigma_data * alpha / norm, sigma / norm
        return Prediction(
            px=sigma_data * skip / norm,
            po=sigma_data * scale,
            ex=scale / norm,
            eo=-sigma_data * alpha / norm,
            t0=scale / sigma_data,
            te=-skip,
        )

    return coefficients_of


def consistency(sigma_data: float, sigma_min: float) -> Parameterisation:
    """Return the prediction of consistency models: as `edm`, but `x0 = x / alpha` where `sigma / alpha = sigma_min`.

    Song et al. 2023, appendix C.
    """

    def coefficients_of(alpha: Array, sigma: Array) -> Prediction:
        above, data = sigma - sigma_min * alpha, sigma_data * alpha
        above = np.where(np.abs(above) < 1e-9 * sigma, 0.0, above)  # schedules reach sigma_min but for rounding
        skip, scale = sigma_data * data / (above**2 + data**2), sigma_data * above / np.hypot(sigma, data)
        target = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)  # none where the network is not heard
        return Prediction(
            px=skip,
            po=scale,
            ex=(1 - alpha * skip) / sigma,
            eo=-alpha * scale / sigma,
            t0=(1 - alpha * skip) * target,
            te=-sigma * skip * target,
        )

    return coefficients_of


_PREDICTIONS: dict[str, Parameterisation] = {
    "eps": _eps,  # Ho et al. 2020, eq. 11
    "x0": _x0,
    "v": _v,  # alpha eps - sigma x0: Salimans & Ho 2022, appendix D
    "score": _score,  # -eps / sigma: Song & Ermon 2019
    "flow": _flow,  # eps - x0: Liu et al. 2022
    "edm": edm(SIGMA_DATA),
    "consistency": consistency(SIGMA_DATA, SIGMA_MIN),
}
_STEP = "eps_step"
_NEEDS_SIGNAL = ("eps", "score", _STEP)


def names() -> tuple[str, ...]:
    """Return the names of the known predictions."""
    return *_PREDICTIONS, _STEP


def coefficients(
    prediction: str | Parameterisation, alpha: Array, sigma: Array, step_sigma: Array | None = None
) -> Prediction:
    """Return the coefficients of a prediction at levels (alpha, sigma), float64 [n]; one that is a function makes them.

    "eps_step" is the noise of the last step alone, `x_t = alpha_t / alpha_{t-1} x_{t-1} + step_sigma eps_step`, with
    `E[eps_step | x_t] = step_sigma / sigma E[eps | x_t]`: the epsilon-decoder of progressive VAEs.

    Raises:
        InputError: the name is unknown, x0 cannot be found because alpha is 0 (eps and score predictions), or
            step_sigma, which only the schedule's own levels have, is missing where it is needed.
    """
    if callable(prediction):
        return prediction(alpha, sigma)
    build = lookup("prediction", prediction, {**_PREDICTIONS, _STEP: _eps})
    if prediction in _NEEDS_SIGNAL and (alpha == 0).any():
        raise InputError(f"a {prediction} prediction says nothing of x0 where alpha is 0: use v, x0 or flow")
    found = build(alpha, sigma)
    if prediction != _STEP:
        return found
    if step_sigma is None or np.isnan(step_sigma).any():
        raise InputError("an eps_step prediction is known at the schedule's own levels: use a spacing that picks those")
    return found._replace(po=found.po * sigma / step_sigma, eo=sigma / step_sigma, te=step_sigma / sigma)
