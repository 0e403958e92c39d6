"""The op `normal_` in Triton: a tensor of standard normals."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import operands
from fastdiff.kernels.launch import Argument, Launch, run
from fastdiff.kernels.parts import cut, draw_part, whose_noise
from fastdiff.kernels.tiles import block_of, left_of, sample_of, write


@triton.jit
def normal_kernel(
    z,
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
    tile = draw_part(key, samples, sample, draw, stream, draw_per_sample, BLOCK, WIDTH)
    write(block_of(z, sample, stride, elements, BLOCK), left_of(elements, BLOCK), tile, BLOCK, WIDTH, EVEN)


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
    blocks = operands.blocks(len(z), elements, operands.width(z))
    arguments: dict[str, Argument] = {
        "z": z,
        "stride": operands.sample_stride(z, elements),
        **whose_noise(key, draw, stream, z),
        "samples": len(z),
        "elements": elements,
        **cut(blocks),
    }
    return Launch(normal_kernel, blocks.grid, arguments, blocks.options)
