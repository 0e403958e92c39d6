"""The variational bound as an objective, and with it a network that learns the variance of its steps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError, lookup, number
from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Model
from fastdiff.likelihood.terms import VARIANCES, Terms
from fastdiff.samplers.ddpm import LEARNED
from fastdiff.schedules import Schedule
from fastdiff.train.batch import Batch
from fastdiff.train.objectives.loss import Loss
from fastdiff.train.objectives.regression import l_simple

# The variances that an objective can train with, its own first; the others train none.
TRAINS = {"l_vlb": (LEARNED, "small", "large"), "l_hybrid": (LEARNED,)}


def variance_of(objective: str, given: str | None) -> str | None:
    """Return the variance that an objective trains with, given or its own, or None where it trains none.

    Raises:
        InputError: it cannot train with the one given.
    """
    possible = TRAINS.get(objective)
    if given is None:
        return possible[0] if possible else None
    lookup("variance", given, VARIANCES)
    if not possible:
        raise InputError(f"{objective} trains no variance: leave --variance out, or use {' or '.join(TRAINS)}")
    if given not in possible:
        raise InputError(f"{objective} trains with variance {' or '.join(possible)}: leave --variance out")
    return given


def l_vlb(schedule: Schedule, prediction: str, variance: str = LEARNED, levels: int | None = None) -> Loss:
    """Return L_vlb, `T L_t` in bits per element, whose mean over uniform t is the bound but for its constant L_T.

    Nichol & Dhariwal 2021, eqs. 4-7; they draw t by importance (`times.Importance`), as its terms differ by orders of
    magnitude. `likelihood.Terms` says what L_t is, and what the arguments mean.

    Raises:
        InputError: as `likelihood.Terms`.
    """
    terms = Terms(schedule, prediction, variance, levels)

    def loss(model: Model, batch: Batch) -> Tensor:
        x0, t = batch.x0, batch.t
        x, eps = q_sample(x0, t, schedule, **batch.whose_noise, scaled=True, return_noise=True)
        return len(schedule) / (math.log(2) * x0[0].numel()) * terms(model, x0, x, eps, t, batch.cond)

    return loss


def l_hybrid(schedule: Schedule, prediction: str, levels: int | None = None, weight: float = 1e-3) -> Loss:
    """Return L_simple + weight L_vlb of a network that learns its variance (Nichol & Dhariwal 2021, eq. 16).

    L_simple alone trains the mean and L_vlb alone the variance: it takes the mean as given. The network answers once.

    Raises:
        InputError: as `l_simple` and `l_vlb`, or the weight is not > 0.
    """
    weight = number("vlb_weight", weight, 0, above=True)
    simple, bound = l_simple(schedule, prediction), l_vlb(schedule, prediction, LEARNED, levels)

    def loss(model: Model, batch: Batch) -> Tensor:
        answer: list[Tensor] = []

        def mean(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            out = model(x, t, **cond)
            if out.shape[1] != 2 * x.shape[1]:
                raise InputError("l_hybrid trains the variance: the network must give twice the channels of x")
            answer.extend(out.chunk(2, dim=1))
            return answer[0]

        def given_mean(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
            out, v = answer
            return torch.cat([out.detach(), v], dim=1)

        return simple(mean, batch) + weight * bound(given_mean, batch)

    return loss
