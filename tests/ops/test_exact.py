"""Exact float32 arithmetic in torch against rationals, and its gradients."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import exact
from tests import rounding

SPECIAL = [0.0, -0.0, math.inf, -math.inf, math.nan, 1.0, -1.0, 2.0**-149, -(2.0**-149), 2.0**-126, 3.4028235e38, 0.1]
floats = st.floats(width=32)


def bits(value: float | Tensor) -> int:
    return int(np.float32(value).view(np.uint32))


def assert_same(got: Tensor, expected: np.float32) -> None:
    # The bits of a NaN say which operand it came from and are nobody's promise.
    assert bits(got.item()) == bits(expected) or (got.isnan() and np.isnan(expected))


def torch_fma(a: float, b: float, c: float) -> Tensor:
    return exact.fma(*(torch.tensor(value, dtype=torch.float32) for value in (a, b, c)))


@settings(deadline=None, max_examples=300)
@given(a=floats, b=floats, c=floats)
@example(a=1 + 2.0**-12, b=1 + 2.0**-12, c=2.0**-60)  # nearest would round twice here
@example(a=3.4028235e38, b=1.0, c=2.0**103)  # halfway to 2^128: infinity
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    """0 differing bits for any operands, below and beyond the normal numbers too."""
    assert_same(torch_fma(a, b, c), rounding.fma(a, b, c))


@settings(deadline=None, max_examples=200)
@given(a=floats, b=floats, nudge=st.integers(-3, 3))
def test_fma_of_what_cancels(a: float, b: float, nudge: int) -> None:
    """The same where the sum cancels to a few last digits."""
    c = -np.float32(a) * np.float32(b) if abs(a * b) < 3e38 else np.float32(1.0)
    c = float((c.view(np.int32) + nudge).view(np.float32)) if np.isfinite(c) and abs(c) > 1e-30 else float(c)
    assert_same(torch_fma(a, b, c), rounding.fma(a, b, c))


@pytest.mark.parametrize("a", SPECIAL)
def test_fma_of_special_values(a: float) -> None:
    """Infinities, NaN and the sign of a zero come out as hardware gives them."""
    for b, c in itertools.product(SPECIAL, SPECIAL):
        assert_same(torch_fma(a, b, c), rounding.fma(a, b, c))


def slow_exp(x: float) -> np.float32:
    """The polynomial of docs/step.md, one number at a time."""
    x = np.float32(min(max(x, -87.0), 88.0))
    t = rounding.fma(x, 1.4426950216293335, 12582912)
    n = t - np.float32(12582912)
    r = rounding.fma(n, 2.1219444170128554e-4, rounding.fma(n, -0.693359375, x))
    coefficients = [1.9875691214110702e-4, 1.3981999363750219e-3, 8.3334520459175110e-3, 4.1665796190500259e-2]
    p = np.float32(coefficients[0])
    for coefficient in [*coefficients[1:], 1.6666665673255920e-1, 0.5]:
        p = rounding.fma(p, r, coefficient)
    p = rounding.fma(p, r * r, r) + np.float32(1)
    return (p.view(np.int32) + (int(n) << 23)).astype(np.int32).view(np.float32)


@settings(deadline=None, max_examples=200)
@given(x=st.floats(-100, 100, width=32))
@example(x=math.inf)
@example(x=-math.inf)
def test_exp_is_the_published_polynomial(x: float) -> None:
    """0 differing bits, and within the 1.5 ulp that docs/step.md states where x is not clipped."""
    got = exact.exp(torch.tensor(x))
    assert_same(got, slow_exp(x))
    if abs(x) <= 87:
        ulp = float(np.spacing(np.float32(got.item())))
        assert abs(float(got) - math.exp(x)) <= 1.5 * ulp


def test_exp_of_nan_is_nan() -> None:
    """A NaN is not clipped away."""
    assert exact.exp(torch.tensor(math.nan)).isnan()


def test_clip_keeps_nan() -> None:
    """Values are bounded, infinities too; NaN stays."""
    x = torch.tensor([-math.inf, -2.0, 0.5, 2.0, math.inf, math.nan])
    np.testing.assert_array_equal(exact.clip(x, -1.0, 1.0), [-1.0, -1.0, 0.5, 1.0, 1.0, math.nan])


def test_gradients() -> None:
    """Float32 gradients, broadcast operands included, are those of the same functions in float64."""
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator) for shape in ((3, 1), (3, 4), (4,))]

    def gradients(dtype: torch.dtype) -> tuple[Tensor, ...]:
        a, b, c = (value.to(dtype).requires_grad_() for value in operands)
        value = exact.exp(exact.fma(a, b, c)) + exact.clip(a * b, -0.5, 0.5)
        return torch.autograd.grad(value.square().sum(), (a, b, c))

    for narrow, wide in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        # A dozen roundings of 6e-8 and a sum over at most 4 terms.
        torch.testing.assert_close(narrow.double(), wide, rtol=5e-6, atol=5e-6)


def test_float64_is_plain_arithmetic() -> None:
    """In float64 fma is `a b + c` and exp is torch's."""
    a, b, c = torch.randn(3, 8, dtype=torch.float64)
    assert torch.equal(exact.fma(a, b, c), a * b + c)
    assert torch.equal(exact.exp(a), a.exp())
