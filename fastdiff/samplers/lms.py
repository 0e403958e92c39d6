"""LMS: linear multistep with exact integrals, for levels at any distance."""

from __future__ import annotations

import numpy as np
from typing_extensions import Unpack

from fastdiff.plan import Plan
from fastdiff.samplers.adams import add_adams, check_order, lagrange_integrals
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Schedule

# Two nodes of Gauss and Legendre are exact for the cubic polynomials of order 4.
_NODE, _WEIGHT = np.polynomial.legendre.leggauss(2)


@sampler
def lms(schedule: Schedule, steps: int | None = 20, order: int = 4, **options: Unpack[Options]) -> Plan:
    """Linear multistep: eps as a polynomial in sigma / alpha through the last evaluations (k-diffusion's LMS).

    `x' / alpha' = x / alpha + sum_k eps_{i-k} int L_k d(sigma / alpha)`, L_k the Lagrange polynomials: `deis` in the
    basis "rho" but for the last step, which keeps its order onto clean data. The order rises from 1 in the first steps.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        order: how many evaluations a polynomial goes through, 1..4; 1 is DDIM.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    check_order(order)
    rows = Rows(schedule, steps, **options)
    for i, (now, after) in enumerate(rows.steps()):
        through = [level.ratio for level in rows.levels[max(i + 1 - order, 0) : i + 1][::-1] if level.alpha]
        half = (after.ratio - now.ratio) / 2
        weights = lagrange_integrals(through, now.ratio + half * (1 + _NODE), half * _WEIGHT) if now.alpha else [0.0]
        add_adams(rows, i, order, now, after, weights[1:])
    return rows.plan(stores="eps")
