"""Float32 arithmetic in exact rationals: the second opinion of the tests that compare bits."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

F = np.float32


@np.errstate(over="ignore")
def fma(a: float, b: float, c: float) -> np.float32:
    """`a b + c` rounded once: to the nearest float32, ties to the even one."""
    a, b, c = (float(F(value)) for value in (a, b, c))
    # In float64 the product is exact: so are special values, and zeros with their sign.
    wide = a * b + c
    if not math.isfinite(wide) or Fraction(a) * Fraction(b) + Fraction(c) == 0:
        return F(wide)
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    guess = F(wide)
    around = [np.nextafter(guess, F(-np.inf)), guess, np.nextafter(guess, F(np.inf))]
    return min(around, key=lambda x: (abs(_value(x) - exact), int(x.view(np.uint32)) & 1))


def total(*terms: tuple[float, float]) -> np.float32:
    """A sum of coefficient times value as docs/step.md rounds it: a product, then one fma for each other term."""
    (coefficient, value), *others = terms
    s = F(coefficient) * F(value)
    for coefficient, value in others:
        s = fma(coefficient, value, s)
    return s


def _value(x: np.float32) -> Fraction:
    # To the rounding, infinity is the number after the largest.
    return Fraction(math.copysign(2.0**128, x)) if np.isinf(x) else Fraction(float(x))
