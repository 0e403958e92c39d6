"""Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011) in Triton, as docs/noise.md keys and counts it."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.ops import philox as specification

_M0 = tl.constexpr(specification.MULTIPLIERS[0])
_M1 = tl.constexpr(specification.MULTIPLIERS[1])
_W0 = tl.constexpr(specification.WEYL[0])
_W1 = tl.constexpr(specification.WEYL[1])
_ROUNDS = tl.constexpr(specification.ROUNDS)


@triton.jit
def philox(quad, seed, sample, draw, stream):
    """The four words of each quad.

    Args:
        quad: element // 4, a block of uint32.
        seed, sample, draw: scalars int64, as the ops take them; of draw the low 32 bits count.
        stream: scalar, 0..255.

    Returns:
        Four blocks of uint32 of the shape of quad.
    """
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    zero = quad * 0
    c0 = quad
    c1 = zero + draw.to(tl.uint32)
    c2 = zero + sample.to(tl.uint32)
    c3 = zero + ((sample >> 32).to(tl.uint32) & 0xFFFFFF | tl.cast(stream, tl.uint32) << 24)
    for _ in tl.static_range(_ROUNDS):
        # One product of 64 bits gives both halves in one instruction.
        product0 = c0.to(tl.uint64) * _M0
        product1 = c2.to(tl.uint64) * _M1
        c0 = (product1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (product0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = product1.to(tl.uint32)
        c3 = product0.to(tl.uint32)
        k0 += _W0
        k1 += _W1
    return c0, c1, c2, c3
