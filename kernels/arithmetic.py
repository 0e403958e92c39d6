"""The arithmetic of docs/step.md and docs/noise.md in Triton: float32, to the last bit.

Kernels are compiled without contraction (`launch.OPTIONS`): an fma stands where one is written.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.kernels.interpreter import INTERPRETED
from fastdiff.ops import exact

_LEAST = tl.constexpr(exact.EXP_RANGE[0])
_MOST = tl.constexpr(exact.EXP_RANGE[1])
_LOG2_E = tl.constexpr(exact.LOG2_E)
_MINUS_LOG_2_HIGH = tl.constexpr(-exact.LOG_2[0])
_MINUS_LOG_2_LOW = tl.constexpr(-exact.LOG_2[1])
_TO_WHOLE = tl.constexpr(exact.TO_WHOLE)
_EXP = tl.constexpr(exact.EXP)


if INTERPRETED:

    def on_nvidia() -> bool:
        """Whether the kernel is compiled for an NVIDIA GPU."""
        return False

else:

    @tl.core.builtin
    def on_nvidia(_semantic=None):
        """Whether the kernel is compiled for an NVIDIA GPU."""
        return tl.constexpr(_semantic.builder.options.backend_name == "cuda")


@triton.constexpr_function
def _degree(coefficients: tuple[float, ...]) -> int:
    return len(coefficients) - 1


@triton.constexpr_function
def _coefficient(coefficients: tuple[float, ...], k: int) -> float:
    return coefficients[k]


@triton.jit
def polynomial(coefficients: tl.constexpr, x):
    """`sum_k coefficients[k] x^k` by Horner's rule, each step one fma; the constant coefficient comes first."""
    degree: tl.constexpr = _degree(coefficients)
    p = tl.full(x.shape, _coefficient(coefficients, degree), tl.float32)
    for k in tl.static_range(degree):
        p = tl.fma(p, x, _coefficient(coefficients, degree - 1 - k))
    return p


@triton.jit
def sqrt(x):
    """The correctly rounded square root of 0, -0, or a number in 1e-7..1e30."""
    if on_nvidia():
        # The way of sqrt.rn without its call for tiny numbers. The summand, lost in any x but 0, keeps 0 * inf away.
        y = tl.rsqrt(x + 1e-30)
        root = x * y
        minus_root = root * -1.0  # which costs nothing; Triton's -root is the difference 0 - root, which does
        root = tl.fma(tl.fma(minus_root, root, x), 0.5 * y, root)
    else:
        root = tl.sqrt_rn(x)
    return root


@triton.jit
def clip(x, low, high):
    """x within [low, high], numbers other than -0; NaN stays NaN."""
    if on_nvidia():
        # One instruction each, which other GPUs would have to make of several.
        x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
        x = tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)
    else:
        x = tl.where(x < low, low, x)
        x = tl.where(x > high, high, x)
    return x


@triton.jit
def guided(out, uncond, w, w_uncond):
    """`uncond + w (out - uncond)`, exactly out where w is 1; or, with a weight for each, `w out + w_uncond uncond`."""
    if w_uncond is None:
        result = tl.where(w == 1.0, out, tl.fma(w, out - uncond, uncond))
    else:
        result = tl.fma(w, out, w_uncond * uncond)
    return result


@triton.jit
def inpainted(x, keep, mask):
    """x where the mask is 0, keep where it is 1, and in between what lies between."""
    return tl.where(mask == 1.0, keep, tl.fma(mask, keep - x, x))


@triton.jit
def exp(x):
    """The exponential of docs/step.md."""
    x = clip(x, _LEAST, _MOST)
    shifted = tl.fma(x, _LOG2_E, _TO_WHOLE)
    n = shifted - _TO_WHOLE
    r = tl.fma(n, _MINUS_LOG_2_LOW, tl.fma(n, _MINUS_LOG_2_HIGH, x))
    p = tl.fma(polynomial(_EXP, r), r * r, r) + 1.0
    # n stands in the low bits of `shifted`; those above it go out on the left.
    two_to_the_n = (shifted.to(tl.int32, bitcast=True) + 127) << 23
    return p * two_to_the_n.to(tl.float32, bitcast=True)
