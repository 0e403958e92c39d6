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
    scaled: bool = False,
    noise: Tensor | None = None,
    return_noise: Literal[False] = False,
    out: Tensor | None = None,
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
    scaled: bool = False,
    noise: Tensor | None = None,
    return_noise: Literal[True],
    out: Tensor | None = None,
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
    scaled: bool = False,
    noise: Tensor | None = None,
    return_noise: bool = False,
    out: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Draw `x_t = alpha_t x0 + sigma_t eps` (Ho et al. 2020, eq. 4), in one pass.

    Args:
        x0: clean data [B, ...], any float dtype; x_t has the same. Arithmetic is float32, or float64 for float64.
        t: schedule indices in 0..T-1, one for all samples or one each.
        schedule: the noise levels.
        seed, index, step, stream: whose noise to draw; see `fastdiff.noise.normal`.
        scaled: return `scale_in x_t` instead, which is what the network is given (see `Schedule.scale_in`).
        noise: eps to use instead, of the shape of x0.
        return_noise: return (x_t, eps).
        out: where to write x_t, of the shape and dtype of x0; there is no gradient through it. None makes a tensor.
        backend: "auto" or a backend's name.

    Raises:
        InputError: x0 is not of floats, shapes do not match, t is out of range (checked where t is on the CPU), or a
            gradient is wanted through `out`.
        BackendError: the backend is not available.
    """
    if x0.ndim == 0 or not x0.is_floating_point():
        raise InputError(f"x0 must be floats [B, ...], got {x0.dtype} {tuple(x0.shape)}: scale images to [-1, 1]")
    if noise is not None and noise.shape != x0.shape:
        raise InputError(f"noise must have the shape of x0, {tuple(x0.shape)}, got {tuple(noise.shape)}")
    dtype = torch.promote_types(x0.dtype, torch.float32)
    given = None if noise is None else noise.to(dtype)
    ops = dispatch.backend(backend, x0.device, dtype)
    key = draw = None
    if noise is None:
        key, draw = noises.key(seed, index, len(x0), x0.device), noises.draws(step, len(x0), x0.device)
    level = levels(t, len(x0), len(schedule), x0.device)
    table = _table(schedule, scaled, x0.device, dtype)
    number = noises.stream_number(stream)
    x_t: Tensor
    drawn: Tensor | None
    if out is None:
        x_t, drawn = ops.q_sample(x0, level, table, key, draw, number, given, return_noise)
    else:
        _check_out(out, x0, noise)
        drawn = torch.empty(x0.shape, device=x0.device) if return_noise and noise is None else None
        ops.q_sample_out(x0, level, table, key, draw, number, given, out, drawn)
        x_t = out
    eps = drawn if noise is None else noise
    return (x_t, eps) if return_noise and eps is not None else x_t


def _check_out(out: Tensor, x0: Tensor, noise: Tensor | None) -> None:
    if out.shape != x0.shape or out.dtype != x0.dtype:
        wanted = f"{tuple(x0.shape)} {x0.dtype}"
        raise InputError(f"out must have shape and dtype of x0, {wanted}, got {tuple(out.shape)} {out.dtype}")
    if torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in (out, x0, noise)):
        raise InputError("there is no gradient through `out`: leave it away, or call q_sample under torch.no_grad()")


def levels(t: Tensor | Sequence[int] | int, batch: int, T: int, device: torch.device) -> Tensor:
    """Return schedule indices, given as one for all samples or one each, as int64 [batch] on the device.

    Raises:
        InputError: they are not whole, of another length, or out of 0..T-1 (checked where t is on the CPU).
    """
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
def _table(schedule: Schedule, scaled: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    table = np.stack([schedule.alpha, schedule.sigma], axis=1)
    if scaled:
        table *= schedule.scale_in[:, None]
    return torch.from_numpy(table).to(device=device, dtype=dtype)
