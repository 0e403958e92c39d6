"""The forward process: noising data to a level of a schedule."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, overload

import numpy as np
import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.errors import InputError
from fastdiff.ops import dispatch
from fastdiff.schedules import Schedule


@overload
def q_sample(
    x0: Tensor,
    t: Tensor | Sequence[int] | int,
    schedule: Schedule,
    seed: int | Sequence[int] | Tensor = 0,
    *,
    index: int | Sequence[int] | Tensor | None = None,
    step: int | Sequence[int] | Tensor = 0,
    stream: str = "q_sample",
    noise: Tensor | None = None,
    return_noise: Literal[False] = False,
    backend: str = "auto",
) -> Tensor: ...


@overload
def q_sample(
    x0: Tensor,
    t: Tensor | Sequence[int] | int,
    schedule: Schedule,
    seed: int | Sequence[int] | Tensor = 0,
    *,
    index: int | Sequence[int] | Tensor | None = None,
    step: int | Sequence[int] | Tensor = 0,
    stream: str = "q_sample",
    noise: Tensor | None = None,
    return_noise: Literal[True],
    backend: str = "auto",
) -> tuple[Tensor, Tensor]: ...


def q_sample(
    x0: Tensor,
    t: Tensor | Sequence[int] | int,
    schedule: Schedule,
    seed: int | Sequence[int] | Tensor = 0,
    *,
    index: int | Sequence[int] | Tensor | None = None,
    step: int | Sequence[int] | Tensor = 0,
    stream: str = "q_sample",
    noise: Tensor | None = None,
    return_noise: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw `x_t = alpha_t x0 + sigma_t eps` (Ho et al. 2020, eq. 4).

    Args:
        x0: clean data [B, ...], any float dtype; x_t has the same. Arithmetic is float32, or float64 for float64.
        t: schedule indices in 0..T-1, one for all samples or one each.
        schedule: the noise levels.
        seed, index, step, stream: whose noise to draw; see `fastdiff.noise.normal`.
        noise: eps to use instead, of the shape of x0.
        return_noise: return (x_t, eps).
        backend: "auto" or a backend's name.

    Raises:
        InputError: x0 is not of floats, shapes do not match, or t is out of range (checked where t is on the CPU).
        BackendError: the backend is not available.
    """
    if not x0.is_floating_point():
        raise InputError(f"x0 must hold floats, got {x0.dtype}: scale images to [-1, 1]")
    level = _levels(t, len(x0), len(schedule), x0.device)
    ops = dispatch.backend(backend, x0.device)
    table = _table(schedule, x0.device, torch.promote_types(x0.dtype, torch.float32))
    if noise is None:
        noise = noises.normal(x0.shape, seed, index, step, stream, x0.device, backend)
    elif noise.shape != x0.shape:
        raise InputError(f"noise must have the shape of x0, {tuple(x0.shape)}, got {tuple(noise.shape)}")
    x_t: Tensor = ops.q_sample(x0, level, table, noise)
    return (x_t, noise) if return_noise else x_t


def _levels(t: Tensor | Sequence[int] | int, batch: int, T: int, device: torch.device) -> Tensor:
    level = torch.as_tensor(t)
    if (
        level.is_floating_point()
        or level.dtype == torch.bool
        or level.ndim > 1
        or (level.ndim == 1 and len(level) != batch)
    ):
        raise InputError(
            f"t must be one whole number or one for each of {batch} samples, got {level.dtype} {tuple(level.shape)}"
        )
    if level.device.type == "cpu" and level.numel() and not (0 <= int(level.min()) and int(level.max()) < T):
        raise InputError(f"t must be in 0..{T - 1}, the schedule's levels")
    return level.to(device=device, dtype=torch.int64).expand(batch)


@functools.lru_cache(maxsize=16)
def _table(schedule: Schedule, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.stack([schedule.alpha, schedule.sigma], axis=1)).to(device=device, dtype=dtype)
