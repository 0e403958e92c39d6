"""The Triton ops that reduce a sample to numbers, from which follows what `step` reads like w.

They are guidance rescale, the inner products of the two outputs of guidance, and threshold.
Nothing is read back, no float is added atomically, and samples are cut into parts whatever the batch is: a sample's
number has the same bits in every run and in every batch.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels.arithmetic import guided
from fastdiff.kernels.launch import Argument, Launch, run
from fastdiff.kernels.parts import PARTS, adding, cut, parts, settled, sum_of_tile
from fastdiff.kernels.step import COLUMNS, X0, coefficients, columns_of, linear
from fastdiff.kernels.tiles import block_of, left_of, place_of, read, sample_of, value_of

_COUNTED = 4096  # elements of a part whose digits are counted
_DIGITS = tl.constexpr(4)  # of 8 bits, the highest one first
_BINS = tl.constexpr(256)
_FOUND = tl.constexpr(4 * 256)  # where a sample's counts end, and the digits that they gave begin
_COUNTS = tl.constexpr(4 * 256 + 8)
_MAGNITUDE = tl.constexpr(0x7FFFFFFF)  # all bits but the sign
_LAYOUT = (COLUMNS["po"] << 1) - 1  # what of it says where the columns of x0 stand


@triton.jit
def moments_of_part_kernel(
    out,
    out_stride,
    uncond,
    uncond_stride,
    w,
    w_per_sample: tl.constexpr,
    moments,
    samples,
    elements,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Write mean and squared deviations of one part of a sample, of the conditional and of the guided output.

    Means are relative to the sample's first element, so that little cancels and a constant has no deviation at all.
    """
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    weight = value_of(w, sample, w_per_sample)
    left = left_of(elements, BLOCK)
    out_block = block_of(out, sample, out_stride, elements, BLOCK)
    uncond_block = block_of(uncond, sample, uncond_stride, elements, BLOCK)
    conditional = read(out_block, left, BLOCK, WIDTH, EVEN, True)
    unconditional = read(uncond_block, left, BLOCK, WIDTH, EVEN, True)
    begin = tl.program_id(0).to(tl.int64) * BLOCK
    first_out = tl.load(out_block - begin).to(tl.float32)
    first_uncond = tl.load(uncond_block - begin).to(tl.float32)

    to = moments + (sample * tl.num_programs(0) + tl.program_id(0)) * 4
    count = tl.minimum(left, BLOCK).to(tl.float32)
    shifted = conditional - first_out
    _write_moments(to, shifted, count, left, BLOCK, WIDTH, EVEN)
    shifted = guided(conditional, unconditional, weight, None) - guided(first_out, first_uncond, weight, None)
    _write_moments(to + 2, shifted, count, left, BLOCK, WIDTH, EVEN)


