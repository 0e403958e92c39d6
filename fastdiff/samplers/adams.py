"""Multistep methods in eps (Adams-Bashforth): DEIS and PNDM, which differ in their weights and in how they begin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from fastdiff.errors import InputError, lookup
from fastdiff.plan import HISTORY_SLOTS, Plan
from fastdiff.samplers.levels import Level
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Array, Schedule

MAX_ORDER = HISTORY_SLOTS
_SCRATCH = HISTORY_SLOTS - 1
# Adams-Bashforth weights of the past eps for equal steps; the newest eps has the rest, so that they sum to 1.
_EQUAL_STEPS = ((), (-1 / 2,), (-16 / 12, 5 / 12), (-59 / 24, 37 / 24, -9 / 24))
_NODE, _WEIGHT = np.polynomial.legendre.leggauss(16)
_BASES: dict[str, Callable[[Schedule, Array], Array]] = {
    "t": lambda schedule, ratio: schedule.at_lambda(-np.log(ratio))[0],
    "rho": lambda schedule, ratio: ratio,
    "log_rho": lambda schedule, ratio: np.log(ratio),
}
_WARM_UPS = {"runge_kutta": "four evaluations a step", "heun": "two in the first step", "euler": "rising order"}


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
            order; "runge_kutta" keeps the order by four evaluations a step, and needs a first level with signal.
        lower_order_final: whether the order falls to 1 at the end. A last step onto clean data has order 1 always.
        options: what most samplers take; see `Options`.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    check_order(order)
    lookup("basis", basis, _BASES)
    lookup("warm_up", warm_up, dict.fromkeys(("euler", "runge_kutta")))
    rows = Rows(schedule, steps, **options)
    if warm_up == "runge_kutta" and order > 1:
        rows.need_signal("deis with warm_up='runge_kutta'")
    count = len(rows.steps())
    for i, (now, after) in enumerate(rows.steps()):
        if warm_up == "runge_kutta" and i < order - 1 and after.sigma:
            add_runge_kutta(rows, i, now, rows.between((now.ratio + after.ratio) / 2), after)
            continue
        usable = min(order, i + 1, count - i if lower_order_final else order) if after.sigma else 1
        nodes = [level for level in rows.levels[i + 1 - usable : i + 1] if level.alpha]
        weights = _integrals(schedule, basis, nodes[::-1], after) if len(nodes) > 1 else [0.0]
        add_adams(rows, i, order, now, after, weights[1:])
    return rows.plan(stores="eps")


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
            the first), or "euler" (`ipndm`: one). The first two need a first level with signal.
        options: what most samplers take; see `Options`.

    Raises:
        InputError: an argument is out of range or a name is unknown, or "runge_kutta" meets times that do not rise
            with the index.
    """
    check_order(order)
    lookup("warm_up", warm_up, _WARM_UPS)
    options.setdefault("spacing", "trailing")
    rows = Rows(schedule, steps, **options)
    if warm_up != "euler":
        rows.need_signal(f"pndm with warm_up={warm_up!r}")
    for i, (now, after) in enumerate(rows.steps()):
        if warm_up == "runge_kutta" and i < order - 1 and after.sigma:
            add_runge_kutta(rows, i, now, _halfway(rows, now, after), after)
        elif warm_up == "heun" and i == 0 and after.sigma:
            _add_heun(rows, order, now, after)
        else:
            step = after.ratio - now.ratio
            add_adams(rows, i, order, now, after, [step * weight for weight in _EQUAL_STEPS[min(i, order - 1)]])
    return rows.plan(stores="eps")


@sampler
def plms(schedule: Schedule, steps: int | None = 20, order: int = 4, **options: Unpack[Options]) -> Plan:
    """PLMS: `pndm` whose first step alone has two evaluations (Rombach et al. 2022's code; diffusers' skip_prk_steps).

    Arguments and errors are those of `pndm`.
    """
    return pndm(schedule, steps, order, warm_up="heun", **options)


@sampler
def ipndm(schedule: Schedule, steps: int | None = 20, order: int = 4, **options: Unpack[Options]) -> Plan:
    """iPNDM: `pndm` whose order rises from 1, one evaluation a step (Zhang & Chen 2022, appendix H.2).

    Arguments and errors are those of `pndm`.
    """
    return pndm(schedule, steps, order, warm_up="euler", **options)


def add_adams(rows: Rows, i: int, order: int, now: Level, after: Level, past: Sequence[float]) -> None:
    """Add step i, `x' / alpha' = x / alpha + sum_k w_k eps_{i-k}`, given the weights w_k of the past eps, k = 1, 2...

    The weight of its own eps is the rest of `ratio' - ratio`, so that the right eps of a single point is followed
    exactly. The last order - 1 eps are kept, in slots that take turns.
    """
    weights = [after.alpha * weight for weight in past]
    reads: dict[str, Any] = {f"ch{(i - 1 - k) % (order - 1)}": weight for k, weight in enumerate(weights)}
    slot = i % (order - 1) if order > 1 else -1
    rows.add(now, c0=after.alpha, ce=after.sigma - sum(weights), slot=slot, **reads)


def add_runge_kutta(rows: Rows, slot: int, now: Level, middle: Level, after: Level) -> None:
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


def _add_heun(rows: Rows, order: int, now: Level, after: Level) -> None:
    step = after.alpha * (after.ratio - now.ratio)
    slot = 0 if order > 1 else -1
    rows.add(now, c0=after.alpha, ce=after.sigma, dx=after.alpha / now.alpha, dy=0.0, de=step / 2, slot=slot)
    rows.add(after, cy=1.0, ce=step / 2)


def _halfway(rows: Rows, now: Level, after: Level) -> Level:
    alpha, sigma, _ = rows.schedule.at_time((now.time + after.time) / 2)
    return rows.between(float(sigma / alpha))


def _integrals(schedule: Schedule, basis: str, nodes: Sequence[Level], after: Level) -> list[float]:
    """Return the integral over sigma / alpha, from the first node to `after`, of each node's Lagrange polynomial."""
    place = _BASES[basis]
    ratio, weight = _quadrature(schedule, nodes[0].ratio, after.ratio)
    return lagrange_integrals(place(schedule, np.array([node.ratio for node in nodes])), place(schedule, ratio), weight)


def lagrange_integrals(at: npt.ArrayLike, x: Array, weight: Array) -> list[float]:
    """Return the integral of each node's Lagrange polynomial, by a quadrature with its own nodes x and weights."""
    nodes = np.asarray(at, dtype=np.float64)
    others = [np.delete(nodes, k) for k in range(len(nodes))]
    return [
        float(weight @ np.prod((x[:, None] - rest) / (node - rest), axis=1))
        for node, rest in zip(nodes, others, strict=True)
    ]


def _quadrature(schedule: Schedule, start: float, end: float) -> tuple[Array, Array]:
    """Return Gauss-Legendre nodes in sigma / alpha and weights, exact to rounding on each piece between two levels."""
    pieces = -schedule.lambda_[::-1]
    high, low = np.log(start), np.log(end)
    edges = np.concatenate([[high], pieces[(low < pieces) & (pieces < high)], [low]])
    half = np.diff(edges)[:, None] / 2
    ratio = np.exp(edges[:-1, None] + half * (1 + _NODE))
    return ratio.ravel(), (half * _WEIGHT * ratio).ravel()


def check_order(order: int) -> None:
    """Raise InputError if the history has no room for the eps of an order."""
    if order not in range(1, MAX_ORDER + 1):
        raise InputError(f"order must be a whole number in 1..{MAX_ORDER}, got {order}")
