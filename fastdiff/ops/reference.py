"""The `eager` backend: every op in plain torch. It is the specification that the kernels are tested against.

The operations stand in the order of docs/step.md, so that a float32 state has the bits of every other backend. A
backend is a namespace of the public functions here. Image tensors are [B, ...] of one shape, and of any float dtype
unless one is named; row, draw and level are int64 [B]; key is int64 [2, B], the seeds' bits and the global sample
indices; stream is a number of `philox.STREAMS`; w, w_uncond, scale and threshold are floats [B].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.ops.exact import clip, exp, fma
from fastdiff.ops.philox import STREAMS, normal
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL

Coefficients = Mapping[str, Tensor]


def step(
    x: Tensor,
    out: Tensor,
    table: Tensor,
    layout: int,
    row: Tensor,
    uncond: Tensor | None = None,
    w: Tensor | None = None,
    key: Tensor | None = None,
    model_input: Tensor | None = None,
    first_bad: Tensor | None = None,
    variance: Tensor | None = None,
    scale: Tensor | None = None,
    threshold: Tensor | None = None,
    y: Tensor | None = None,
    history: Tensor | None = None,
    z: Tensor | None = None,
    x0_out: Tensor | None = None,
    w_uncond: Tensor | None = None,
    known: Tensor | None = None,
    mask: Tensor | None = None,
) -> None:
    """Carry out one row of a plan per sample, in place.

    Args:
        x: state, float32 or float64; overwritten with x'.
        out: network output; the conditional one if `uncond` is given.
        table, layout: a plan's table, [rows, columns] in the dtype of x, and its `Plan.layout`.
        row: the row of each sample.
        uncond, w: unconditional output and guidance scale.
        key: whose noise to draw (stream "step", draw = row) where the plan uses noise and z is not given.
        model_input: [k B, ...]; overwritten k times over with the next row's `scale_in x'`.
        first_bad: int64 [B]; lowered to 2 row if `out` is not finite, to 2 row + 1 if x' is not.
        variance: learned variance v, for a plan with the column cv.
        scale: factor of the guided output; see `guidance_rescale`.
        threshold: bound of x0 from which it is scaled back to the column clip; see the op `threshold`.
        y: anchor state in the dtype of x; overwritten with y'.
        history: [slots, B, ...] in the dtype of x.
        z: noise to use instead.
        x0_out: overwritten with x0.
        w_uncond: weight of the unconditional output: guidance is then `w out + w_uncond uncond`.
        known, mask: an image in the dtype of x, and where x' is it at the noise of the columns k* (1), is what the
            other columns make it (0), or lies between.

    Raises:
        InputError: shapes differ, a row is not in the table, or a column is in use whose tensor was not given.
    """
    slots = [] if history is None else list(history)
    _check_shapes(x, out=out, uncond=uncond, variance=variance, y=y, z=z, x0_out=x0_out, known=known, mask=mask)
    _check_shapes(x, **{f"history[{k}]": slot for k, slot in enumerate(slots)})
    c = _coefficients(table, layout, row, x)
    out = _guided(out.to(x.dtype), uncond, w, scale, w_uncond)
    x0 = _clip_x0(_linear(c, {"px": x, "po": out}, like=x), c, threshold)
    eps = _linear(c, {"ex": x, "eo": out, "e0": x0}, like=x)

    if z is None and key is not None and ("cz" in c or "dz" in c or "kz" in c):
        z = normal(x.shape, key, row, STREAMS["step"])
    z = None if z is None else z.to(x.dtype)
    spread = z
    if z is not None and "cz" in c and "cv" in c:
        spread = exp(_linear(c, {"cv": variance}, like=x)) * z

    sources = {"x": x, "y": y, "0": x0, "e": eps, **{f"h{k}": _get(slots, k) for k in range(HISTORY_SLOTS)}}
    x_next = _linear(c, _terms("c", {**sources, "z": spread}), like=x)
    if "k0" in c or "kz" in c:
        x_next = _inpainted(x_next, _linear(c, {"k0": known, "kz": z}, like=x), mask)
    if any(name.startswith("d") for name in c):
        if y is None:
            raise InputError("the plan writes the anchor state, and y was not given")
        y.copy_(_linear({"dy": x.new_ones(()), **c}, _terms("d", {**sources, "z": z}), like=x))
    if "slot" in c:
        _store(slots, c["slot"], eps if layout >> len(NEUTRAL) & 1 else x0)

    x.copy_(x_next)
    if x0_out is not None:
        x0_out.copy_(x0)
    if model_input is not None:
        _write_model_input(model_input, x, table, layout, row)
    if first_bad is not None:
        _note_bad(first_bad, out, 2 * row)
        _note_bad(first_bad, x, 2 * row + 1)


def step_directly(*arguments: Tensor | int | None) -> None:
    """Do what `step` does, past torch's dispatcher where a backend can.

    For a sampling loop: arguments by position, plain tensors (no subclass, no pending negation), no gradient.
    """
    step(*arguments)  # type: ignore[arg-type]


def normal_(z: Tensor, key: Tensor, draw: Tensor, stream: int) -> None:
    """Overwrite z with standard normals (docs/noise.md), rounded to its dtype."""
    z.copy_(normal(z.shape, key, draw, stream))


def q_sample(
    x0: Tensor,
    level: Tensor,
    table: Tensor,
    key: Tensor | None,
    draw: Tensor | None,
    stream: int,
    noise: Tensor | None,
    return_noise: bool,
) -> tuple[Tensor, Tensor]:
    """Return `alpha x0 + sigma eps` in the dtype of x0, and the drawn eps, float32 (empty unless `return_noise`).

    Args:
        x0: clean data.
        level: the row of each sample.
        table: [levels, 2], alpha and sigma; in float64 for a float64 x0, else in float32.
        key, draw, stream: whose noise to draw, where `noise` is not given.
        noise: eps to use instead.
        return_noise: whether to return the noise that was drawn.

    Raises:
        InputError: shapes differ, a level is not in the table, or there is neither key nor noise.
    """
    if noise is None:
        if key is None or draw is None:
            raise InputError("q_sample needs noise, or key and draw to draw it")
        eps = normal(x0.shape, key, draw, stream)
    else:
        _check_shapes(x0, noise=noise)
        eps = noise
    x_t = _mixed(x0, eps, level, table).to(x0.dtype)
    return x_t, eps if noise is None and return_noise else x0.new_empty(0, dtype=torch.float32)


def q_sample_out(
    x0: Tensor,
    level: Tensor,
    table: Tensor,
    key: Tensor | None,
    draw: Tensor | None,
    stream: int,
    noise: Tensor | None,
    x_t: Tensor,
    drawn: Tensor | None,
) -> None:
    """Do what `q_sample` does into x_t, and copy the noise, drawn or given, into `drawn` (float32) if that is given."""
    result, eps = q_sample(x0, level, table, key, draw, stream, noise, drawn is not None)
    x_t.copy_(result)
    if drawn is not None:
        drawn.copy_(eps if noise is None else noise)


def noise_loss(
    pred: Tensor,
    key: Tensor,
    draw: Tensor,
    stream: int,
    x0: Tensor | None = None,
    level: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Return the mean over the elements of `(pred - target)^2` per sample, [B] in float32 (float64 for a float64 pred).

    Args:
        pred: what the network gave.
        key, draw, stream: whose noise eps is.
        x0: clean data; the target is `t0 x0 + te eps`, which gets no gradient. Without it the target is eps.
        level: the row of each sample, with x0.
        table: [levels, 2], t0 and te, with x0; in float64 for a float64 pred, else in float32.

    Raises:
        InputError: shapes differ, a level is not in the table, or x0 is without level and table.
    """
    return _flat(_residual(pred, key, draw, stream, x0, level, table).square()).mean(dim=1)


def noise_loss_backward(
    grad: Tensor,
    pred: Tensor,
    key: Tensor,
    draw: Tensor,
    stream: int,
    x0: Tensor | None = None,
    level: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Return the gradient with respect to pred, in its dtype, from that with respect to the means, `grad` [B].

    The other arguments, and what is raised, are those of `noise_loss`.
    """
    factor = grad * 2 / max(math.prod(pred.shape[1:]), 1)
    return (_broadcast(factor, pred) * _residual(pred, key, draw, stream, x0, level, table)).to(pred.dtype)


def guidance_rescale(out: Tensor, uncond: Tensor, w: Tensor, phi: float) -> Tensor:
    """Return `phi std(out) / std(u + w (out - u)) + 1 - phi` per sample, [B] in the dtype of w (Lin et al. 2024).

    The ratio is 1 where its denominator is 0.
    """
    wide = out.to(torch.promote_types(out.dtype, w.dtype))
    of_guided = _std(_guided(wide, uncond, w))
    ratio = torch.where(of_guided == 0, 1.0, _std(wide) / of_guided)
    return (phi * ratio + (1 - phi)).to(w.dtype)


def inner_products(out: Tensor, uncond: Tensor) -> Tensor:
    """Return `<c, c>`, `<c, c - u>` and `<c - u, c - u>` per sample, [3, B] in float32 (float64 for a float64 out).

    c is `out`, u is `uncond`, and c - u is rounded before it is multiplied. Norms and projections of both follow from
    them, also where c is close to u, as APG (Sadat et al. 2024) and CFG-Zero* (Fan et al. 2025) need them.
    """
    _check_shapes(out, uncond=uncond)
    c = out.to(torch.promote_types(out.dtype, torch.float32))
    apart = _flat(c - uncond.to(c.dtype)).double()
    c, dtype = _flat(c).double(), c.dtype
    return torch.stack([(a * b).sum(dim=1) for a, b in ((c, c), (c, apart), (apart, apart))]).to(dtype)


def threshold(
    x: Tensor,
    out: Tensor,
    table: Tensor,
    layout: int,
    row: Tensor,
    uncond: Tensor | None,
    w: Tensor | None,
    scale: Tensor | None,
    w_uncond: Tensor | None,
    quantile: float,
) -> Tensor:
    """Return the quantile of |x0| before clipping per sample, [B] in the dtype of x (Saharia et al. 2022, sec. 2.3).

    Between two order statistics it is interpolated linearly. Raises InputError as `step` does.
    """
    _check_shapes(x, out=out, uncond=uncond)
    c = _coefficients(table, layout, row, x)
    x0 = _linear(c, {"px": x, "po": _guided(out.to(x.dtype), uncond, w, scale, w_uncond)}, like=x)
    if math.prod(x.shape[1:]) == 0:
        raise InputError("threshold needs samples with elements")
    ordered = _flat(x0.abs()).sort(dim=1).values
    position = quantile * (ordered.shape[1] - 1)
    fraction = position - math.floor(position)
    below, above = ordered[:, math.floor(position)], ordered[:, math.ceil(position)]
    return below if fraction == 0 else below + fraction * (above - below)


def _residual(
    pred: Tensor,
    key: Tensor,
    draw: Tensor,
    stream: int,
    x0: Tensor | None,
    level: Tensor | None,
    table: Tensor | None,
) -> Tensor:
    target = normal(pred.shape, key, draw, stream)
    if x0 is not None and level is not None and table is not None:
        _check_shapes(pred, x0=x0)
        target = _mixed(x0, target, level, table)
    elif any(given is not None for given in (x0, level, table)):
        raise InputError("noise_loss needs x0, level and table together, or none of them")
    return pred - target  # in the wider of their dtypes


def _mixed(x0: Tensor, eps: Tensor, level: Tensor, table: Tensor) -> Tensor:
    """Return `a x0 + b eps`, with a and b from each sample's row of the table."""
    a, b = (_broadcast(value, x0) for value in _rows(table, level, len(x0)).unbind(1))
    return fma(b, eps.to(table.dtype), a * x0.to(table.dtype))


def _guided(
    out: Tensor,
    uncond: Tensor | None,
    w: Tensor | None,
    scale: Tensor | None = None,
    w_uncond: Tensor | None = None,
) -> Tensor:
    if uncond is not None:
        if w is None:
            raise InputError("guidance needs w where uncond is given")
        uncond, w = uncond.to(out.dtype), _broadcast(w.to(out.dtype), out)
        if w_uncond is None:
            out = torch.where(w == 1, out, fma(w, out - uncond, uncond))
        else:
            out = fma(w, out, _broadcast(w_uncond.to(out.dtype), out) * uncond)
    return out if scale is None else _broadcast(scale.to(out.dtype), out) * out


def _clip_x0(x0: Tensor, c: Coefficients, threshold: Tensor | None) -> Tensor:
    if threshold is not None and "clip" not in c:
        raise InputError("a threshold needs a plan with the column 'clip', to which it scales x0 back")
    if "clip" not in c:
        return x0
    bound = c["clip"]
    if threshold is None:
        return clip(x0, -bound, bound)
    limit = _broadcast(threshold.to(x0.dtype), x0)
    limit = torch.where(limit > bound, limit, bound)
    return clip(x0, -limit, limit) * torch.where(limit == bound, 1.0, bound / limit)


def _linear(c: Coefficients, terms: Mapping[str, Tensor | None], like: Tensor) -> Tensor:
    """Sum coefficient times tensor over the terms whose column is in use; zeros if there is none."""
    total: Tensor | None = None
    for name, value in terms.items():
        if name not in c:
            continue
        if value is None:
            raise InputError(f"the plan uses column {name!r}, and the tensor that it multiplies was not given")
        total = c[name] * value if total is None else fma(c[name], value, total)
    return torch.zeros_like(like) if total is None else total


def _inpainted(x_next: Tensor, keep: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        raise InputError("the plan uses columns of what is known, and mask was not given")
    return torch.where(mask == 1, keep, fma(mask, keep - x_next, x_next))


def _terms(prefix: str, sources: Mapping[str, Tensor | None]) -> dict[str, Tensor | None]:
    return {prefix + name: value for name, value in sources.items()}


def _coefficients(table: Tensor, layout: int, row: Tensor, like: Tensor) -> dict[str, Tensor]:
    """Return each column in use as one value per sample, [B, 1, ..., 1]."""
    names = [name for k, name in enumerate(NEUTRAL) if layout >> k & 1]
    values = _rows(table, row, len(like)).unbind(1)
    return {name: _broadcast(value, like) for name, value in zip(names, values, strict=True)}


def _rows(table: Tensor, row: Tensor, batch: int) -> Tensor:
    if row.shape != (batch,):
        raise InputError(f"there must be one row for each of {batch} samples, got shape {tuple(row.shape)}")
    # Elsewhere the check would wait for the device.
    if row.device.type == "cpu" and batch and not (0 <= int(row.min()) and int(row.max()) < len(table)):
        raise InputError(f"rows must be in 0..{len(table) - 1}, the rows of the table")
    return table[row]


def _broadcast(value: Tensor, like: Tensor) -> Tensor:
    return value.reshape(-1, *[1] * (like.ndim - 1))


def _flat(value: Tensor) -> Tensor:
    return value.reshape(len(value), math.prod(value.shape[1:]))


def _std(value: Tensor) -> Tensor:
    wide = _flat(value).double()
    return (wide - wide.mean(dim=1, keepdim=True)).square().mean(dim=1).sqrt()


def _get(slots: Sequence[Tensor], k: int) -> Tensor | None:
    return slots[k] if k < len(slots) else None


def _store(slots: Sequence[Tensor], slot: Tensor, value: Tensor) -> None:
    if not slots:
        raise InputError("the plan writes history, and history was not given")
    for k, kept in enumerate(slots):
        kept.copy_(torch.where(slot == k, value, kept))


def _write_model_input(model_input: Tensor, x: Tensor, table: Tensor, layout: int, row: Tensor) -> None:
    following = _coefficients(table, layout, (row + 1).clamp(max=len(table) - 1), x)
    scaled = following["scale_in"] * x if "scale_in" in following else x
    for branch in torch.split(model_input, len(x)):
        _check_shapes(x, model_input=branch)
        branch.copy_(scaled)


def _note_bad(first_bad: Tensor, values: Tensor, code: Tensor) -> None:
    finite = _flat(values.isfinite()).all(dim=1)
    first_bad.copy_(torch.where(finite, first_bad, torch.minimum(first_bad, code)))


def _check_shapes(x: Tensor, **others: Tensor | None) -> None:
    for name, value in others.items():
        if value is not None and value.shape != x.shape:
            raise InputError(f"{name} must have the shape of x, {tuple(x.shape)}, got {tuple(value.shape)}")
