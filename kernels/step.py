"""The op `step` in Triton: one row of a plan per sample, in one pass over memory (docs/step.md)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels.arithmetic import clip, exp, guided, inpainted
from fastdiff.kernels.launch import Argument, Launch, call
from fastdiff.kernels.parts import cut
from fastdiff.kernels.tiles import (
    block_of,
    largest,
    left_of,
    normals_from,
    read,
    sample_of,
    value_of,
    write,
)
from fastdiff.ops.philox import STREAMS
from fastdiff.plan import FAST_NORMALS, HISTORY_SLOTS, NEUTRAL

COLUMNS = {name: 1 << k for k, name in enumerate(NEUTRAL)}
STORES_EPS = 1 << len(NEUTRAL)
_ALL_COLUMNS = STORES_EPS - 1
_ALL_BITS = (FAST_NORMALS << 1) - 1
_DRAWS_NOISE = COLUMNS["cz"] | COLUMNS["dz"] | COLUMNS["kz"]
_INPAINTS = COLUMNS["k0"] | COLUMNS["kz"]
_SPREADS = COLUMNS["cz"] | COLUMNS["cv"]
_WRITES_ANCHOR = sum(bit for name, bit in COLUMNS.items() if name.startswith("d"))
_NEEDS_ANCHOR = _WRITES_ANCHOR | COLUMNS["cy"]
_READS_SLOT = [COLUMNS[f"ch{k}"] | COLUMNS[f"dh{k}"] for k in range(HISTORY_SLOTS)]
_NEEDS_HISTORY = sum(_READS_SLOT) | COLUMNS["slot"]
_STATE_DTYPES = (torch.float32,)
# The arguments of `step` that are written, and their places.
_WRITTEN = {"x": 0, "model_input": 8, "first_bad": 9, "y": 13, "history": 14, "x0_out": 16}
_READ = ("out", "uncond", "variance", "z", "known", "mask")
_APART = tuple((written, read) for written in _WRITTEN for read in _READ)

_STREAM = tl.constexpr(STREAMS["step"])
_BITS = tl.constexpr(COLUMNS)  # not a plain dict, in which Triton's cache on disk would not see another order
_EPS_BIT = tl.constexpr(STORES_EPS)
_FAST_BIT = tl.constexpr(FAST_NORMALS)
X0 = tl.constexpr(("px", "po"))
_EPS = tl.constexpr(("ex", "eo", "e0"))
_STATE = tl.constexpr(("cx", "cy", "c0", "ce", "ch0", "ch1", "ch2", "ch3", "cz"))
_KNOWN = tl.constexpr(("k0", "kz"))
_ANCHOR = tl.constexpr(("dx", "dy", "d0", "de", "dh0", "dh1", "dh2", "dh3", "dz"))


def columns_of(layout: int) -> int:
    """How many columns a table of this layout has."""
    return (layout & _ALL_COLUMNS).bit_count()


@triton.constexpr_function
def _uses(layout: int, *names: str) -> bool:
    """Whether any of these columns is in the table."""
    return any(layout & _BITS.value[name] for name in names)


@triton.constexpr_function
def _has(layout: int, bit: int) -> bool:
    return bool(layout & bit)


@triton.constexpr_function
def _columns(layout: int) -> int:
    columns: int = layout & (1 << len(_BITS.value)) - 1
    return columns.bit_count()


@triton.constexpr_function
def _place(layout: int, name: str) -> int:
    """Where a column stands in a row of the table."""
    before: int = layout & (_BITS.value[name] - 1)
    return before.bit_count()


@triton.constexpr_function
def _count(names: tuple[str, ...]) -> int:
    return len(names)


@triton.constexpr_function
def _name(names: tuple[str, ...], k: int) -> str:
    return names[k]


@triton.constexpr_function
def _takes_part(layout: int, name: str) -> bool:
    """Whether a sum has this term. That of dy is in every y': the coefficient is 1 where it is not in the table."""
    return bool(layout & _BITS.value[name]) or name == "dy"


@triton.constexpr_function
def _is_first(layout: int, names: tuple[str, ...], k: int) -> bool:
    return not any(_takes_part(layout, name) for name in names[:k])


