"""LMS against exact integrals of polynomials, in coefficients."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import Polynomial

import fastdiff as fd
from fastdiff.samplers import ddim, lms
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, TOLERANCE, error, levels, slope, start, states

STEPS = 8


@EVERY_SYSTEM
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_is_the_integral_of_the_polynomial(schedule: Schedule, order: int) -> None:
    """x' = x + the integral of the polynomial through the last slopes, in coefficients, from s to s', also to 0."""
    plan = lms(schedule, STEPS, order, prediction="x0", clip=None)
    s, direction = levels(schedule, STEPS), slope(schedule)
    x, slopes, expected = start(plan), [], []
    for i in range(STEPS):
        slopes.append(direction(x, s[i]))
        through = range(max(i + 1 - order, 0), i + 1)
        for j in through:
            others = [s[k] for k in through if k != j]
            basis = (
                Polynomial.fromroots(others) / np.prod([s[j] - other for other in others])
                if others
                else Polynomial([1])
            )
            integral = basis.integ()
            x = x + (integral(s[i + 1]) - integral(s[i])) * slopes[j]
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


def test_order_1_is_ddim() -> None:
    """One slope is DDIM's."""
    schedule = fd.schedules.linear(1000)
    first = lms(schedule, 13, order=1, spacing="trailing")
    np.testing.assert_allclose(first.table, ddim(schedule, 13, spacing="trailing").table, rtol=1e-14)  # a last digit
