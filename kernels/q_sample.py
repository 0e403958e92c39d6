"""The ops `q_sample` and `q_sample.out` in Triton: the forward process and its noise, in one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels.launch import Argument, Launch, run
from fastdiff.kernels.parts import NO_NOISE, cut, draw_part, row_of, which_row, whose_noise
from fastdiff.kernels.tiles import block_of, left_of, read, sample_of, write


@triton.jit
def q_sample_kernel(
    x0,
    x0_stride,
    noise,
    noise_stride,
    x_t,
    x_t_stride,
    drawn,
    drawn_stride,
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
    alpha, sigma = row_of(level, sample, level_per_sample, table, rows)
    left = left_of(elements, BLOCK)
    clean = read(block_of(x0, sample, x0_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    if noise is None:
        eps = draw_part(key, samples, sample, draw, stream, draw_per_sample, BLOCK, WIDTH)
    else:
        eps = read(block_of(noise, sample, noise_stride, elements, BLOCK), left, BLOCK, WIDTH, EVEN, True)
    noisy = tl.fma(sigma, eps, alpha * clean)
    write(block_of(x_t, sample, x_t_stride, elements, BLOCK), left, noisy, BLOCK, WIDTH, EVEN)
    if drawn is not None:
        write(block_of(drawn, sample, drawn_stride, elements, BLOCK), left, eps, BLOCK, WIDTH, EVEN)


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
    """Return x_t and the drawn noise; see `fastdiff.ops.reference.q_sample`. A level beyond the table gives NaN.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    x_t = x0.new_empty(x0.shape)
    returned = return_noise and noise is None
    drawn = x0.new_empty(x0.shape if returned else (0,), dtype=torch.float32)
    q_sample_out(x0, level, table, key, draw, stream, noise, x_t, drawn if returned else None)
    return x_t, drawn


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
    """Do what `q_sample` does into x_t and `drawn`; see `fastdiff.ops.reference.q_sample_out`.

    Raises:
        InputError: shapes, dtypes or devices do not match, or what is written shares memory with x0 or noise other than
            element for element.
    """
    if x0.numel() == 0:
        return
    operands.check_own_memory("x_t", x_t)
    operands.check_own_memory("drawn", drawn)
    noisy = operands.dense(x_t)
    copy = None if drawn is None else operands.dense(drawn)
    run(launch(x0, level, table, key, draw, stream, noise, noisy, copy))
    if noisy is not x_t:
        x_t.copy_(noisy)
    if drawn is not None and copy is not None and copy is not drawn:
        drawn.copy_(copy)


def launch(
    x0: Tensor,
    level: Tensor,
    table: Tensor,
    key: Tensor | None,
    draw: Tensor | None,
    stream: int,
    noise: Tensor | None,
    x_t: Tensor,
    drawn: Tensor | None,
) -> Launch:
    """The launch of `q_sample_out` for an x_t and a `drawn` whose samples are dense."""
    elements = operands.elements_of(x0)
    operands.check_image("x0", x0, x0)
    operands.check_image("x_t", x_t, x0)
    if drawn is not None:
        operands.check_image("drawn", drawn, x0, (torch.float32,))
    if noise is not None:
        operands.check_image("noise", noise, x0)
        noise, drawing = operands.dense(noise), NO_NOISE
    elif key is None or draw is None:
        raise InputError("q_sample needs key and draw, or noise")
    else:
        drawing = whose_noise(key, draw, stream, x0)
    levels = which_row(level, table, x0)
    x0 = operands.dense(x0)
    for name, written in (("x_t", x_t), ("drawn", drawn)):
        operands.check_apart(name, written, "x0", x0)
        operands.check_apart(name, written, "noise", noise)
    blocks = operands.blocks(x0.shape[0], elements, operands.width(x0, noise, x_t))
    arguments: dict[str, Argument] = {
        "x0": x0,
        "x0_stride": operands.sample_stride(x0, elements),
        "noise": noise,
        "noise_stride": operands.sample_stride(noise, elements),
        "x_t": x_t,
        "x_t_stride": operands.sample_stride(x_t, elements),
        "drawn": drawn,
        "drawn_stride": operands.sample_stride(drawn, elements),
        **levels,
        **drawing,
        "samples": x0.shape[0],
        "elements": elements,
        **cut(blocks),
    }
    return Launch(q_sample_kernel, blocks.grid, arguments, blocks.options)