@triton.jit
def _write_moments(to, value, count, left, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    mean = sum_of_tile(value, left, BLOCK, WIDTH, EVEN) / count
    apart = value - mean
    tl.store(to, mean)
    tl.store(to + 1, sum_of_tile(apart * apart, left, BLOCK, WIDTH, EVEN))


@triton.jit
def rescale_kernel(moments, factor, phi, parts, elements, PART: tl.constexpr, BLOCK: tl.constexpr):
    """Write a sample's factor from the moments of its parts."""
    sample = tl.program_id(0).to(tl.int64)
    moments += sample * parts * 4
    of_out = _squares(moments, parts, elements, PART, BLOCK)
    of_guided = _squares(moments + 2, parts, elements, PART, BLOCK)
    ratio = tl.where(of_guided == 0, 1.0, tl.sqrt(of_out / of_guided))
    tl.store(factor + sample, 1.0 + phi * (ratio - 1.0))


@triton.jit
def _squares(moments, parts, elements, PART: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of squared deviations of a sample, float64 (Chan, Golub and LeVeque 1983)."""
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        mean = tl.load(moments + part * 4, mask=part < parts, other=0.0).to(tl.float64)
        total += mean * _count(part, elements, PART)
    of_sample = tl.sum(total, 0) / elements
    total = tl.zeros([BLOCK], tl.float64)
    for first in range(0, parts, BLOCK):
        part = first + tl.arange(0, BLOCK)
        apart = tl.load(moments + part * 4, mask=part < parts, other=0.0) - of_sample
        squares = tl.load(moments + part * 4 + 1, mask=part < parts, other=0.0)
        total += squares + apart * apart * _count(part, elements, PART)
    return tl.sum(total, 0)


@triton.jit
def _count(part, elements, PART: tl.constexpr):
    """How many elements a part has, float64; 0 beyond the last."""
    left = elements - part.to(tl.int64) * PART
    return tl.maximum(tl.minimum(left, PART), 0).to(tl.float64)


def guidance_rescale(out: Tensor, uncond: Tensor, w: Tensor, phi: float) -> Tensor:
    """Return each sample's factor; see `fastdiff.ops.reference.guidance_rescale`.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    elements, samples = operands.elements_of(out), len(out)
    operands.check_image("out", out, out)
    operands.check_image("uncond", uncond, out)
    w = operands.per_sample("w", w, out, torch.float32)
    factor = out.new_empty(samples, dtype=torch.float32)
    if out.numel() == 0:
        return factor.fill_(torch.nan)
    out, uncond = settled(out, elements), settled(uncond, elements)
    blocks = parts(samples, elements, operands.width(out, uncond))
    count = blocks.grid[0]
    moments = out.new_empty((samples, count, 4), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "out": out,
        "out_stride": operands.sample_stride(out, elements),
        "uncond": uncond,
        "uncond_stride": operands.sample_stride(uncond, elements),
        "w": w,
        "w_per_sample": w.stride(0) == 1,
        "moments": moments,
        "samples": samples,
        "elements": elements,
        **cut(blocks),
    }
    run(Launch(moments_of_part_kernel, blocks.grid, arguments, blocks.options))
    merging: dict[str, Argument] = {
        "moments": moments,
        "factor": factor,
        "phi": float(phi),
        "parts": count,
        "elements": elements,
    }
    run(Launch(rescale_kernel, (samples, 1, 1), {**merging, "PART": blocks.block, "BLOCK": PARTS}))
    return factor


@triton.jit
def products_of_part_kernel(
    out,
    out_stride,
    uncond,
    uncond_stride,
    products,
    samples,
    elements,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Write what one part of a sample gives to each of its inner products, [3, samples, parts]."""
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    left = left_of(elements, BLOCK)
    conditional = read(block_of(out, sample, out_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    other = read(block_of(uncond, sample, uncond_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    apart = conditional - other
    to = products + sample * tl.num_programs(0) + tl.program_id(0)
    to_next = samples.to(tl.int64) * tl.num_programs(0)
    tl.store(to, sum_of_tile(conditional * conditional, left, BLOCK, WIDTH, EVEN))
    tl.store(to + to_next, sum_of_tile(conditional * apart, left, BLOCK, WIDTH, EVEN))
    tl.store(to + 2 * to_next, sum_of_tile(apart * apart, left, BLOCK, WIDTH, EVEN))


def inner_products(out: Tensor, uncond: Tensor) -> Tensor:
    """Return three inner products of each sample; see `fastdiff.ops.reference.inner_products`.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    elements, samples = operands.elements_of(out), len(out)
    operands.check_image("out", out, out)
    operands.check_image("uncond", uncond, out)
    result = out.new_empty((3, samples), dtype=torch.float32)
    if out.numel() == 0:
        return result.zero_()
    out, uncond = settled(out, elements), settled(uncond, elements)
    blocks = parts(samples, elements, operands.width(out, uncond))
    count = blocks.grid[0]
    products = result if count == 1 else out.new_empty((3, samples, count), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "out": out,
        "out_stride": operands.sample_stride(out, elements),
        "uncond": uncond,
        "uncond_stride": operands.sample_stride(uncond, elements),
        "products": products,
        "samples": samples,
        "elements": elements,
        **cut(blocks),
    }
    run(Launch(products_of_part_kernel, blocks.grid, arguments, blocks.options))
    if count > 1:
        run(adding(products, result))
    return result


@triton.jit
def count_kernel(
    x,
    x_stride,
    out,
    out_stride,
    uncond,
    uncond_stride,
    w,
    w_per_sample: tl.constexpr,
    scale,
    scale_per_sample: tl.constexpr,
    w_uncond,
    w_uncond_per_sample: tl.constexpr,
    table,
    rows,
    columns,
    row,
    row_per_sample: tl.constexpr,
    counts,
    rank,
    samples,
    elements,
    layout: tl.constexpr,
    DIGIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Count the values of one digit in the |x0| of one part whose higher digits are those of the magnitude of the rank.

    The last digit notes the least magnitude beyond those, too, as the greatest of what is missing to all bits set.
    """
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    counts += sample * _COUNTS
    if DIGIT > 0:
        prefix, place = _descend(counts, rank, DIGIT)
        found, is_first = counts + _FOUND + 2 * DIGIT, tl.program_id(0) == 0
        tl.store(found, prefix.to(tl.int64), mask=is_first)
        tl.store(found + 1, place, mask=is_first)
    number = value_of(row, sample, row_per_sample)
    known = (number >= 0) & (number < rows)
    x0_coefficients = coefficients(table + number * columns, known, layout, X0)
    left = left_of(elements, BLOCK)
    state = read(block_of(x, sample, x_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, False)
    output = read(block_of(out, sample, out_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, False)
    if uncond is not None:
        other = read(block_of(uncond, sample, uncond_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, False)
        weight_uncond = None if w_uncond is None else value_of(w_uncond, sample, w_uncond_per_sample)
        output = guided(output, other, value_of(w, sample, w_per_sample), weight_uncond)
    if scale is not None:
        output = value_of(scale, sample, scale_per_sample) * output
    x0 = linear(layout, X0, x0_coefficients, (state, output))

    word = tl.reshape(x0, BLOCK).to(tl.int32, bitcast=True) & _MAGNITUDE
    counted = tl.reshape(place_of(BLOCK, WIDTH), BLOCK) < left
    below: tl.constexpr = 8 * (_DIGITS - 1 - DIGIT)  # bits under the digit
    if DIGIT > 0:
        higher = word >> (below + 8)
        if DIGIT == _DIGITS - 1:
            missing = tl.where(counted & (higher > prefix), _MAGNITUDE - word, 0)
            tl.atomic_max(counts + _FOUND, tl.max(missing, 0).to(tl.int64), sem="relaxed")
        counted &= higher == prefix
    histogram = tl.histogram((word >> below) & (_BINS - 1), _BINS, counted)
    to = counts + DIGIT * _BINS + tl.arange(0, _BINS)
    tl.atomic_add(to, histogram.to(tl.int64), mask=histogram > 0, sem="relaxed")


@triton.jit
def _descend(counts, rank, DIGITS: tl.constexpr):
    """The first digits of the magnitude of a rank (0 is the least), int32, and its rank among those that begin so."""
    prefix = tl.zeros([], tl.int32)
    if DIGITS > 1:
        found = counts + _FOUND + 2 * (DIGITS - 1)
        prefix, rank = tl.load(found).to(tl.int32), tl.load(found + 1)
    count = tl.load(counts + (DIGITS - 1) * _BINS + tl.arange(0, _BINS))
    is_less = tl.cumsum(count, 0) <= rank
    digit = tl.sum(is_less.to(tl.int32), 0)
    return prefix * _BINS + digit, rank - tl.sum(tl.where(is_less, count, 0), 0)


@triton.jit
def quantile_kernel(counts, quantile, rank, fraction):
    """Write a sample's quantile, between the magnitude of the rank and the next one."""
    sample = tl.program_id(0).to(tl.int64)
    counts += sample * _COUNTS
    word, rank = _descend(counts, rank, _DIGITS)
    bins = tl.arange(0, _BINS)
    count = tl.load(counts + (_DIGITS - 1) * _BINS + bins)
    digit = word & (_BINS - 1)
    equal = tl.sum(tl.where(bins == digit, count, 0), 0)
    larger = tl.min(tl.where((bins > digit) & (count > 0), bins, _BINS), 0)
    beyond = _MAGNITUDE - tl.load(counts + _FOUND)
    following = tl.where(rank + 1 < equal, word, tl.where(larger < _BINS, word - digit + larger, beyond))
    low = word.to(tl.float32, bitcast=True)
    high = following.to(tl.int32).to(tl.float32, bitcast=True)
    between = low.to(tl.float64) + (high.to(tl.float64) - low) * fraction
    tl.store(quantile + sample, tl.where(fraction == 0, low, between))


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
    """Return each sample's quantile of |x0|; see `fastdiff.ops.reference.threshold`. NaN is above every number.

    It is selected digit by digit, as a radix sort would find it: four counts of 8 bits and one launch to interpolate.

    Raises:
        InputError: shapes, dtypes or devices do not match, or a sample has no elements.
    """
    elements, samples = operands.elements_of(x), len(x)
    if not 0 <= quantile <= 1:
        raise InputError(f"quantile must be in 0..1, got {quantile}")
    if elements == 0 and samples > 0:
        raise InputError("threshold needs samples with elements")
    arguments = _prediction(x, out, table, layout, row, uncond, w, scale, w_uncond)
    result = x.new_empty(samples)
    if samples == 0:
        return result
    blocks = parts(samples, elements, operands.width(out, uncond), _COUNTED)
    counts = torch.zeros((samples, _COUNTS.value), dtype=torch.int64, device=x.device)
    position = quantile * (elements - 1)
    rank = math.floor(position)
    for digit in range(_DIGITS.value):
        counting: dict[str, Argument] = {"counts": counts, "rank": rank, "samples": samples, "elements": elements}
        constants: dict[str, Argument] = {"layout": layout & _LAYOUT, "DIGIT": digit, **cut(blocks)}
        run(Launch(count_kernel, blocks.grid, {**arguments, **counting, **constants}, blocks.options))
    interpolating: dict[str, Argument] = {
        "counts": counts,
        "quantile": result,
        "rank": rank,
        "fraction": position - rank,
    }
    run(Launch(quantile_kernel, (samples, 1, 1), interpolating))
    return result


def _prediction(
    x: Tensor,
    out: Tensor,
    table: Tensor,
    layout: int,
    row: Tensor,
    uncond: Tensor | None,
    w: Tensor | None,
    scale: Tensor | None,
    w_uncond: Tensor | None,
) -> dict[str, Argument]:
    """The arguments of a kernel that predicts x0, checked."""
    elements = operands.elements_of(x)
    operands.check_image("x", x, x, (torch.float32,))
    operands.check_image("out", out, x)
    if uncond is None:
        w = w_uncond = None
    elif w is None:
        raise InputError("uncond needs w, the guidance scale of each sample")
    else:
        operands.check_image("uncond", uncond, x)
        uncond, w = operands.dense(uncond), operands.per_sample("w", w, x, torch.float32)
    if w_uncond is not None:
        w_uncond = operands.per_sample("w_uncond", w_uncond, x, torch.float32)
    if scale is not None:
        scale = operands.per_sample("scale", scale, x, torch.float32)
    table = operands.table(table, x, columns_of(layout))
    row = operands.per_sample("row", row, x, torch.int64)
    x, out = operands.dense(x), operands.dense(out)
    return {
        "x": x,
        "x_stride": operands.sample_stride(x, elements),
        "out": out,
        "out_stride": operands.sample_stride(out, elements),
        "uncond": uncond,
        "uncond_stride": operands.sample_stride(uncond, elements),
        "w": w,
        "w_per_sample": w is not None and w.stride(0) == 1,
        "scale": scale,
        "scale_per_sample": scale is not None and scale.stride(0) == 1,
        "w_uncond": w_uncond,
        "w_uncond_per_sample": w_uncond is not None and w_uncond.stride(0) == 1,
        "table": table,
        "rows": table.shape[0],
        "columns": table.shape[1],
        "row": row,
        "row_per_sample": row.stride(0) == 1,
    }
