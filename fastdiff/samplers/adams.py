"""Multistep methods in eps (Adams-Bashforth): DEIS, LMS and PNDM, which differ in weights and in how they begin."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise, takewhile
from typing import Any

import numpy as np
from typing_extensions import Unpack

from fastdiff.errors import InputError, lookup, whole
from fastdiff.plan import HISTORY_SLOTS, Plan
from fastdiff.samplers.levels import Level
from fastdiff.samplers.registry import sampler, variant
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Array, Schedule

MAX_ORDER = HISTORY_SLOTS
_SCRATCH = HISTORY_SLOTS - 1
# Adams-Bashforth weights of the past eps for equal steps; the newest eps has the rest, so that they sum to 1.
EQUAL_STEPS = ((), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24))
_NODE, _WEIGHT = np.polynomial.legendre.leggauss(16)
_BASES: dict[str, Callable[[Schedule, Array], Array]] = {
    "t": lambda schedule, ratio: schedule.at_lambda(-np.log(ratio))[0],
    "rho": lambda schedule, ratio: ratio,
    "log_rho": lambda schedule, ratio: np.log(ratio),
}
# Means of slopes over a step multiply what x0 changes in it by about this ratio of its levels: past 100, as from a
# level with next to no signal, they would be worse than the first slope alone.
_STEEP = 100.0


@sampler
def deis(
    schedule: Schedule,
    steps: int | None = 20,
    order: int = 3,
    basis: str = "log_rho",
    warm_up: str = "euler",
    lower_order_final: bool = False,
    **options: Unpack[Options],
) -> Plan:
    """DEIS: eps as a polynomial through the last evaluations, integrated exactly (Zhang & Chen 2022, eq. 15).

    `x' / alpha' = x / alpha + sum_k eps_{i-k} int L_k d(sigma / alpha)`, L_k the Lagrange polynomials in the basis.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        order: how many evaluations a polynomial goes through, 1..4; 1 is DDIM.
        basis: what it is a polynomial of: "t" (tAB-DEIS), "rho" (rhoAB-DEIS, rho = sigma / alpha) or "log_rho" (the
            authors' code and diffusers).
        warm_up: the first order - 1 steps: "euler" lets the order rise from 1, which limits the error to second
            order; "runge_kutta" keeps the order by four evaluations a step, but for steps over which sigma / alpha
            falls more than a hundredfold, as from pure noise.
        lower_order_final: whether the order falls to 1 at the end. A last step onto clean data, where log rho is
            infinite, has order 1 always, except in the basis "rho".
        options: what most samplers take; see `Options`.

    Raises:
        InputError: an argument is out of range or a name is unknown, or levels for the basis "t" share a time.
    """
    order = whole("order", order, 1, MAX_ORDER)
    lookup("basis", basis, _BASES)
    warming = lookup("warm_up", warm_up, {"euler": 0, "runge_kutta": order - 1})
    rows = Rows(schedule, steps, **options)
    count = len(rows.steps())
    if basis == "t" and len({now.time for now, _ in rows.steps()}) < count:
        raise InputError(
            "basis='t' needs levels at distinct times: keep sigmas within the schedule's, or use 'log_rho'"
        )
    for i, (now, after) in enumerate(rows.steps()):
        if warming and not _steep(now, after):
            _add_runge_kutta(rows, _slot(i, order), now, rows.between((now.ratio + after.ratio) / 2), after)
            warming -= 1
            continue
        usable = min(order, i + 1, count - i if lower_order_final else order) if after.sigma or basis == "rho" else 1
        nodes = _distinct(rows.levels[i + 1 - usable : i + 1][::-1])
        weights = integrals(schedule, basis, nodes, after) if len(nodes) > 1 else [0.0]
        add_adams(rows, i, order, now, after, weights[1:])
    return rows.plan(stores="eps")


@sampler
def lms(schedule: Schedule, steps: int | None = 20, order: int = 4, **options: Unpack[Options]) -> Plan:
    """Linear multistep (k-diffusion's LMS): `deis` in the basis "rho", of an order that rises from 1.

    Arguments and errors are those of `deis`.
    """
    return deis(schedule, steps, order, basis="rho", **options)


@sampler
def pndm(
    schedule: Schedule,
    steps: int | None = 20,
    order: int = 4,
    warm_up: str = "runge_kutta",
    **options: Unpack[Options],
) -> Plan:
    """PNDM: DDIM along a combination of the last eps, with weights for equal steps (Liu et al. 2022, eqs. 9-13).

    The error is of second order: the weights, unlike those of `deis`, know nothing of the levels. They are made for
    equal steps in time, so that spacing is "trailing" unless it is given.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        order: how many eps are combined, 1..4.
        warm_up: the first order - 1 steps: "runge_kutta" (F-PNDM: four evaluations a step), "heun" (`plms`: two in
            the first), or "euler" (`ipndm`: one). Steps over which sigma / alpha falls more than a hundredfold, as from
            pure noise, have one in any case, and the first two begin after them.
        options: what most samplers take; see `Options`.

    Raises:
        InputError: an argument is out of range or a name is unknown, or "runge_kutta" meets times that do not rise
            with the index.
    """
    order = whole("order", order, 1, MAX_ORDER)
    warming = lookup("warm_up", warm_up, {"runge_kutta": order - 1, "heun": 1, "euler": 0})
    options.setdefault("spacing", "trailing")
    rows = Rows(schedule, steps, **options)
    for i, (now, after) in enumerate(rows.steps()):
        if warming and not _steep(now, after):
            if warm_up == "heun":
                _add_heun(rows, _slot(i, order), now, after)
            else:
                _add_runge_kutta(rows, _slot(i, order), now, _halfway(rows, now, after), after)
            warming -= 1
        else:
            add_adams_for_equal_steps(rows, i, order, now, after)
    return rows.plan(stores="eps")


plms = variant(
    *(pndm, "plms", "PLMS: `pndm` with one step of Heun (Rombach et al. 2022's code; diffusers' skip_prk_steps)."),
    warm_up="heun",
)
ipndm = variant(
    pndm, "ipndm", "iPNDM: `pndm` whose order rises from 1 (Zhang & Chen 2022, appendix H.2).", warm_up="euler"
)


def add_adams(
    rows: Rows, i: int, order: int, now: Level, after: Level, past: Sequence[float], own: float | None = None
) -> None:
    """Add step i, `x' / alpha' = x / alpha + sum_k w_k eps_{i-k}`, given the weights w_k of the past eps, k = 1, 2...

    The weight of its own eps is `own`; None is the rest of `ratio' - ratio`, so that the right eps of a single point is
    followed exactly. The last order - 1 eps are kept, in slots that take turns.
    """
    weights = [after.alpha * weight for weight in past]
    reads: dict[str, Any] = {f"ch{_slot(i - 1 - k, order)}": weight for k, weight in enumerate(weights)}
    newest = after.sigma - sum(weights) if own is None else after.alpha * (now.ratio + own)
    rows.add(now, c0=after.alpha, ce=newest, slot=_slot(i, order), **reads)


def add_adams_for_equal_steps(rows: Rows, i: int, order: int, now: Level, after: Level) -> None:
    """Add step i with Adams-Bashforth's weights for equal steps, of an order that rises from 1 (Liu et al. 2022)."""
    step = after.ratio - now.ratio
    add_adams(rows, i, order, now, after, [step * weight for weight in EQUAL_STEPS[min(i, order - 1)]])


def _distinct(levels: Sequence[Level]) -> list[Level]:
    """Return levels, given newest first, up to one that is visited twice or is pure noise: no polynomial goes there."""
    rising = takewhile(lambda pair: pair[0].ratio < pair[1].ratio < math.inf, pairwise(levels))
    return [*levels[:1], *(level for _, level in rising)]


def _slot(i: int, order: int) -> int:
    """Return where the eps of step i is kept."""
    return i % (order - 1) if order > 1 else -1


def _steep(now: Level, after: Level) -> bool:
    return now.ratio > _STEEP * after.ratio


def _add_runge_kutta(rows: Rows, slot: int, now: Level, middle: Level, after: Level) -> None:
    """Add the four rows of a Runge-Kutta step in sigma / alpha; the eps of its beginning stays in the slot.

    The anchor gathers the result, of which the stages take back what they are not to see.
    """
    step = after.alpha * (after.ratio - now.ratio)
    half, part = middle.alpha * (middle.ratio - now.ratio), middle.alpha / after.alpha
    rows.add(now, cx=middle.alpha / now.alpha, ce=half, dx=after.alpha / now.alpha, dy=0.0, de=step / 6, slot=slot)
    rows.add(middle, cy=part, ce=half, de=step / 3, slot=_SCRATCH, **_read(slot, -part * step / 6))
    rows.add(middle, cy=1.0, ce=step, de=step / 3, **_read(slot, -step / 6), **_read(_SCRATCH, -step / 3))
    rows.add(after, cy=1.0, ce=step / 6)


def _read(slot: int, weight: float) -> dict[str, Any]:
    return {f"ch{slot}": weight}


def _add_heun(rows: Rows, slot: int, now: Level, after: Level) -> None:
    step = after.alpha * (after.ratio - now.ratio)
    rows.add(now, c0=after.alpha, ce=after.sigma, dx=after.alpha / now.alpha, dy=0.0, de=step / 2, slot=slot)
    rows.add(after, cy=1.0, ce=step / 2)


def _halfway(rows: Rows, now: Level, after: Level) -> Level:
    alpha, sigma, _ = rows.schedule.at_time((now.time + after.time) / 2)
    return rows.between(float(sigma / alpha))


def integrals(schedule: Schedule, basis: str, nodes: Sequence[Level], after: Level) -> list[float]:
    """Return the integral over sigma / alpha, from the first node to `after`, of each node's Lagrange polynomial.

    The polynomials are of `basis`, one of those of `deis`.
    """
    place = _BASES[basis]
    ratio, weight = _quadrature(schedule, basis, nodes[0].ratio, after.ratio)
    at, x = place(schedule, np.array([node.ratio for node in nodes])), place(schedule, ratio)
    others = [np.delete(at, k) for k in range(len(at))]
    return [
        float(weight @ np.prod((x[:, None] - rest) / (node - rest), axis=1))
        for node, rest in zip(at, others, strict=True)
    ]


def _quadrature(schedule: Schedule, basis: str, start: float, end: float) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes in sigma / alpha and weights, exact to rounding on each piece between two levels."""
    if basis == "rho":  # whole polynomials, and the end may be 0
        return start + (end - start) / 2 * (1 + _NODE), (end - start) / 2 * _WEIGHT
    pieces = -schedule.lambda_[::-1]
    high, low = np.log(start), np.log(end)
    edges = np.concatenate([[high], pieces[(low < pieces) & (pieces < high)], [low]])
    half = np.diff(edges)[:, None] / 2
    ratio = np.exp(edges[:-1, None] + half * (1 + _NODE))
    return ratio.ravel(), (half * _WEIGHT * ratio).ravel()