@triton.jit
def coefficient(row, known, layout: tl.constexpr, name: tl.constexpr):
    """A coefficient of a row: NaN where there is no such row, 1 where there is no such column."""
    value = tl.full([], 1.0, tl.float32)
    if _uses(layout, name):
        value = tl.load(row + _place(layout, name), mask=known, other=float("nan"))
    return value


@triton.jit
def coefficients(row, known, layout: tl.constexpr, names: tl.constexpr):
    """Several coefficients of a row."""
    values = ()
    for k in tl.static_range(_count(names)):
        values = values + (coefficient(row, known, layout, _name(names, k)),)  # type: ignore  # noqa: RUF005
    return values


@triton.jit
def linear(layout: tl.constexpr, names: tl.constexpr, c, values):
    """The sum of the terms whose column is in use; 0 if there is none. What no column multiplies may be anything."""
    total = tl.zeros_like(values[0])
    for k in tl.static_range(_count(names)):
        if _takes_part(layout, _name(names, k)):
            total = c[k] * values[k] if _is_first(layout, names, k) else tl.fma(c[k], values[k], total)
    return total


@triton.jit
def note_bad(first_bad, number, out, x_next):
    """Lower first_bad where a magnitude, [threads] each, is not finite. Each thread speaks for itself."""
    out_is_bad = (out < float("inf")) == 0  # true of NaN
    code = tl.where(out_is_bad, 2 * number, 2 * number + 1)
    is_bad = out_is_bad | ((x_next < float("inf")) == 0)
    tl.atomic_min(first_bad + tl.zeros_like(code), code, mask=is_bad, sem="relaxed")


