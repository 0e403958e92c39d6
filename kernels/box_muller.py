"""Standard normals from the words of Philox in Triton: the exact ones of docs/noise.md, and the fast ones."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fastdiff.kernels.arithmetic import on_nvidia, polynomial, sqrt
from fastdiff.kernels.philox import philox
from fastdiff.ops import philox as specification

_LOG = tl.constexpr(specification.LOG)
_SIN = tl.constexpr(specification.SIN)
_COS = tl.constexpr(specification.COS)
_EXPONENT = tl.constexpr(0xFF800000 - (1 << 32))  # the bits of sign and exponent, as int32
_OFFSET = tl.constexpr(specification.SQRT_HALF_BITS + (31 << 23))
_31_EXPONENTS = tl.constexpr(31 << 23)
# The exponent is never shifted down: its bits, read as a whole number, are 2^23 times it, and a power of 2 is exact.
_MINUS_2_LOG_2_SCALED = tl.constexpr(specification.MINUS_2_LOG_2 * 2.0**-23)
_MINUS_2_LN_2 = tl.constexpr(-2.0 * math.log(2.0))
_RADIANS = tl.constexpr(math.pi * 2.0**-31)


@triton.jit
def exact_pair(a, b):
    """Two standard normals of two words, blocks of uint32, to the last bit of docs/noise.md."""
    u = ((a >> 1) | 1).to(tl.int32, bitcast=True).to(tl.float32)
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - _OFFSET) & _EXPONENT
    f = (bits - exponent - _31_EXPONENTS).to(tl.float32, bitcast=True) - 1.0
    radius = sqrt(tl.fma(exponent.to(tl.float32), _MINUS_2_LOG_2_SCALED, polynomial(_LOG, f) * f))

    t = b.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-31
    t2 = t * t
    sine = polynomial(_SIN, t2) * t
    cosine = polynomial(_COS, t2)
    cosine = (cosine.to(tl.uint32, bitcast=True) ^ ((b & 2) << 30)).to(tl.float32, bitcast=True)
    swap = (b & 1) != 0
    return radius * tl.where(swap, sine, cosine), radius * tl.where(swap, cosine, sine)


@triton.jit
def fast_pair(a, b):
    """Two standard normals of two words by the hardware's functions: statistically the same, of other bits."""
    u = tl.fma(a.to(tl.float32), 2.0**-32, 2.0**-33)
    angle = b.to(tl.int32, bitcast=True).to(tl.float32) * _RADIANS
    if on_nvidia():
        log2 = libdevice.fast_log2f(u)
        cosine, sine = libdevice.fast_cosf(angle), libdevice.fast_sinf(angle)
    else:
        log2 = tl.log2(u)
        cosine, sine = tl.cos(angle), tl.sin(angle)
    radius = tl.sqrt(tl.abs(log2 * _MINUS_2_LN_2))  # near u = 1 an approximate logarithm may have the wrong sign
    return radius * cosine, radius * sine


@triton.jit
def normals(quad, seed, sample, draw, stream, FAST: tl.constexpr):
    """Standard normals of quads of elements, float32 [quads, 4], each quad in one thread.

    Args:
        quad, seed, sample, draw, stream: as in `philox`; quad is [quads].
        FAST: whether by `fast_pair`.
    """
    a, b, c, d = philox(quad, seed, sample, draw, stream)
    if FAST:
        z0, z1 = fast_pair(a, b)
        z2, z3 = fast_pair(c, d)
    else:
        z0, z1 = exact_pair(a, b)
        z2, z3 = exact_pair(c, d)
    return tl.join(tl.join(z0, z2), tl.join(z1, z3)).reshape(quad.shape[0], 4)
