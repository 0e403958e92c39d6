"""LMS against exact integrals of polynomials, and in its special cases."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.polynomial import Polynomial

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.samplers import ddim, deis, lms
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


def test_special_cases() -> None:
    """Order 1 is DDIM, and rhoAB-DEIS is LMS but for a last step onto clean data."""
    schedule = fd.schedules.linear(1000)
    first = lms(schedule, 13, order=1, spacing="trailing")
    np.testing.assert_allclose(first.table, ddim(schedule, 13, spacing="trailing").table, rtol=1e-14)  # a last digit
    for final, same in (("sigma_min", 13), ("zero", 12)):
        plan, other = (
            lms(schedule, 13, 3, spacing="trailing", final=final),
            deis(schedule, 13, 3, basis="rho", spacing="trailing", final=final),
        )
        assert plan.columns == other.columns
        np.testing.assert_allclose(plan.table[:same], other.table[:same], rtol=0, atol=TOLERANCE)
    assert not np.allclose(plan.table[-1], other.table[-1])


@pytest.mark.parametrize("order", [0, 5, 2.5])
def test_bad_order(order: int) -> None:
    """The history has room for three past eps."""
    with pytest.raises(InputError, match=f"order must be a whole number in 1..4, got {order}"):
        lms(fd.schedules.linear(1000), 4, order)
