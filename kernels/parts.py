"""Parts of samples: what the ops that draw noise, and those that reduce a sample to numbers, share."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels.launch import Argument, Launch
from fastdiff.kernels.operands import Blocks
from fastdiff.kernels.tiles import draw_normals, place_of, value_of

_ACCESS = 16  # bytes, and elements, that the compiler knows to divide an address or a stride
NO_NOISE: dict[str, Argument] = {"key": None, "draw": None, "stream": 0, "draw_per_sample": False}
NO_ROW: dict[str, Argument] = {"level": None, "level_per_sample": False, "table": None, "rows": 0}
_PER_WARP = 512  # elements, and the least of a part
PARTS = 1024  # whose numbers are added at a time


def parts(samples: int, elements: int, width: int, most: int = 2048) -> Blocks:
    """Cut samples into parts that do not depend on how many samples there are, so that sums do not either."""
    block = min(most, max(_PER_WARP, 1 << (elements - 1).bit_length()))
    return Blocks(elements, width, block, operands.grid(samples, elements, block), num_warps=block // _PER_WARP)


def settled(tensor: Tensor, elements: int) -> Tensor:
    """Return an image tensor for a sum: itself, or a copy where the compiler would add in another order.

    Which elements a thread has depends on what is known of addresses; here that follows from the elements of a sample.
    """
    stride = operands.sample_stride(tensor, elements)
    if elements % _ACCESS:
        usual = stride is None
    else:
        usual = (stride is None or stride % _ACCESS == 0) and tensor.data_ptr() % _ACCESS == 0
    return tensor if usual and operands.is_dense(tensor) else tensor.clone(memory_format=torch.contiguous_format)


def cut(blocks: Blocks) -> dict[str, Argument]:
    """The constants of a kernel that say how samples are cut."""
    return {"BLOCK": blocks.block, "WIDTH": blocks.width, "EVEN": blocks.even, "MANY": blocks.many}


def whose_noise(key: Tensor, draw: Tensor, stream: int, like: Tensor) -> dict[str, Argument]:
    """The arguments of a kernel that say whose noise to draw, checked."""
    if not 0 <= stream <= 255:
        raise InputError(f"stream must be 0..255, got {stream}")
    draw = operands.per_sample("draw", draw, like, torch.int64)
    return {
        "key": operands.keys(key, like),
        "draw": draw,
        "stream": stream,
        "draw_per_sample": draw.stride(0) == 1,
    }


def which_row(level: Tensor, table: Tensor, like: Tensor) -> dict[str, Argument]:
    """The arguments of a kernel that say which row of a table of two columns is a sample's, checked."""
    level = operands.per_sample("level", level, like, torch.int64)
    table = operands.table(table, like, 2)
    return {"level": level, "level_per_sample": level.stride(0) == 1, "table": table, "rows": table.shape[0]}


@triton.jit
def row_of(level, sample, level_per_sample: tl.constexpr, table, rows):
    """The two numbers of a sample's row; NaN where it is not in the table."""
    row = value_of(level, sample, level_per_sample)
    known = (row >= 0) & (row < rows)
    first = tl.load(table + 2 * row, mask=known, other=float("nan"))
    second = tl.load(table + 2 * row + 1, mask=known, other=float("nan"))
    return first, second


@triton.jit
def draw_part(
    key, samples, sample, draw, stream, draw_per_sample: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr
):
    """The tile of a program's exact normals."""
    seed, index = tl.load(key + sample), tl.load(key + samples + sample)
    return draw_normals(seed, index, value_of(draw, sample, draw_per_sample), stream, BLOCK, WIDTH, False)


@triton.jit
def sum_of_tile(tile, left, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """The sum of a tile's elements that are in the sample, float32: those of each thread first."""
    if not EVEN:
        tile = tl.where(place_of(BLOCK, WIDTH) < left, tile, 0.0)
    if WIDTH == 8:
        tile = tl.sum(tile, 2)
    return tl.sum(tl.sum(tile, 1), 0)


@triton.jit
def sum_kernel(part, total, parts, BLOCK: tl.constexpr):
    """Write one sum over parts."""
    which = tl.program_id(0).to(tl.int64)
    sums = tl.zeros([BLOCK], tl.float64)
    for first in range(0, parts, BLOCK):
        place = first + tl.arange(0, BLOCK)
        sums += tl.load(part + which * parts + place, mask=place < parts, other=0.0)
    tl.store(total + which, tl.sum(sums, 0))


def adding(part: Tensor, total: Tensor) -> Launch:
    """The launch that writes the sums of `part`, float32 [..., parts], over parts and in float64, to `total` [...]."""
    arguments: dict[str, Argument] = {"part": part, "total": total, "parts": part.shape[-1], "BLOCK": PARTS}
    return Launch(sum_kernel, (total.numel(), 1, 1), arguments)
