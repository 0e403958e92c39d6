"""The terms of the variational bound, in nats: what training minimises and what evaluation reports."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff import prediction as predictions
from fastdiff.errors import InputError, lookup, number, whole
from fastdiff.guidance.branches import Model
from fastdiff.samplers.ddpm import LEARNED
from fastdiff.samplers.levels import CLEAN, at_index, posterior_variance, start_scale, step_variance
from fastdiff.schedules import Array, Schedule

# What share of the way from log beta~ to log beta a step's log variance goes; None: the network says it.
VARIANCES: dict[str, float | None] = {"small": 0.0, "large": 1.0, LEARNED: None}
# Where an interval that is open to infinity ends, in standard deviations from its other end.
_FAR = 1e6


class Terms:
    """L_0..L_{T-1} of the bound for one schedule, prediction and variance (Ho et al. 2020, eq. 5).

    L_k is what the step down from level k costs, 0 the cleanest, as the paper's L_{t-1} with t = k + 1. Its two
    Gaussians share their form of the mean, so that with `snr = alpha^2 / sigma^2`, the error `e = x0_hat - x0` and
    `r = log(s^2 / beta~)` of the variance s^2 that the sampler takes,

        L_k = KL(q(x_{k-1} | x_k, x0) || p(x_{k-1} | x_k)) = (r + exp(-r) - 1 + exp(-r) (snr_{k-1} - snr_k) e^2) / 2.

    L_0 is -log p of the data under N(x0_hat, s^2), s^2 from sigma_0^2 as beta and, since beta~ is 0 there, the beta~ of
    the next step, as in the code of Ho et al. and of Nichol & Dhariwal; these take it for "large" too.
    """

    def __init__(
        self, schedule: Schedule, prediction: str, variance: str, levels: int | None, clip: float | None = None
    ) -> None:
        """Make the tables.

        Args:
            schedule: the noise levels, two or more.
            prediction: what the network predicts.
            variance: s^2 of the steps, as for `samplers.ddpm`: "small" (beta~), "large" (beta) or "learned_range".
            levels: how many values, evenly from -1 to 1, an element of x0 can have: L_0 is then the probability of
                x0's own, that is of the Gaussian within half a spacing of it, the first and last open to infinity. None
                is for continuous data: L_0 is the Gaussian's density.
            clip: bound on |x0_hat|; None for none.

        Raises:
            InputError: a name is unknown, a number out of range, the schedule has one level, or x0 cannot be found at
                one of its levels.
        """
        if len(schedule) < 2:
            raise InputError("the bound needs a schedule of two levels or more")
        self._share = lookup("variance", variance, VARIANCES)
        self._levels = None if levels is None else whole("levels", levels, 2)
        self._clip = None if clip is None else number("clip", clip, 0, above=True)
        small, large = _variances(schedule)
        self._log_first = math.log(small[0])
        found = predictions.coefficients(prediction, schedule.alpha, schedule.sigma, schedule.step_sigma)
        columns = [
            schedule.time,
            *(found.po, found.px * schedule.alpha - 1, found.px * schedule.sigma),  # of out, x0 and eps in the error
            np.log(large / small),
            np.append(0.0, -np.diff(schedule.snr)),
        ]
        self._table = functools.cache(torch.from_numpy(np.stack(columns, axis=1)).to)

    def __call__(self, model: Model, x0: Tensor, x: Tensor, eps: Tensor, t: Tensor, cond: Mapping[str, Any]) -> Tensor:
        """Return L_t of each sample in nats, summed over its elements, [B] in the dtype of x0.

        Args:
            model: the network.
            x0: clean data [B, ...], float32 or float64.
            x, eps: what the network is given and the noise in it, as `q_sample(..., scaled=True)` returns them.
            t: levels, int64 [B].
            cond: keyword arguments of the model.

        Raises:
            InputError: the network does not give the variance that is learned.
        """
        # int64 index of a small table: one gather gives all that depends on the level.
        row = self._table(x0.device, x0.dtype)[t]
        columns = (value.reshape(-1, *[1] * (x0.ndim - 1)) for value in row.unbind(1))
        time, of_out, of_x0, of_eps, gap, weight = columns
        out, share = self._split(model(x, time.flatten(), **cond).to(x0.dtype), x0)
        error = of_out * out + of_x0 * x0 + of_eps * eps
        if self._clip is not None:
            error = (x0 + error).clamp(-self._clip, self._clip) - x0
        r = share * gap
        step = 0.5 * (r + torch.expm1(-r) + torch.exp(-r) * weight * error**2)
        first = (t == 0).view_as(time)
        last = self._reconstruction(x0, torch.where(first, error, 0), torch.where(first, r, 0)).to(x0.dtype)
        return torch.where(first, last, step).flatten(1).sum(dim=1)

    def _split(self, out: Tensor, x0: Tensor) -> tuple[Tensor, Tensor | float]:
        """Return what the network says of the mean, and where between log beta~ (0) and log beta (1) it puts s^2."""
        doubled = out.ndim > 1 and out.shape[1] == 2 * x0.shape[1]
        if self._share is None and not doubled:
            raise InputError(f"variance={LEARNED!r} needs a network that learns its variance: use 'small' or 'large'")
        mean, v = out.chunk(2, dim=1) if doubled else (out, out)
        if mean.shape != x0.shape:
            raise InputError(f"the model returned shape {tuple(out.shape)}, and samples have {tuple(x0.shape)}")
        return mean, (v + 1) / 2 if self._share is None else self._share

    def _reconstruction(self, x0: Tensor, error: Tensor, r: Tensor) -> Tensor:
        """Return -log N(x0; x0 + error, beta~ e^r) of each element, of its interval where data are discrete.

        In float64: a probability is a difference of two that may be close, and its gradient one of logarithms.
        """
        log_deviation = 0.5 * (self._log_first + r.double())
        z = -error.double() * torch.exp(-log_deviation)
        if self._levels is None:
            return 0.5 * (z**2 + math.log(2 * math.pi)) + log_deviation
        half = 1 / (self._levels - 1)
        width = half * torch.exp(-log_deviation)
        low, high = z - width, z + width
        low, high = (
            torch.where(x0 < half - 1, (high - _FAR).clamp(max=-_FAR), low),
            torch.where(x0 > 1 - half, (low + _FAR).clamp(min=_FAR), high),
        )
        return -_log_probability(low, high)


def prior(x0: Tensor, schedule: Schedule) -> Tensor:
    """Return L_T = KL(q(x_T | x0) || N(0, s_T^2)) in nats, float64 [B]: what the start of sampling costs.

    s_T is the standard deviation that plans start with: 1 in variance-preserving schedules, else sigma_T.
    """
    noisiest = at_index(schedule, len(schedule) - 1)
    start = start_scale(schedule, noisiest)
    spread = noisiest.sigma / start
    square = x0.flatten(1).double().square().sum(dim=1)
    return 0.5 * ((noisiest.alpha / start) ** 2 * square + x0[0].numel() * (spread**2 - 1 - 2 * math.log(spread)))


def _variances(schedule: Schedule) -> tuple[Array, Array]:
    """Return beta~ and beta of every step, float64 [T], each from a level to the one below it, 0 to clean data.

    beta~ of the first is that of the next.
    """
    steps = [(now, after) for after, now in pairwise([CLEAN, *(at_index(schedule, k) for k in range(len(schedule)))])]
    small = np.array([posterior_variance(*step) for step in steps])
    small[0] = small[1]
    return small, np.array([step_variance(*step) for step in steps])


def _log_probability(low: Tensor, high: Tensor) -> Tensor:
    """Return the log-probability that a standard normal lies in low..high, accurate in both tails."""
    above = low + high > 0  # mirrored, so that neither end is where the distribution function is flat
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    log_high: Tensor = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))
