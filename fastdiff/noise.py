"""Noise as a pure function of (seed, sample, stream, draw, element): the same bits on every backend and batch split."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError, lookup
from fastdiff.ops import dispatch
from fastdiff.ops.philox import STREAMS

MAX_SEED = 2**64 - 1
MAX_SAMPLE = 2**56 - 1
MAX_DRAW = 2**32 - 1


def normal(
    shape: Sequence[int],
    seed: int | Sequence[int] | Tensor = 0,
    index: int | Sequence[int] | Tensor | None = None,
    step: int | Sequence[int] | Tensor = 0,
    stream: str = "init",
    device: torch.device | str | None = None,
    backend: str = "auto",
) -> Tensor:
    """Standard normals, float32 of `shape`, by Philox4x32-10 and an exact Box-Muller (docs/noise.md).

    Args:
        shape: (B, ...), batch first. Element e of a sample is its offset in C order.
        seed: 0..2^64-1, one for all samples or one each; a tensor holds the bits as int64.
        index: global sample index, 0..2^56-1, one per sample; None is 0..B-1. A single number is for B = 1.
        step: the draw within the stream (the row of a plan, the step of a training), 0..2^32-1, for all or each.
        stream: "init", "step", "q_sample", "train", "extra", "probe" or "latent"; streams never share noise.
        device: where to draw; None is the CPU.
        backend: "auto" or a backend's name.

    Raises:
        InputError: a number is out of range, there is not one per sample, or the stream is unknown.
        BackendError: the backend is not available.
    """
    if len(shape) < 1 or min(shape) < 0:
        raise InputError(f"shape must be (batch, ...) with no negative size, got {tuple(shape)}")
    place = torch.device("cpu" if device is None else device)
    z = torch.empty(tuple(shape), device=place)
    dispatch.backend(backend, place).normal_(
        z, key(seed, index, shape[0], place), draws(step, shape[0], place), stream_number(stream)
    )
    return z


def rademacher(
    shape: Sequence[int],
    seed: int | Sequence[int] | Tensor = 0,
    index: int | Sequence[int] | Tensor | None = None,
    step: int | Sequence[int] | Tensor = 0,
    stream: str = "probe",
    device: torch.device | str | None = None,
) -> Tensor:
    """Signs, -1 or 1 with probability 1/2 each, float32 of `shape`: those of the numbers that `normal` draws."""
    z = normal(shape, seed, index, step, stream, device)
    return torch.ones_like(z).copysign(z)


def slerp(a: Tensor, b: Tensor, t: float | Tensor) -> Tensor:
    """Interpolate along the great circle from a to b, sample by sample (Shoemake 1985): between start states.

    `sin((1 - t) w) / sin w a + sin(t w) / sin w b`, with w the angle between the samples. Between two draws of noise
    the result is as long as noise is, where their mean is too short for a network. Along the line where samples are
    parallel or opposite: between z and -z no great circle is the shortest, and the middle is 0.

    Args:
        a, b: [B, ...], any floats.
        t: 0 is a, 1 is b; a number or [B].

    Returns:
        [B, ...] in the dtype of a.

    Raises:
        InputError: the shapes differ, a dtype is not of floats, or there is not one t, or one for each sample.
    """
    if a.shape != b.shape or a.ndim < 2:
        raise InputError(f"slerp needs two tensors [B, ...] of one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not (a.is_floating_point() and b.is_floating_point()):
        raise InputError(f"slerp needs floats, got {a.dtype} and {b.dtype}")
    share = torch.as_tensor(t, dtype=torch.float64, device=a.device)
    if share.shape not in ((), (len(a),)):
        raise InputError(f"t must be a number or have shape ({len(a)},), got {tuple(share.shape)}")
    first, second = a.flatten(1).double(), b.flatten(1).double()
    # atan2 keeps the digits of small angles and of those near pi, where the cosine is flat.
    unit, other = (v / v.norm(dim=1, keepdim=True) for v in (first, second))
    angle = 2 * torch.atan2((unit - other).norm(dim=1), (unit + other).norm(dim=1))
    sine = angle.sin()
    curved = sine.abs() > 1e-9
    of_a = torch.where(curved, ((1 - share) * angle).sin() / sine, 1 - share)
    of_b = torch.where(curved, (share * angle).sin() / sine, share)
    return (of_a[:, None] * first + of_b[:, None] * second).view(a.shape).to(a.dtype)


PROBES: dict[str, Callable[..., Tensor]] = {"rademacher": rademacher, "gaussian": normal}
"""What a trace can be estimated with, `E[v^T A v] = tr A` (Hutchinson 1989), by name."""


def key(
    seed: int | Sequence[int] | Tensor,
    index: int | Sequence[int] | Tensor | None,
    batch: int,
    device: torch.device,
) -> Tensor:
    """Return whose noise to draw, int64 [2, batch]: each sample's seed as bits, and its global index (None: 0..B-1).

    Raises InputError as `normal` does.
    """
    seeds = _per_sample("seed", seed, batch, MAX_SEED)
    samples = torch.arange(batch) if index is None else _per_sample("index", index, batch, MAX_SAMPLE)
    if samples.ndim == 0 and batch != 1:
        raise InputError(f"index needs one number for each of {batch} samples, or they would share their noise")
    where = seeds.device if seeds.device == samples.device else device  # both on the host take one way to the device
    return torch.stack([numbers.to(where).expand(batch) for numbers in (seeds, samples)]).to(device)


def draws(step: int | Sequence[int] | Tensor, batch: int, device: torch.device) -> Tensor:
    """Return one draw number per sample, int64 [batch]. Raises InputError as `normal` does."""
    return _per_sample("step", step, batch, MAX_DRAW).to(device).expand(batch)


def stream_number(stream: str) -> int:
    """Return a stream's number. Raises InputError for an unknown name."""
    return lookup("stream", stream, STREAMS)


def _per_sample(name: str, value: int | Sequence[int] | Tensor, batch: int, largest: int) -> Tensor:
    """Return whole numbers in 0..largest as int64, one (ndim 0) or one a sample; a tensor's range is the caller's."""
    numbers = value if isinstance(value, Tensor) else _listed(name, value, largest)
    if numbers.is_floating_point() or numbers.is_complex() or numbers.dtype == torch.bool:
        raise InputError(f"{name} must be whole numbers, got {numbers.dtype}")
    if numbers.ndim > 1 or (numbers.ndim == 1 and len(numbers) != batch):
        got = tuple(numbers.shape)
        raise InputError(f"{name} must be one number or one for each of {batch} samples, got shape {got}")
    return numbers.long()


def _listed(name: str, value: int | Sequence[int], largest: int) -> Tensor:
    items: list[Any] = list(value) if isinstance(value, Iterable) else [value]
    try:
        listed = [operator.index(item) for item in items]
    except TypeError:
        raise InputError(f"{name} must be whole numbers, got {value}") from None
    if not all(0 <= number <= largest for number in listed):
        raise InputError(f"{name} must be between 0 and {largest}, got {value}")
    # int64 holds the unsigned 64 bits in two's complement.
    numbers = torch.tensor([number - 2**64 if number >= 2**63 else number for number in listed], dtype=torch.int64)
    return numbers if isinstance(value, Iterable) else numbers[0]
