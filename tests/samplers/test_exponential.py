"""The integrals that DPM-Solver, UniPC and SA-Solver share, against exact and numerical ones."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.samplers.exponential import Integral, moment, phi
from fastdiff.samplers.levels import CLEAN, Level
from fastdiff.schedules import Array

untimed = settings(deadline=None, max_examples=50)
# A step of up to 3 in lambda, and predictions up to as far behind it.
GAPS = st.lists(st.floats(0.05, 3.0), min_size=4, max_size=4)
SYSTEMS, ETAS = st.sampled_from(["vp", "ve", "flow"]), st.floats(0, 2)


def levels_at(lambdas: Array, system: str) -> list[Level]:
    """The levels with these values of log(alpha / sigma)."""
    return [Level(float(a), float(s)) for a, s in zip(*fd.schedules.from_lambda(lambdas, system), strict=True)]


@untimed
@given(k=st.integers(0, 5), z=st.integers(-(20 << 8), 20 << 8).map(lambda n: n / 256))
def test_phi(k: int, z: float) -> None:
    """The series that defines it, with no rounding; 120 terms leave less than 1e-40 of it."""
    exact = sum(Fraction(z) ** n / math.factorial(n + k) for n in range(120))
    # Where it is used, |z| >= 1, each of up to 5 steps of the recursion adds a rounding or so, relative to 1 / k!.
    assert phi(k, z) == pytest.approx(float(exact), rel=1e-12, abs=1e-15)


@untimed
@given(j=st.integers(0, 3), rate=st.floats(-20, 20))
def test_moment(j: int, rate: float) -> None:
    """E[theta^j] under e^(rate theta), by a Gauss-Legendre rule that is exact to rounding for these rates."""
    points, weights = np.polynomial.legendre.leggauss(64)
    theta = (points + 1) / 2
    density = weights * np.exp(rate * theta)
    assert moment(j, rate) == pytest.approx(float((density * theta**j).sum() / density.sum()), rel=1e-11)


@untimed
@given(gaps=GAPS, top=st.floats(-4, 2), count=st.integers(1, 4), ahead=st.booleans(), system=SYSTEMS, eta=ETAS)
@pytest.mark.parametrize("predicts", ["x0", "eps"])
def test_step_is_exact_for_polynomials(
    predicts: str, gaps: list[float], top: float, count: int, ahead: bool, system: str, eta: float
) -> None:
    """n predictions, also with that at the end of the step, give the exact state if p is of degree n - 1 in lambda.

    The state is that of the linear equation, integrated numerically in lambda: with y = x / sigma,
    dy/dlambda = -eta y + (1 + eta) e^lambda x0; with y = x / alpha, dy/dlambda = -e^-lambda eps.
    """
    eta = eta if predicts == "x0" else 0.0
    lambdas = top + np.cumsum([0.0, *gaps])
    levels = levels_at(lambdas, system)
    start, end = 3, 4
    step = Integral(start, end, range(start + ahead, start + ahead - count, -1), predicts, eta)
    coefficients = np.array([0.7, -1.1, 0.4, 0.3])[:count]

    def p(at: Array) -> Array:
        return np.polynomial.polynomial.polyval(at - lambdas[start], coefficients)

    points, weights = np.polynomial.legendre.leggauss(64)
    h = gaps[-1]
    at, weights = lambdas[start] + h * (points + 1) / 2, weights * h / 2
    now, after = levels[start], levels[end]
    if predicts == "x0":
        slope = (1 + eta) * np.exp(at - eta * (lambdas[end] - at)) * p(at)
        expected = after.sigma * (math.exp(-eta * h) / now.sigma * 0.9 + weights @ slope)
    else:
        expected = after.alpha * (0.9 / now.alpha - weights @ (np.exp(-at) * p(at)))
    found = step.carry(now, after) * 0.9 + step.weights(levels) @ p(lambdas)
    # Polynomials through points as close as 0.05 of a step of 3 have weights of up to 1e5.
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)


@untimed
@given(gaps=GAPS, top=st.floats(-4, 2), system=SYSTEMS, eta=ETAS, solver=st.sampled_from(["midpoint", "bh1"]))
def test_weights_of_points(gaps: list[float], top: float, system: str, eta: float, solver: str) -> None:
    """Whatever stands for the mean, equal predictions give what one prediction gives: alpha x0 stays alpha x0."""
    levels = levels_at(top + np.cumsum([0.0, *gaps]), system)
    for nodes in (range(3, 1, -1), range(3, -1, -1)):
        mean = fd.samplers.exponential.solver_mean(solver, solver)
        step = Integral(3, 4, nodes, eta=eta, mean=mean, square=fd.samplers.exponential.half_square)
        now, after = levels[3], levels[4]
        assert step.weights(levels).sum() + step.carry(now, after) * now.alpha == pytest.approx(after.alpha, rel=1e-9)
        variance = (step.carry(now, after) * now.sigma) ** 2 + step.noise(now, after) ** 2
        # Equal for the SDE; the ODE carries the noise that there is.
        assert variance == pytest.approx(after.sigma**2, rel=1e-9)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_infinite_steps_take_the_prediction_at_hand(eta: float) -> None:
    """From pure noise, and onto clean data, where lambda is infinite."""
    levels = [Level(0.0, 1.0), *levels_at(np.array([-1.0, 1.0]), "vp"), CLEAN]
    assert Integral(2, 3, range(2, -1, -1), eta=eta).weights(levels).tolist() == [0.0, 0.0, 1.0, 0.0]
    first = Integral(0, 1, [1, 0], eta=eta).weights(levels)
    assert first.tolist() == [levels[1].alpha, 0.0, 0.0, 0.0]
    # Pure noise says nothing of how x0 changes with lambda.
    with_noise, without = (Integral(1, 2, nodes, eta=eta).weights(levels) for nodes in ([1, 0], [1]))
    np.testing.assert_array_equal(with_noise, without)
