"""The arithmetic of docs/step.md and docs/noise.md in plain torch: float32 to the last bit, with gradients.

torch has no fused multiply-add, its float32 square root may be 1 ulp off, and its exponential differs between machines.
These do not; they are slow on purpose. On float64 they are torch's own, and `fma` rounds twice.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

EXP = (
    5.0000000000000000e-1,
    1.6666665673255920e-1,
    4.1665796190500259e-2,
    8.3334520459175110e-3,
    1.3981999363750219e-3,
    1.9875691214110702e-4,
)
EXP_RANGE = (-87.0, 88.0)
LOG2_E = 1.4426950216293335
LOG_2 = (0.693359375, -2.1219444170128554e-4)  # a part whose products with small whole numbers are exact, and the rest
TO_WHOLE = 12582912.0  # 1.5 * 2^23: a float32 of this size has no room for a fraction


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """Return `a b + c`, broadcast; in float32 rounded once."""
    if a.dtype == torch.float64:
        return a * b + c
    total: Tensor = _Fma.apply(a, _like(a, b), _like(a, c))  # type: ignore[no-untyped-call]
    return total


def polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Return the polynomial by Horner's scheme; the constant coefficient comes first."""
    p = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        p = fma(p, x, coefficient)
    return p


def sqrt(x: Tensor) -> Tensor:
    """Return the correctly rounded square root: float64's rounds to the right float32."""
    return x.double().sqrt().to(x.dtype)


def clip(x: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Return x within [low, high]; NaN stays NaN."""
    x = torch.where(x < low, _like(x, low), x)
    return torch.where(x > high, _like(x, high), x)


def exp(x: Tensor) -> Tensor:
    """Return the exponential; in float32 by Cephes' polynomial, of x clipped to `EXP_RANGE`."""
    if x.dtype == torch.float64:
        return x.exp()
    x = clip(x, *EXP_RANGE)
    n = (fma(x, LOG2_E, TO_WHOLE) - TO_WHOLE).detach()
    r = fma(n, -LOG_2[1], fma(n, -LOG_2[0], x))
    p = fma(polynomial(EXP, r), r * r, r) + 1
    two_to_the_n = (n.nan_to_num().int() + 127 << 23).view(torch.float32)
    return p * two_to_the_n


def _like(x: Tensor, value: Tensor | float) -> Tensor:
    # A number becomes a tensor on the CPU, which mixes with any device and needs no copy to it.
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=x.dtype)


class _Fma(torch.autograd.Function):
    """Float32 fma by float64, where the product is exact.

    The sum is rounded there to odd, so that the rounding to float32 is the only one that counts (Boldo & Melquiond
    2008, "Emulation of a FMA and correctly rounded sums").
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.shapes = a.shape, b.shape, c.shape
        product, addend = a.double() * b.double(), c.double()
        total = product + addend
        recovered = total - product
        error = (product - (total - recovered)) + (addend - recovered)
        bits = total.view(torch.int64)
        odd = torch.where((error > 0) == (total > 0), bits + 1, bits - 1)
        inexact = error.abs() > 0  # false where an infinity or NaN made the error NaN
        return torch.where(inexact & (bits & 1 == 0), odd, bits).view(torch.float64).to(torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        a, b = ctx.saved_tensors
        factors = (b, a, torch.ones_like(grad))
        return tuple(
            (grad * factor).sum_to_size(shape) if needed else None
            for factor, shape, needed in zip(factors, ctx.shapes, ctx.needs_input_grad, strict=True)
        )
