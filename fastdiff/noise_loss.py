"""The training loss of a network that predicts noise, with the noise drawn again instead of kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.errors import InputError, lookup
from fastdiff.ops import dispatch

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
) -> Tensor:
    """Mean squared error of predicted noise: `mean_b weight_b mean_elements (pred - eps)^2`.

    L_simple of Ho et al. 2020, eq. 14, in one pass over pred: eps is the noise that `fastdiff.q_sample` draws for the
    same seed, index, step and stream, drawn again; the gradient needs nothing but pred.

    Args:
        pred: predicted noise [B, ...], any float dtype. Arithmetic is float32, or float64 for float64.
        seed, index, step, stream: as they were given to `q_sample`; see `fastdiff.noise.normal`.
        weight: factor of each sample's error, a number or [B]; None is 1.
        reduction: "mean" over the samples, or "none": one number per sample, [B].
        backend: "auto" or a backend's name.

    Raises:
        InputError: pred is not of floats, weight does not match, or a name or number is not known or out of range.
        BackendError: the backend is not available.
    """
    if pred.ndim == 0 or not pred.is_floating_point():
        raise InputError(f"pred must be floats [B, ...], got {pred.dtype} {tuple(pred.shape)}")
    batch = len(pred)
    if isinstance(weight, Tensor) and weight.shape not in ((), (batch,)):
        raise InputError(f"weight must be a number or have shape ({batch},), got {tuple(weight.shape)}")
    lookup("reduction", reduction, _REDUCTIONS)
    ops = dispatch.backend(backend, pred.device, torch.promote_types(pred.dtype, torch.float32))
    key, draw = noises.key(seed, index, batch, pred.device), noises.draws(step, batch, pred.device)
    errors: Tensor = ops.noise_loss(pred, key, draw, noises.stream_number(stream))
    weighted = errors if weight is None else weight * errors
    return weighted.mean() if reduction == "mean" else weighted
