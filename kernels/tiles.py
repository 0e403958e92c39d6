"""The block of elements of one program, as threads see it.

A thread has WIDTH elements one behind the other: 8 where any image tensor has 16 bits, else 4, so that each access
moves 16 bytes. A tile holds a block as float32: [threads, 4], or [threads, 4, 2] for WIDTH 8, where the last dimension
tells the first four elements of a thread from the last four. So a quad of normals, 4 floats of 32 bits and half of 8
floats of 16 bits are parts of a tile that one thread owns, and nothing passes between threads.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.kernels.box_muller import normals


@triton.jit
def sample_of(MANY: tl.constexpr):
    """The sample of a program, int64; it may be beyond the last where MANY."""
    sample = tl.program_id(1).to(tl.int64)
    if MANY:
        sample += tl.program_id(2).to(tl.int64) * tl.num_programs(1)
    return sample


@triton.jit
def left_of(elements, BLOCK: tl.constexpr):
    """How many elements of the sample there are from the first of a program's block on."""
    return elements - tl.program_id(0).to(elements.dtype) * BLOCK


@triton.jit
def block_of(tensor, sample, stride, elements, BLOCK: tl.constexpr):
    """Where the block of a program begins in a tensor of samples; stride None is `elements`."""
    begin = sample * elements if stride is None else sample * stride
    return tensor + begin + tl.program_id(0).to(tl.int64) * BLOCK


@triton.jit
def value_of(tensor, sample, PER_SAMPLE: tl.constexpr):
    """A sample's own number of a tensor with one for each sample, or with one for all of them."""
    if PER_SAMPLE:
        tensor += sample
    return tl.load(tensor)


@triton.jit
def four_places(part: tl.constexpr, BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """The places in the block of each thread's first (part 0) or last (part 1) four elements, int32 [threads, 4]."""
    return tl.arange(0, BLOCK // WIDTH)[:, None] * WIDTH + part * 4 + tl.arange(0, 4)[None, :]


@triton.jit
def wide_places(BLOCK: tl.constexpr):
    """The places of the elements of a block of WIDTH 8, int32 [threads, 8]."""
    return tl.arange(0, BLOCK // 8)[:, None] * 8 + tl.arange(0, 8)[None, :]


@triton.jit
def place_of(BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """The place in the block of each element of a tile, int32."""
    place = four_places(0, BLOCK, WIDTH)
    if WIDTH == 8:
        place = tl.join(place, four_places(1, BLOCK, WIDTH))
    return place


@triton.jit
def is_narrow(tensor):
    """Whether a tensor has floats of 16 bits."""
    return tensor.dtype.element_ty.primitive_bitwidth == 16


@triton.jit
def read_at(block, left, place, EVEN: tl.constexpr, ONCE: tl.constexpr):
    """The floats at these places of a block, of which `left` are in the sample; 0 beyond."""
    policy: tl.constexpr = "evict_first" if ONCE else ""
    if EVEN:
        value = tl.load(block + place, eviction_policy=policy)
    else:
        value = tl.load(block + place, mask=place < left, other=0.0, eviction_policy=policy)
    return value.to(tl.float32)


@triton.jit
def write_at(block, left, place, value, EVEN: tl.constexpr):
    """Write floats, rounded to the tensor's dtype, at these places of a block."""
    value = value.to(block.dtype.element_ty)
    if EVEN:
        tl.store(block + place, value)
    else:
        tl.store(block + place, value, mask=place < left)


@triton.jit
def read(block, left, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr, ONCE: tl.constexpr):
    """The tile of a block of floats of any size; 0 from `left` on. ONCE: nothing will read it again."""
    if WIDTH == 4:
        tile = read_at(block, left, four_places(0, BLOCK, 4), EVEN, ONCE)
    elif is_narrow(block):
        wide = read_at(block, left, wide_places(BLOCK), EVEN, ONCE)
        tile = tl.permute(wide.reshape(BLOCK // 8, 2, 4), (0, 2, 1))
    else:
        first = read_at(block, left, four_places(0, BLOCK, 8), EVEN, ONCE)
        tile = tl.join(first, read_at(block, left, four_places(1, BLOCK, 8), EVEN, ONCE))
    return tile


@triton.jit
def write(block, left, tile, BLOCK: tl.constexpr, WIDTH: tl.constexpr, EVEN: tl.constexpr):
    """Write a tile up to `left`, rounded to the tensor's dtype."""
    if WIDTH == 4:
        write_at(block, left, four_places(0, BLOCK, 4), tile, EVEN)
    elif is_narrow(block):
        write_at(block, left, wide_places(BLOCK), tl.permute(tile, (0, 2, 1)).reshape(BLOCK // 8, 8), EVEN)
    else:
        first, second = tl.split(tile)
        write_at(block, left, four_places(0, BLOCK, 8), first, EVEN)
        write_at(block, left, four_places(1, BLOCK, 8), second, EVEN)


@triton.jit
def normals_from(quad, seed, sample, draw, stream, BLOCK: tl.constexpr, WIDTH: tl.constexpr, FAST: tl.constexpr):
    """The tile of a sample's noise that begins with this quad; see `box_muller.normals`."""
    quads = quad.to(tl.uint32) + (tl.arange(0, BLOCK // WIDTH) * (WIDTH // 4)).to(tl.uint32)
    tile = normals(quads, seed, sample, draw, stream, FAST)
    if WIDTH == 8:
        tile = tl.join(tile, normals(quads + 1, seed, sample, draw, stream, FAST))
    return tile


@triton.jit
def draw_normals(seed, sample, draw, stream, BLOCK: tl.constexpr, WIDTH: tl.constexpr, FAST: tl.constexpr):
    """The tile of a program's block of a sample's noise; see `box_muller.normals`."""
    quad = tl.program_id(0).to(tl.uint32) * (BLOCK // 4)
    return normals_from(quad, seed, sample, draw, stream, BLOCK, WIDTH, FAST)


@triton.jit
def largest(tile, WIDTH: tl.constexpr):
    """The largest magnitude that each thread has in its part of a tile, [threads]; NaN if there is any."""
    tile = tl.abs(tile)
    if WIDTH == 8:
        first, second = tl.split(tile)
        tile = tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL)
    even, odd = tl.split(tile.reshape(tile.shape[0], 2, 2))
    first, second = tl.split(tl.maximum(even, odd, propagate_nan=tl.PropagateNan.ALL))
    return tl.maximum(first, second, propagate_nan=tl.PropagateNan.ALL)
