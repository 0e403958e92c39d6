"""The arithmetic of the Triton kernels rounds as docs/step.md has it: 0 differing bits from `fastdiff.ops.exact`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.kernels import arithmetic
from fastdiff.ops import exact
from tests.ops.cpu import Random, differing
from tests.rounding import fma as rational_fma

SIZE = 4096
COEFFICIENTS = (0.3, -1.7, 0.25)
_COEFFICIENTS = tl.constexpr(COEFFICIENTS)
SPECIAL = [0.0, -0.0, 1.0, -1.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-39, 3e38, -3e38, 87.5, 88.5, -87.5, 1e-3]


@triton.jit
def fma_kernel(a, b, c, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, tl.fma(tl.load(a + place), tl.load(b + place), tl.load(c + place)))


@triton.jit
def sqrt_kernel(a, b, c, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, arithmetic.sqrt(tl.load(a + place)))


@triton.jit
def exp_kernel(a, b, c, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, arithmetic.exp(tl.load(a + place)))


@triton.jit
def clip_kernel(a, b, c, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, arithmetic.clip(tl.load(a + place), tl.load(b + place), tl.load(c + place)))


@triton.jit
def polynomial_kernel(a, b, c, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, arithmetic.polynomial(_COEFFICIENTS, tl.load(a + place)))


@triton.jit
def round_kernel(a, b, c, result, SIZE: tl.constexpr):
    place = tl.arange(0, SIZE)
    tl.store(result + place, tl.load(a + place).to(result.dtype.element_ty))


def run(kernel: Any, device: torch.device, *operands: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """What a kernel makes of up to three tensors of SIZE numbers."""
    operands = tuple(operand.to(device) for operand in operands)
    result = torch.empty(SIZE, dtype=dtype, device=device)
    with np.errstate(all="ignore"):
        kernel[(1,)](*operands, *operands[:1] * (3 - len(operands)), result, SIZE, enable_fp_fusion=False)
    return result.cpu()


def numbers(seed: int, scale: float = 1.0) -> Tensor:
    """Random numbers, the first of them special."""
    values = Random(seed).normal(SIZE) * scale
    values[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return values


def test_fma_is_rounded_once(device: torch.device) -> None:
    """An fma has the bits of the exact one, also where the product and the summand nearly cancel."""
    a, b = numbers(0), numbers(1)[torch.randperm(SIZE, generator=torch.Generator().manual_seed(0))]
    for c in (numbers(2), -(a * b), numbers(3, 2.0**-24)):
        assert differing(run(fma_kernel, device, a, b, c), exact.fma(a, b, c)) == 0


def test_fma_where_float64_rounds_twice(device: torch.device) -> None:
    """The sum is a little beside the middle between two float32 numbers, which float64 does not see."""
    a, b, c = (torch.full((SIZE,), value) for value in (1 + 2.0**-12, 1 + 2.0**-12, 2.0**-60))
    wanted = rational_fma(float(a[0]), float(b[0]), float(c[0]))
    assert (run(fma_kernel, device, a, b, c) == float(wanted)).all()
    assert float(wanted) != np.float32(float(a[0]) * float(b[0]))


def test_sqrt_is_correctly_rounded(device: torch.device) -> None:
    """Zeros keep their sign; the other numbers are those that Box-Muller takes roots of, and more."""
    x = Random(4).normal(SIZE).abs() * torch.logspace(-7, 7, SIZE) + 1e-7
    x[0], x[1] = 0.0, -0.0
    assert differing(run(sqrt_kernel, device, x), exact.sqrt(x)) == 0


@pytest.mark.parametrize("scale", [0.1, 1.0, 40.0])
def test_exp(device: torch.device, scale: float) -> None:
    """Every operation in the order of docs/step.md, beyond its range too."""
    x = numbers(5, scale)
    assert differing(run(exp_kernel, device, x), exact.exp(x)) == 0


def test_clip_keeps_nan(device: torch.device) -> None:
    """NaN stays NaN, and infinity is cut."""
    x, bound = numbers(6), numbers(7).abs().nan_to_num(1.0) + 0.5
    assert differing(run(clip_kernel, device, x, -bound, bound), exact.clip(x, -bound, bound)) == 0


def test_polynomial(device: torch.device) -> None:
    """Horner's rule, each step one fma."""
    x = numbers(8)
    assert differing(run(polynomial_kernel, device, x), exact.polynomial(COEFFICIENTS, x)) == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_to_nearest_even(device: torch.device, dtype: torch.dtype) -> None:
    """Ties go to the even number, carries go on into the exponent, and what is too large becomes infinity."""
    x = numbers(9)
    spacing = torch.finfo(dtype).eps
    ties = 1 + spacing * (torch.arange(600) + 0.5)
    x[100:700] = ties * torch.tensor([1.0, -1.0]).repeat(300)
    x[700:703] = torch.tensor([2 - spacing / 2, 65519.0, 65520.0])
    assert differing(run(round_kernel, device, x, dtype=dtype), x.to(dtype)) == 0
