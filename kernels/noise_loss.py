"""The ops `noise_loss` and `noise_loss_backward` in Triton: predictions against noise that is drawn again, not stored.

A sum is taken in two launches and without atomics, so that it is the same in every run: each part of a sample in
float32, then the parts in float64.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import operands
from fastdiff.kernels.launch import Argument, Launch, run
from fastdiff.kernels.parts import adding, cut, draw_part, parts, settled, sum_of_tile, whose_noise
from fastdiff.kernels.tiles import block_of, left_of, read, sample_of, value_of, write


@triton.jit
def mean_of_part_kernel(
    pred,
    mean,
    stride,
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
    predicted = read(block_of(pred, sample, stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    error = predicted - draw_part(key, samples, sample, draw, stream, draw_per_sample, BLOCK, WIDTH)
    total = sum_of_tile(error * error, left, BLOCK, WIDTH, EVEN)
    tl.store(mean + sample * tl.num_programs(0) + tl.program_id(0), total / elements)


@triton.jit
def gradient_kernel(
    grad,
    grad_per_sample: tl.constexpr,
    pred,
    gradient,
    stride,
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
    predicted = read(block_of(pred, sample, stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    error = predicted - draw_part(key, samples, sample, draw, stream, draw_per_sample, BLOCK, WIDTH)
    write(block_of(gradient, sample, None, elements, BLOCK), left, factor * error, BLOCK, WIDTH, EVEN)


def noise_loss(pred: Tensor, key: Tensor, draw: Tensor, stream: int) -> Tensor:
    """Return the mean squared error of each sample; see `fastdiff.ops.reference.noise_loss`.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    elements, samples = operands.elements_of(pred), len(pred)
    operands.check_image("pred", pred, pred)
    drawing = whose_noise(key, draw, stream, pred)
    loss = pred.new_empty(samples, dtype=torch.float32)
    if pred.numel() == 0:
        return loss.fill_(torch.nan)
    pred = settled(pred, elements)
    blocks = parts(samples, elements, operands.width(pred))
    count = blocks.grid[0]
    mean = loss if count == 1 else pred.new_empty((samples, count), dtype=torch.float32)
    arguments: dict[str, Argument] = {
        "pred": pred,
        "mean": mean,
        "stride": operands.sample_stride(pred, elements),
        **drawing,
        "samples": samples,
        "elements": elements,
        **cut(blocks),
    }
    run(Launch(mean_of_part_kernel, blocks.grid, arguments, blocks.options))
    if count > 1:
        run(adding(mean, loss))
    return loss


def noise_loss_backward(grad: Tensor, pred: Tensor, key: Tensor, draw: Tensor, stream: int) -> Tensor:
    """Return the gradient with respect to pred; see `fastdiff.ops.reference.noise_loss_backward`.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    elements, samples = operands.elements_of(pred), len(pred)
    operands.check_image("pred", pred, pred)
    grad = operands.per_sample("grad", grad, pred, torch.float32)
    drawing = whose_noise(key, draw, stream, pred)
    gradient = pred.new_empty(pred.shape)
    if pred.numel() == 0:
        return gradient
    pred = operands.dense(pred)
    blocks = operands.blocks(samples, elements, operands.width(pred))
    arguments: dict[str, Argument] = {
        "grad": grad,
        "grad_per_sample": grad.stride(0) == 1,
        "pred": pred,
        "gradient": gradient,
        "stride": operands.sample_stride(pred, elements),
        **drawing,
        "samples": samples,
        "elements": elements,
        **cut(blocks),
    }
    run(Launch(gradient_kernel, blocks.grid, arguments, blocks.options))
    return gradient
