"""The data that a likelihood is of."""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.errors import InputError, whole

# Of the stream "extra": draw of the noise that makes discrete data continuous.
_DRAW = 0


def checked(x0: Tensor, levels: int | None) -> Tensor:
    """Return data in the dtype of the arithmetic, float32 or float64.

    Raises:
        InputError: they are no floats [B, ...], there are none, or they are not at their levels.
    """
    if x0.ndim < 2 or not x0.numel() or not x0.is_floating_point():
        raise InputError(f"x0 must be floats [B, ...], got {x0.dtype} {tuple(x0.shape)}: scale images to [-1, 1]")
    if levels is not None:
        place = (x0.double() + 1) * (whole("levels", levels, 2) - 1) / 2
        # Rounding to bfloat16, 2^-9, moves data of 256 levels by a quarter of a spacing.
        if ((place - place.round()).abs() > 0.3).any() or (x0.abs() > 1 + 1e-6).any():
            raise InputError(f"x0 must hold {levels} values evenly from -1 to 1: scale it, or use levels=None")
    return x0.to(torch.promote_types(x0.dtype, torch.float32))


def dequantised(x0: Tensor, levels: int, seed: int, index: Tensor) -> Tensor:
    """Return float64 data plus uniform noise within half a spacing of the levels: 1 / (levels - 1) either way."""
    z = noises.normal(x0.shape, seed, index, _DRAW, stream="extra", device=x0.device)
    uniform: Tensor = torch.special.ndtr(z.double())
    return x0.double() + (2 * uniform - 1) / (levels - 1)
