"""The `eager` backend: every op in plain torch. It is the specification that the kernels are tested against.

A backend is a module with these three functions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.ops.philox import MASK32, STREAMS, normal_pair, philox
from fastdiff.plan import HISTORY_SLOTS


class NoiseKey(NamedTuple):
    """Whose noise to draw: per sample the seed's bits and the global sample index, each int64 [B]."""

    seed: Tensor
    sample: Tensor


def normal(shape: Sequence[int], seed: Tensor, sample: Tensor, draw: Tensor, stream: int) -> Tensor:
    """Standard normals, float32 of shape (B, ...), from seed, sample and draw (int64 [B]) and a stream number."""
    size = math.prod(shape[1:])
    quad = torch.arange((size + 3) // 4, device=seed.device)
    seed, sample, draw = seed[:, None], sample[:, None], draw[:, None]
    counter = (quad, draw & MASK32, sample & MASK32, stream << 24 | (sample >> 32 & 0xFFFFFF))
    o0, o1, o2, o3 = philox(counter, (seed & MASK32, seed >> 32 & MASK32))
    quads = torch.stack([*normal_pair(o0, o1), *normal_pair(o2, o3)], dim=-1)
    return quads.flatten(1)[:, :size].reshape(tuple(shape))


def q_sample(x0: Tensor, level: Tensor, table: Tensor, noise: Tensor) -> Tensor:
    """`alpha x0 + sigma noise` in the dtype of x0; level: int64 [B] rows of table [T, 2], columns alpha and sigma."""
    alpha, sigma = _per_sample(table[level], x0.ndim)
    return (alpha * x0.to(table.dtype) + sigma * noise).to(x0.dtype)


def step(
    x: Tensor,
    out: Tensor,
    table: Tensor,
    columns: Sequence[str],
    row: Tensor,
    *,
    uncond: Tensor | None = None,
    w: Tensor | None = None,
    variance: Tensor | None = None,
    y: Tensor | None = None,
    history: Tensor | None = None,
    stores: str = "x0",
    key: NoiseKey | None = None,
    z: Tensor | None = None,
    model_input: Tensor | None = None,
    x0_out: Tensor | None = None,
    first_bad: Tensor | None = None,
) -> None:
    """Carry out one row of a plan per sample, in place (the equations of `fastdiff.plan`).

    Args:
        x: state [B, ...], float32 or float64; overwritten with x'.
        out: network output [B, ...], any float dtype; the conditional one if `uncond` is given.
        table, columns: a plan's table, [rows, columns] in the dtype of x, and its columns' names.
        row: int64 [B], the row of each sample.
        uncond, w: unconditional output [B, ...] and guidance scale [B] in the dtype of x.
        variance: learned variance v [B, ...], for a plan with the column cv.
        y: anchor state [B, ...], overwritten with y'.
        history: [slots, B, ...] in the dtype of x; `stores` says whether it keeps x0 or eps.
        key, z: where noise comes from: drawn by `normal` (stream "step", draw = row), or given [B, ...].
        model_input: overwritten with the next row's `scale_in x'` in its own dtype, [B, ...].
        x0_out: overwritten with x0, [B, ...].
        first_bad: int64 [B], lowered to 2 row if `out` is not finite, to 2 row + 1 if x' is not.

    Raises:
        InputError: a column is in use and the tensor that it needs was not given.
    """
    coefficient = dict(zip(columns, _per_sample(table[row], x.ndim), strict=True))
    out = out.to(x.dtype)
    if uncond is not None and w is not None:
        out = torch.lerp(uncond.to(x.dtype), out, _broadcast(w, x.ndim))

    x0 = _linear(coefficient, {"px": x, "po": out}, like=x)
    if "clip" in coefficient:
        x0 = x0.clamp(-coefficient["clip"], coefficient["clip"])
    eps = _linear(coefficient, {"ex": x, "eo": out, "e0": x0}, like=x)

    if z is None and key is not None and ("cz" in coefficient or "dz" in coefficient):
        z = normal(x.shape, key.seed, key.sample, row, STREAMS["step"])
    spread = z
    if z is not None and "cv" in coefficient:
        spread = torch.exp(_linear(coefficient, {"cv": variance}, like=x)) * z

    sources = {"x": x, "y": y, "0": x0, "e": eps, **_slots(history)}
    x_next = _linear(coefficient, {"c" + name: value for name, value in {**sources, "z": spread}.items()}, like=x)
    if y is None and any(name.startswith("d") for name in coefficient):
        raise InputError("the plan writes the anchor state, and y was not given")
    if y is not None:
        anchor = {"dy": x.new_ones(()), **coefficient}
        y.copy_(_linear(anchor, {"d" + name: value for name, value in {**sources, "z": z}.items()}, like=x))
    if history is not None and "slot" in coefficient:
        _store(history, coefficient["slot"], x0 if stores == "x0" else eps)

    x.copy_(x_next)
    if x0_out is not None:
        x0_out.copy_(x0)
    if model_input is not None:
        following = table[(row + 1).clamp(max=len(table) - 1)]
        scaled = x * _broadcast(following[:, columns.index("scale_in")], x.ndim) if "scale_in" in columns else x
        model_input.copy_(scaled)
    if first_bad is not None:
        _note_bad(first_bad, out, 2 * row)
        _note_bad(first_bad, x, 2 * row + 1)


def _per_sample(values: Tensor, ndim: int) -> list[Tensor]:
    """Split [B, columns] into one [B, 1, ..., 1] for each column."""
    return [_broadcast(value, ndim) for value in values.unbind(1)]


def _broadcast(value: Tensor, ndim: int) -> Tensor:
    return value.reshape(-1, *[1] * (ndim - 1))


def _linear(coefficient: Mapping[str, Tensor], terms: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
    """Sum coefficient times tensor over the terms whose column is in use; zeros if there is none."""
    total: Tensor | None = None
    for name, value in terms.items():
        if name not in coefficient:
            continue
        if value is None:
            raise InputError(f"the plan uses column {name!r}, and the tensor that it multiplies was not given")
        factor = coefficient[name]
        total = factor * value if total is None else torch.addcmul(total, factor, value)
    return torch.zeros_like(like) if total is None else total


def _slots(history: Tensor | None) -> dict[str, Tensor | None]:
    filled = [] if history is None else list(history)
    return {f"h{k}": filled[k] if k < len(filled) else None for k in range(HISTORY_SLOTS)}


def _store(history: Tensor, slot: Tensor, value: Tensor) -> None:
    for k in range(len(history)):
        history[k].copy_(torch.where(slot == k, value, history[k]))


def _note_bad(first_bad: Tensor, values: Tensor, code: Tensor) -> None:
    finite = values.isfinite().flatten(1).all(dim=1)
    first_bad.copy_(torch.where(finite, first_bad, torch.minimum(first_bad, code)))