@triton.jit
def step_kernel(
    x,
    out,
    table,
    row,
    uncond,
    w,
    key,
    model_input,
    first_bad,
    variance,
    scale,
    threshold,
    y,
    history,
    z,
    x0_out,
    w_uncond,
    known,
    mask,
    samples,
    elements,
    rows,
    x_stride,
    out_stride,
    uncond_stride,
    model_input_stride,
    variance_stride,
    y_stride,
    slot_stride,
    z_stride,
    x0_out_stride,
    known_stride,
    mask_stride,
    layout: tl.constexpr,
    row_per_sample: tl.constexpr,
    ANCHOR: tl.constexpr,
    BRANCHES: tl.constexpr,
    SLOTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Carry out a row on one block of one sample. Tensors that the row does not need are None."""
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    number = value_of(row, sample, row_per_sample)
    exists = (number >= 0) & (number < rows)
    at = table + number * _columns(layout)
    x0_c = coefficients(at, exists, layout, X0)
    eps_c = coefficients(at, exists, layout, _EPS)
    state_c = coefficients(at, exists, layout, _STATE)
    anchor_c = coefficients(at, exists, layout, _ANCHOR)
    known_c = coefficients(at, exists, layout, _KNOWN)
    cv = coefficient(at, exists, layout, "cv")
    bound = coefficient(at, exists, layout, "clip")
    ratio = 1.0
    if threshold is not None:
        clip_to, limit = bound, tl.load(threshold + sample)
        bound = tl.where(limit > clip_to, limit, clip_to)
        ratio = tl.where(bound == clip_to, 1.0, tl.div_rn(clip_to, bound))
    following = table + tl.minimum(number + 1, rows - 1) * _columns(layout)
    scale_in = coefficient(following, exists, layout, "scale_in")
    weight_uncond = None
    if uncond is not None:
        weight = tl.load(w + sample)
        if w_uncond is not None:
            weight_uncond = tl.load(w_uncond + sample)
    if scale is not None:
        factor = tl.load(scale + sample)
    if key is not None:
        seed, index = tl.load(key + sample), tl.load(key + samples + sample)
    if _uses(layout, "slot"):
        slot = coefficient(at, exists, layout, "slot")
        is_slot = (slot >= 0) & (slot < SLOTS)
        slot_begin = slot.to(tl.int32).to(tl.int64) * slot_stride

    for part in tl.static_range(BLOCK // TILE):
        # All that is read is read before anything is written: what comes in and what goes out may be one tensor.
        first = part * TILE
        left = left_of(elements, BLOCK) - first
        x_block = block_of(x, sample, x_stride, elements, BLOCK) + first
        state = read(x_block, left, TILE, WIDTH, EVEN, False)
        output = read(block_of(out, sample, out_stride, elements, BLOCK) + first, left, TILE, WIDTH, EVEN, True)
        if uncond is not None:
            u_block = block_of(uncond, sample, uncond_stride, elements, BLOCK) + first
            u = read(u_block, left, TILE, WIDTH, EVEN, True)
            output = guided(output, u, weight, weight_uncond)
        if scale is not None:
            output = factor * output

        # What no column multiplies is never used: any tile stands in its place.
        anchor, h0, h1, h2, h3, noise, image = state, state, state, state, state, state, state
        if y is not None:
            y_block = block_of(y, sample, y_stride, elements, BLOCK) + first
            anchor = read(y_block, left, TILE, WIDTH, EVEN, False)
        if history is not None:
            to_next = slot_stride.to(tl.int64)
            slot_0 = block_of(history, sample, None, elements, BLOCK) + first
            if _uses(layout, "ch0", "dh0"):
                h0 = read(slot_0, left, TILE, WIDTH, EVEN, False)
            if _uses(layout, "ch1", "dh1"):
                h1 = read(slot_0 + to_next, left, TILE, WIDTH, EVEN, False)
            if _uses(layout, "ch2", "dh2"):
                h2 = read(slot_0 + 2 * to_next, left, TILE, WIDTH, EVEN, False)
            if _uses(layout, "ch3", "dh3"):
                h3 = read(slot_0 + 3 * to_next, left, TILE, WIDTH, EVEN, False)
        if z is not None:
            z_block = block_of(z, sample, z_stride, elements, BLOCK) + first
            noise = read(z_block, left, TILE, WIDTH, EVEN, True)
        elif key is not None:
            quad = tl.program_id(0).to(tl.uint32) * (BLOCK // 4) + first // 4
            noise = normals_from(quad, seed, index, number, _STREAM, TILE, WIDTH, _has(layout, _FAST_BIT))
        spread = noise
        if variance is not None:
            v_block = block_of(variance, sample, variance_stride, elements, BLOCK) + first
            spread = exp(cv * read(v_block, left, TILE, WIDTH, EVEN, True)) * noise
        if known is not None:
            known_block = block_of(known, sample, known_stride, elements, BLOCK) + first
            image = read(known_block, left, TILE, WIDTH, EVEN, False)
        if mask is not None:
            mask_block = block_of(mask, sample, mask_stride, elements, BLOCK) + first
            is_known = read(mask_block, left, TILE, WIDTH, EVEN, False)

        x0 = linear(layout, X0, x0_c, (state, output))
        if _uses(layout, "clip"):
            x0 = clip(x0, bound * -1.0, bound)  # to Triton -0 is 0 - 0
        if threshold is not None:
            x0 = x0 * ratio
        eps = linear(layout, _EPS, eps_c, (state, output, x0))
        x_next = linear(layout, _STATE, state_c, (state, anchor, x0, eps, h0, h1, h2, h3, spread))
        if mask is not None:
            x_next = inpainted(x_next, linear(layout, _KNOWN, known_c, (image, noise)), is_known)

        write(x_block, left, x_next, TILE, WIDTH, EVEN)
        if ANCHOR:
            y_next = linear(layout, _ANCHOR, anchor_c, (state, anchor, x0, eps, h0, h1, h2, h3, noise))
            write(y_block, left, y_next, TILE, WIDTH, EVEN)
        if _uses(layout, "slot"):  # noqa: SIM102 (known to the compiler, unlike the next)
            if is_slot:
                write(slot_0 + slot_begin, left, eps if _has(layout, _EPS_BIT) else x0, TILE, WIDTH, EVEN)
        if x0_out is not None:
            x0_block = block_of(x0_out, sample, x0_out_stride, elements, BLOCK) + first
            write(x0_block, left, x0, TILE, WIDTH, EVEN)
        if model_input is not None:
            scaled = scale_in * x_next if _uses(layout, "scale_in") else x_next
            for branch in tl.static_range(BRANCHES):
                input_block = block_of(model_input, sample + branch * samples, model_input_stride, elements, BLOCK)
                write(input_block + first, left, scaled, TILE, WIDTH, EVEN)
        if first_bad is not None:
            if part == 0:
                out_size, x_size = largest(output, WIDTH), largest(x_next, WIDTH)
            else:
                out_size = tl.maximum(out_size, largest(output, WIDTH), propagate_nan=tl.PropagateNan.ALL)
                x_size = tl.maximum(x_size, largest(x_next, WIDTH), propagate_nan=tl.PropagateNan.ALL)
    if first_bad is not None:
        note_bad(first_bad + sample, number, out_size, x_size)


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
    """Carry out one row of a plan per sample, in place; see `fastdiff.ops.reference.step`.

    A row that is not in the table makes its sample NaN, and a slot that is not in the history is not written.

    Raises:
        InputError: shapes, dtypes or devices do not match, a column is in use whose tensor was not given, or a tensor
            that is written shares memory with one that is read other than element for element.
    """
    arguments = (x, out, table, layout, row, uncond, w, key, model_input, first_bad, variance, scale, threshold)
    others = (y, history, z, x0_out, w_uncond, known, mask)
    if not call(launch, *arguments, *others):
        _step_on_copies(*arguments, *others)


def _step_on_copies(*arguments: Any) -> None:
    """A step on tensors that no kernel can address: on dense copies, of which what was written is copied back."""
    for name, tensor in zip(_WRITTEN, _written(arguments), strict=True):
        operands.check_own_memory(name, tensor)
    copies: list[Any] = [value.contiguous() if isinstance(value, Tensor) else value for value in arguments]
    step(*copies)
    for tensor, copy in zip(_written(arguments), _written(copies), strict=True):
        if copy is not tensor:
            tensor.copy_(copy)


def _written(arguments: Sequence[Any]) -> list[Any]:
    return [arguments[place] for place in _WRITTEN.values()]


def launch(
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
) -> Launch | None:
    """The launch of a `step`; None for tensors that no kernel can address. Raises as `step`."""
    images = (x, out, uncond, model_input, variance, y, history, z, x0_out, known, mask)
    if not operands.are_dense(images) or not (first_bad is None or first_bad.is_contiguous()):
        return None
    elements = operands.elements_of(x)
    samples = x.shape[0]
    operands.check_image("x", x, x, _STATE_DTYPES)
    operands.check_image("out", out, x)
    if layout & ~_ALL_BITS:
        raise InputError(f"layout {layout} names no set of columns")
    table = operands.table(table, x, columns_of(layout))
    row = operands.per_sample("row", row, x, torch.int64)
    if uncond is not None:
        operands.check_image("uncond", uncond, x)
        if w is None:
            raise InputError("uncond needs w, the guidance scale of each sample")
    branches = 0
    if model_input is not None:
        branches = model_input.shape[0] // max(samples, 1) if model_input.ndim else 0
        operands.check_image("model_input", model_input, x, branches=max(branches, 1))
    if threshold is not None and not layout & COLUMNS["clip"]:
        raise InputError("threshold needs the column clip")
    variance = _needed_variance(x, layout, variance)
    y = _needed_anchor(x, layout, y)
    history = _needed_history(x, layout, history)
    key, z = _needed_noise(x, layout, key, z)
    known, mask = _needed_known(x, layout, known, mask)
    if x0_out is not None:
        operands.check_image("x0_out", x0_out, x, _STATE_DTYPES)
    # Fast normals leave so little to compute per element that it pays to share the rest among more of them.
    tiles = 4 if layout & FAST_NORMALS else 2
    width = operands.width(out, uncond, model_input, variance)
    blocks = operands.tiled_blocks(samples, elements, width, tiles)
    stride, dense_per_sample = operands.sample_stride, operands.dense_per_sample
    arguments: dict[str, Argument] = {
        "x": x,
        "out": out,
        "table": table,
        "row": row,
        "uncond": uncond,
        "w": dense_per_sample("w", None if uncond is None else w, x, torch.float32),
        "key": key,
        "model_input": model_input,
        "first_bad": dense_per_sample("first_bad", first_bad, x, torch.int64),
        "variance": variance,
        "scale": dense_per_sample("scale", scale, x, torch.float32),
        "threshold": dense_per_sample("threshold", threshold, x, torch.float32),
        "y": y,
        "history": history,
        "z": z,
        "x0_out": x0_out,
        "w_uncond": dense_per_sample("w_uncond", None if uncond is None else w_uncond, x, torch.float32),
        "known": known,
        "mask": mask,
        "samples": samples,
        "elements": elements,
        "rows": table.shape[0],
        "x_stride": stride(x, elements),
        "out_stride": stride(out, elements),
        "uncond_stride": stride(uncond, elements),
        "model_input_stride": stride(model_input, elements),
        "variance_stride": stride(variance, elements),
        "y_stride": stride(y, elements),
        "slot_stride": None if history is None else history.stride(0),
        "z_stride": stride(z, elements),
        "x0_out_stride": stride(x0_out, elements),
        "known_stride": stride(known, elements),
        "mask_stride": stride(mask, elements),
        "layout": layout,
        "row_per_sample": row.stride(0) == 1,
        "ANCHOR": y is not None and bool(layout & _WRITES_ANCHOR),
        "BRANCHES": branches,
        "SLOTS": 0 if history is None else history.shape[0],
        "TILE": blocks.tile,
        **cut(blocks),
    }
    _check_memory(arguments)
    return Launch(step_kernel, blocks.grid, arguments, blocks.options, _APART)


def _needed_variance(x: Tensor, layout: int, variance: Tensor | None) -> Tensor | None:
    if layout & _SPREADS != _SPREADS:
        return None
    if variance is None:
        raise InputError("the table has the column cv, which needs variance")
    operands.check_image("variance", variance, x)
    return variance


def _needed_anchor(x: Tensor, layout: int, y: Tensor | None) -> Tensor | None:
    if y is not None:
        operands.check_image("y", y, x, _STATE_DTYPES)
    elif layout & _NEEDS_ANCHOR:
        raise InputError("the table has columns of the anchor state, which need y")
    return y if layout & _NEEDS_ANCHOR else None


def _needed_history(x: Tensor, layout: int, history: Tensor | None) -> Tensor | None:
    slots = 0
    if history is not None:
        if history.ndim < 2 or history.shape[0] > HISTORY_SLOTS:
            raise InputError(f"history must be [slots, samples, ...] with at most {HISTORY_SLOTS} slots")
        slots = history.shape[0]
        if slots:
            operands.check_image("history", history[0], x, _STATE_DTYPES)
    for k, reads in enumerate(_READS_SLOT):
        if layout & reads and k >= slots:
            raise InputError(f"the table reads history slot {k}, and history has {slots} slots")
    if layout & COLUMNS["slot"] and not slots:
        raise InputError("the table writes history, and history has 0 slots")
    return history if layout & _NEEDS_HISTORY else None


def _needed_noise(x: Tensor, layout: int, key: Tensor | None, z: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    if not layout & _DRAWS_NOISE:
        return None, None
    if z is not None:
        operands.check_image("z", z, x, _STATE_DTYPES)
        return None, z
    if key is None:
        raise InputError("the table has columns of noise, which need key or z")
    return operands.keys(key, x), None


def _needed_known(
    x: Tensor, layout: int, known: Tensor | None, mask: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if not layout & _INPAINTS:
        return None, None
    if mask is None:
        raise InputError("the table has columns of what is known, which need mask")
    operands.check_image("mask", mask, x, _STATE_DTYPES)
    if not layout & COLUMNS["k0"]:
        return None, mask
    if known is None:
        raise InputError("the table has the column k0, which needs known")
    operands.check_image("known", known, x, _STATE_DTYPES)
    return known, mask


def _check_memory(tensors: Mapping[str, Any]) -> None:
    for name in _WRITTEN:
        operands.check_own_memory(name, tensors[name])
    samples = len(tensors["x"])
    for name, other in _APART:
        if name == "model_input" and tensors[name] is not None and samples:
            # What is read may be one of its branches.
            for branch in tensors[name].split(samples):
                operands.check_apart(name, branch, other, tensors[other])
        else:
            operands.check_apart(name, tensors[name], other, tensors[other])
