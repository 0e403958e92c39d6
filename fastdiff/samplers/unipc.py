"""UniPC (Zhao et al. 2023): a multistep predictor and a corrector that costs no evaluation."""

from __future__ import annotations

from collections.abc import Collection

from typing_extensions import Unpack

from fastdiff.errors import InputError, whole
from fastdiff.plan import Plan
from fastdiff.samplers.exponential import Mean, add_corrections, add_multistep, falling, rows_of, solver_mean
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Schedule


@sampler
def unipc(
    schedule: Schedule,
    steps: int | None = 20,
    order: int = 2,
    solver: str = "bh2",
    predicts: str = "x0",
    disable_corrector: Collection[int] = (),
    lower_order_final: bool | None = None,
    **options: Unpack[Options],
) -> Plan:
    """UniPC: a step of UniP-p, done again as UniC-p once the prediction at its end is known.

    Zhao et al. 2023, Algorithms 1 and 2, multistep. UniP-p goes through p predictions, UniC-p through these and
    the one at the step's end.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations; None takes as many as the schedule has levels.
        order: p, 1..3.
        solver: B(h) of the paper, "bh1" (h) or "bh2" (e^h - 1): it matters where there are two predictions.
        predicts: what the polynomials go through, "x0" or "eps".
        disable_corrector: steps, counted from 0, that are not corrected; `range(steps)` leaves UniP alone.
        lower_order_final: let the order fall to 1 over the last steps; None: where they land on clean data.
        options: what every sampler takes; see `Options`.

    Returns:
        A plan of one row a step, which corrects the state and goes on to predict the next.

    Raises:
        InputError: an argument is out of range, a name is unknown, or the first level has no signal for "eps".
    """
    rows, orders, again, mean = _begun(
        schedule, steps, order, solver, predicts, disable_corrector, lower_order_final, options
    )
    add_multistep(rows, orders, again, predicts, mean=mean)
    return rows.plan(stores=predicts)


def unic(
    schedule: Schedule,
    steps: int | None = 20,
    order: int = 2,
    solver: str = "bh2",
    predicts: str = "x0",
    disable_corrector: Collection[int] = (),
    lower_order_final: bool | None = None,
    **options: Unpack[Options],
) -> Plan:
    """UniC alone: rows that correct the states to which another method's steps lead, from one corrected to the next.

    The plan is not a sampler: between two of its rows the other method goes on from what the first has corrected.
    Arguments and errors are those of `unipc`.
    """
    rows, _, again, mean = _begun(
        schedule, steps, order, solver, predicts, disable_corrector, lower_order_final, options
    )
    add_corrections(rows, again, predicts, mean)
    return rows.plan(stores=predicts)


def _begun(
    schedule: Schedule,
    steps: int | None,
    order: int,
    solver: str,
    predicts: str,
    disable_corrector: Collection[int],
    lower_order_final: bool | None,
    options: Options,
) -> tuple[Rows, list[int], list[int], Mean]:
    """Return rows to fill, how many predictions each step goes through, how many when corrected, and E[theta]."""
    order, mean = whole("order", order, 1, 3), solver_mean(solver, "bh1", "bh2")
    if not isinstance(disable_corrector, Collection):
        raise InputError(f"disable_corrector must be a list of steps, got {disable_corrector!r}")
    rows = rows_of(schedule, steps, predicts, **options)
    orders = falling(rows, order, lower_order_final)
    return rows, orders, [0 if i in disable_corrector else p + 1 for i, p in enumerate(orders)], mean
