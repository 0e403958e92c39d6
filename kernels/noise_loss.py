"""The ops `noise_loss` and `noise_loss_backward` in Triton: predictions against noise that is drawn again, not stored.

A sum is taken in two launches and without atomics, so that it is the same in every run: each part of a sample in
float32, then the parts in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels.launch import Argument, Launch, run
from fastdiff.kernels.parts import (
    NO_ROW,
    adding,
    cut,
    draw_part,
    parts,
    row_of,
    settled,
    sum_of_tile,
    which_row,
    whose_noise,
)
from fastdiff.kernels.tiles import block_of, left_of, read, sample_of, value_of, write


@triton.jit
def error_of_block(
    pred,
    stride,
    x0,
    x0_stride,
    level,
    level_per_sample: tl.constexpr,
    table,
    rows,
    key,
    draw,
    stream,
    draw_per_sample: tl.constexpr,
    samples,
    sample,
    elements,
    left,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
):
    """The tile of a program's block of predictions less what they are compared with: t0 x0 + te eps, or eps."""
    predicted = read(block_of(pred, sample, stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    target = draw_part(key, samples, sample, draw, stream, draw_per_sample, BLOCK, WIDTH)
    if x0 is not None:
        t0, te = row_of(level, sample, level_per_sample, table, rows)
        clean = read(block_of(x0, sample, x0_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
        target = tl.fma(te, target, t0 * clean)
    return predicted - target


@triton.jit
def mean_of_part_kernel(
    pred,
    mean,
    stride,
    x0,
    x0_stride,
    level,
    level_per_sample: tl.constexpr,
    table,
    rows,
    key,
    draw,
    stream,
    draw_per_sample: tl.constexpr,
    samples,
    elements,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Write what one part of a sample gives to its mean."""
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    left = left_of(elements, BLOCK)
    error = error_of_block(
        pred,
        stride,
        x0,
        x0_stride,
        level,
        level_per_sample,
        table,
        rows,
        key,
        draw,
        stream,
        draw_per_sample,
        samples,
        sample,
        elements,
        left,
        BLOCK,
        WIDTH,
        EVEN,
    )
    total = sum_of_tile(error * error, left, BLOCK, WIDTH, EVEN)
    tl.store(mean + sample * tl.num_programs(0) + tl.program_id(0), total / elements)


@triton.jit
def gradient_kernel(
    grad,
    grad_per_sample: tl.constexpr,
    pred,
    gradient,
    stride,
    x0,
    x0_stride,
    level,
    level_per_sample: tl.constexpr,
    table,
    rows,
    key,
    draw,
    stream,
    draw_per_sample: tl.constexpr,
    samples,
    elements,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Write one block of one sample."""
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    factor = tl.div_rn(value_of(grad, sample, grad_per_sample) * 2, elements.to(tl.float32))
    left = left_of(elements, BLOCK)
    error = error_of_block(
        pred,
        stride,
        x0,
        x0_stride,
        level,
        level_per_sample,
        table,
        rows,
        key,
        draw,
        stream,
        draw_per_sample,
        samples,
        sample,
        elements,
        left,
        BLOCK,
        WIDTH,
        EVEN,
    )
    write(block_of(gradient, sample, None, elements, BLOCK), left, factor * error, BLOCK, WIDTH, EVEN)


def noise_loss(
    pred: Tensor,
    key: Tensor,
    draw: Tensor,
    stream: int,
    x0: Tensor | None = None,
    level: Tensor | None = None,
    table: Tensor | None = None,
) -> Tensor:
    """Return the mean squared error of each sample; see `fastdiff.ops.reference.noise_loss`.

    A level beyond the table gives NaN.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    elements, samples = operands.elements_of(pred), len(pred)
    operands.check_image("pred", pred, pred)
    levels, drawing = _which_target(x0, level, table, pred), whose_noise(key, draw, stream, pred)
    loss = pred.new_empty(samples, dtype=torch.float32)
    if pred.numel() == 0:
        return loss.fill_(torch.nan)
    pred, x0 = settled(pred, elements), None if x0 is None else settled(x0, elements)
    blocks = parts(samples, elements, operands.width(pred, x0))
    count = blocks.grid[0]
    mean = loss if count == 1 else pred.new_empty((samples, count), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "pred": pred,
        "mean": mean,
        "stride": operands.sample_stride(pred, elements),
        "x0": x0,
        "x0_stride": operands.sample_stride(x0, elements),
        **levels,
        **drawing,
        "samples": samples,
        "elements": elements,
        **cut(blocks),
    }
    run(Launch(mean_of_part_kernel, blocks.grid, arguments, blocks.options))
    if count > 1:
        run(adding(mean, loss))
    return loss


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
    """Return the gradient with respect to pred; see `fastdiff.ops.reference.noise_loss_backward`.

    A level beyond the table gives NaN.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    elements, samples = operands.elements_of(pred), len(pred)
    operands.check_image("pred", pred, pred)
    grad = operands.per_sample("grad", grad, pred, torch.float32)
    levels, drawing = _which_target(x0, level, table, pred), whose_noise(key, draw, stream, pred)
    gradient = pred.new_empty(pred.shape)
    if pred.numel() == 0:
        return gradient
    pred, x0 = operands.dense(pred), None if x0 is None else operands.dense(x0)
    blocks = operands.blocks(samples, elements, operands.width(pred, x0))
    arguments: dict[str, Argument] = {
        "grad": grad,
        "grad_per_sample": grad.stride(0) == 1,
        "pred": pred,
        "gradient": gradient,
        "stride": operands.sample_stride(pred, elements),
        "x0": x0,
        "x0_stride": operands.sample_stride(x0, elements),
        **levels,
        **drawing,
        "samples": samples,
        "elements": elements,
        **cut(blocks),
    }
    run(Launch(gradient_kernel, blocks.grid, arguments, blocks.options))
    return gradient


def _which_target(x0: Tensor | None, level: Tensor | None, table: Tensor | None, pred: Tensor) -> dict[str, Argument]:
    """The arguments of a kernel that say what t0 and te are, checked, and x0 with them."""
    if x0 is None and level is None and table is None:
        return NO_ROW
    if x0 is None or level is None or table is None:
        raise InputError("noise_loss needs x0, level and table together, or none of them")
    operands.check_image("x0", x0, pred)
    return which_row(level, table, pred)
