"""Score matching: four losses of a function s(x) that is to be the score, the gradient of the log-density of x.

They have the same minimum, and their expectations differ by constants that do not depend on s: denoising by that of the
noise, the others by `1/2 E|score|^2`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastdiff.errors import InputError, lookup
from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Model
from fastdiff.noise import PROBES
from fastdiff.schedules import Schedule
from fastdiff.train.batch import Batch
from fastdiff.train.objectives.loss import Loss

# `score(x) -> s`, both [B, ...]; each sample's s depends on that sample alone.
Score = Callable[[Tensor], Tensor]

MAX_EXACT = 64  # dimensions of an exact trace: one derivative of the network each


def explicit(score: Score, x: Tensor, true_score: Tensor) -> Tensor:
    """Return `1/2 |s(x) - score|^2` (Hyvarinen 2005, eq. 2).

    Args:
        score: s.
        x: points of the density [B, ...].
        true_score: the gradient of its logarithm there [B, ...].

    Returns:
        The loss of each point, [B].
    """
    return _sum(0.5 * (score(x) - true_score) ** 2)


def implicit(score: Score, x: Tensor) -> Tensor:
    """Return `1/2 |s(x)|^2 + tr(ds/dx)` (Hyvarinen 2005, eq. 4).

    Args:
        score: s.
        x: points of the density [B, ...].

    Returns:
        The loss of each point, [B], differentiable in what s depends on, but not in x.

    Raises:
        InputError: x has more than `MAX_EXACT` dimensions.
    """
    check_exact(x.shape[1:].numel())
    s, x = _differentiable(score, x)
    slopes = (_pull(s, x, unit.expand_as(s)) * unit for unit in _units(x))
    return _sum(0.5 * s**2 + sum(slopes))


def sliced(score: Score, x: Tensor, probes: Tensor) -> Tensor:
    """Return `1/2 |s(x)|^2 + v^T (ds/dx) v`, whose mean over v of unit covariance is `implicit`.

    This is the form of less variance (Song et al. 2019, eq. 8), with the expectation of `(v^T s)^2` in closed form.

    Args:
        score: s.
        x: points of the density [B, ...].
        probes: v, one for each point [B, ...].

    Returns:
        The loss of each point, [B], differentiable in what s depends on, but not in x.
    """
    s, x = _differentiable(score, x)
    return _sum(0.5 * s**2 + _pull(s, x, probes) * probes)


def denoising(score: Score, x: Tensor, noised: Tensor, sigma: float | Tensor) -> Tensor:
    """Return `1/2 |s(x~) - (x - x~) / sigma^2|^2`, for the score of the noised density (Vincent 2011, eq. 9).

    Args:
        score: s.
        x: points [B, ...].
        noised: x~ = x + sigma eps, [B, ...].
        sigma: deviation of the noise, > 0, a number or broadcast with x.

    Returns:
        The loss of each point, [B].
    """
    return _sum(0.5 * (score(noised) - (x - noised) / sigma**2) ** 2)


def l_implicit(schedule: Schedule, prediction: str) -> Loss:
    """Return implicit score matching of noised data at level t, `2 sigma_t^2 / D` times `implicit`.

    In these units, those of `l_simple`, its expectation is that of L_simple of a score less 1.

    Raises:
        InputError: the prediction is no score.
    """
    return _of_noised(schedule, prediction, lambda score, x, batch: implicit(score, x))


def l_sliced(schedule: Schedule, prediction: str, probes: str = "rademacher") -> Loss:
    """Return sliced score matching of noised data at level t: `l_implicit` with one random direction for the trace.

    Args:
        schedule: the noise levels.
        prediction: "score".
        probes: distribution of the directions, a name of `fastdiff.noise.PROBES`.

    Raises:
        InputError: the prediction is no score, or the probes are unknown.
    """
    draw = lookup("probes", probes, PROBES)

    def loss(score: Score, x: Tensor, batch: Batch) -> Tensor:
        v = draw(x.shape, batch.seed, batch.index, batch.step, stream="probe", device=x.device)
        return sliced(score, x, v)

    return _of_noised(schedule, prediction, loss)


def check_exact(dimensions: int) -> None:
    """Raise InputError if samples have too many dimensions for an exact trace."""
    if dimensions > MAX_EXACT:
        raise InputError(
            f"an exact trace takes a derivative for each of {dimensions} dimensions, {MAX_EXACT} at most: use sliced"
        )


def _of_noised(schedule: Schedule, prediction: str, loss: Callable[[Score, Tensor, Batch], Tensor]) -> Loss:
    """Return a loss of scores at x_t, in units of L_simple. The network is given scale_in x_t, as everywhere."""
    if prediction != "score":
        raise InputError(f"score matching trains a score, not {prediction}: give --prediction score, or use l_simple")
    columns = [schedule.time, schedule.scale_in, 2 * schedule.sigma**2]
    table = functools.cache(torch.from_numpy(np.stack(columns, axis=1)).float().to)

    def weighted(model: Model, batch: Batch) -> Tensor:
        x0 = batch.x0
        x_t = q_sample(x0, batch.t, schedule, **batch.whose_noise)
        time, scale_in, weight = table(x0.device)[batch.t].unbind(1)
        scale = scale_in.reshape(-1, *[1] * (x0.ndim - 1))

        def score(x: Tensor) -> Tensor:
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernels of attention have no second derivative
                out: Tensor = model(x * scale, time, **batch.cond)
            return out

        return weight / x0.shape[1:].numel() * loss(score, x_t, batch)

    return weighted


def _differentiable(score: Score, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return s(x), and the x that it can be differentiated in, also under `torch.no_grad`."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        return score(x), x


def _pull(s: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """Return `v^T (ds/dx)` [B, ...] of each sample."""
    return torch.autograd.grad(s, x, v, retain_graph=True, create_graph=torch.is_grad_enabled())[0]


def _units(x: Tensor) -> Tensor:
    """Return the unit vectors of the space of samples x [B, ...], as [D, ...]."""
    return torch.eye(x.shape[1:].numel(), dtype=x.dtype, device=x.device).view(-1, *x.shape[1:])


def _sum(x: Tensor) -> Tensor:
    return x.flatten(1).sum(dim=1)
