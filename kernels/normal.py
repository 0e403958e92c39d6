"""The op `normal_` in Triton: a tensor of standard normals."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels.launch import Argument, Launch, run
from fastdiff.kernels.tiles import block_of, draw_normals, left_of, sample_of, value_of, write


@triton.jit
def normal_kernel(
    z,
    key,
    draw,
    stream,
    samples,
    elements,
    stride,
    draw_per_sample: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    MANY: tl.constexpr,
):
    """Write one block of one sample."""
    sample = sample_of(MANY)
    if MANY and sample >= samples:
        return
    seed = tl.load(key + sample)
    index = tl.load(key + samples + sample)
    number = value_of(draw, sample, draw_per_sample)
    left = left_of(elements, BLOCK)
    block = block_of(z, sample, stride, elements, BLOCK)
    tile = draw_normals(seed, index, number, stream, BLOCK, WIDTH, False)
    write(block, left, tile, BLOCK, WIDTH, EVEN)


def normal_(z: Tensor, key: Tensor, draw: Tensor, stream: int) -> None:
    """Overwrite z with standard normals; see `fastdiff.ops.reference.normal_`.

    Raises:
        InputError: shapes, dtypes or devices do not match.
    """
    if z.numel():
        operands.check_own_memory("z", z)
        whole = operands.dense(z)
        run(launch(whole, key, draw, stream))
        if whole is not z:
            z.copy_(whole)


def launch(z: Tensor, key: Tensor, draw: Tensor, stream: int) -> Launch:
    """The launch of `normal_` for a z whose samples are dense."""
    elements = operands.elements_of(z)
    operands.check_image("z", z, z)
    if not 0 <= stream <= 255:
        raise InputError(f"stream must be 0..255, got {stream}")
    samples = z.shape[0]
    draw = operands.per_sample("draw", draw, z, torch.int64)
    blocks = operands.blocks(samples, elements, operands.width(z))
    arguments: dict[str, Argument] = {
        "z": z,
        "key": operands.keys(key, z),
        "draw": draw,
        "stream": stream,
        "samples": samples,
        "elements": elements,
        "stride": operands.sample_stride(z, elements),
        "draw_per_sample": draw.stride(0) == 1,
        "BLOCK": blocks.block,
        "WIDTH": blocks.width,
        "EVEN": blocks.even,
        "MANY": blocks.many,
    }
    return Launch(normal_kernel, blocks.grid, arguments, {"num_warps": blocks.num_warps})
