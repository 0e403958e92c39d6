"""The training loss of a network, with the noise drawn again instead of kept."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff import prediction as predictions
from fastdiff.errors import InputError, lookup
from fastdiff.forward import levels
from fastdiff.ops import dispatch
from fastdiff.schedules import Schedule

_REDUCTIONS = {"mean": "one number", "none": "one number per sample"}


def noise_loss(
    pred: Tensor,
    seed: int | Sequence[int] | Tensor = 0,
    step: int | Sequence[int] | Tensor = 0,
    weight: float | Tensor | None = None,
    *,
    index: int | Sequence[int] | Tensor | None = None,
    stream: str = "q_sample",
    reduction: str = "mean",
    backend: str = "auto",
    x0: Tensor | None = None,
    t: Tensor | Sequence[int] | int | None = None,
    schedule: Schedule | None = None,
    prediction: str = "eps",
) -> Tensor:
    """Mean squared error of a prediction: `mean_b weight_b mean_elements (pred - (t0 x0 + te eps))^2`.

    L_simple of Ho et al. 2020, eq. 14, for any prediction: `t0 x0 + te eps` is its target at level t (see
    `fastdiff.prediction`), which is eps itself for "eps". It takes one pass over pred and x0, and its gradient another:
    eps is the noise that `fastdiff.q_sample` draws for the same seed, index, step and stream, drawn again. Neither the
    noise nor the target nor the difference is written.

    Args:
        pred: what the network gave [B, ...], any float dtype. Arithmetic is float32, or float64 where pred or x0 is.
        seed, index, step, stream: as they were given to `q_sample`; see `fastdiff.noise.normal`.
        weight: factor of each sample's error, a number or [B]; None is 1.
        reduction: "mean" over the samples, or "none": one number per sample, [B].
        backend: "auto" or a backend's name.
        x0: clean data of the shape of pred, any float dtype; it gets no gradient.
        t: schedule indices in 0..T-1, one for all samples or one each.
        schedule: the noise levels.
        prediction: what the network predicts; all but "eps", which does not look at them, need x0, t and schedule.

    Raises:
        InputError: pred or x0 is not of floats, x0 wants a gradient, shapes do not match, or a name or number is not
            known, missing or out of range (t: checked where it is on the CPU).
        BackendError: the backend is not available.
    """
    if pred.ndim == 0 or not pred.is_floating_point():
        raise InputError(f"pred must be floats [B, ...], got {pred.dtype} {tuple(pred.shape)}")
    batch = len(pred)
    if isinstance(weight, Tensor) and weight.shape not in ((), (batch,)):
        raise InputError(f"weight must be a number or have shape ({batch},), got {tuple(weight.shape)}")
    lookup("reduction", reduction, _REDUCTIONS)
    lookup("prediction", prediction, dict.fromkeys(predictions.names()))
    dtype = torch.promote_types(pred.dtype, torch.float32)
    target: tuple[Tensor, ...] = ()
    if prediction != "eps":
        if x0 is None or t is None or schedule is None:
            raise InputError(f"the target of a {prediction} prediction needs x0, t and schedule")
        _check_x0(x0, pred)
        dtype = torch.promote_types(dtype, x0.dtype)
        level = levels(t, batch, len(schedule), pred.device)
        target = x0, level, _table(schedule, prediction, pred.device, dtype)
    ops = dispatch.backend(backend, pred.device, dtype)
    key, draw = noises.key(seed, index, batch, pred.device), noises.draws(step, batch, pred.device)
    errors: Tensor = ops.noise_loss(pred, key, draw, noises.stream_number(stream), *target)
    weighted = errors if weight is None else weight * errors
    return weighted.mean() if reduction == "mean" else weighted


def _check_x0(x0: Tensor, pred: Tensor) -> None:
    if not x0.is_floating_point() or x0.shape != pred.shape:
        raise InputError(
            f"x0 must be floats of the shape of pred, {tuple(pred.shape)}, got {x0.dtype} {tuple(x0.shape)}"
        )
    if torch.is_grad_enabled() and x0.requires_grad:
        raise InputError("there is no gradient through the target: pass x0.detach()")


@functools.lru_cache(maxsize=16)
def _table(schedule: Schedule, prediction: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return t0 and te of each level, [T, 2]."""
    target = predictions.coefficients(prediction, schedule.alpha, schedule.sigma, schedule.step_sigma)
    return torch.from_numpy(np.stack([target.t0, target.te], axis=1)).to(device=device, dtype=dtype)
