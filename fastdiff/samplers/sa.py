"""SA-Solver (Xue et al. 2023): stochastic Adams, a multistep predictor and corrector for any amount of noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from typing_extensions import Unpack

from fastdiff.errors import number, whole
from fastdiff.plan import Plan
from fastdiff.samplers.exponential import add_multistep, falling, rows_of, solver_mean
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Schedule


@sampler
def sa_solver(
    schedule: Schedule,
    steps: int | None = 20,
    predictor_order: int = 2,
    corrector_order: int = 2,
    tau: float | Callable[[float], float] = 1.0,
    tau_min: float = 0.05,
    tau_max: float = 50.0,
    solver: str = "bh1",
    lower_order_final: bool | None = None,
    **options: Unpack[Options],
) -> Plan:
    """SA-Solver with data prediction: SA-Predictor, then SA-Corrector with the same noise (Xue et al. 2023, Alg. 1).

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations; None takes as many as the schedule has levels.
        predictor_order: how many predictions the predictor goes through, 1..3.
        corrector_order: how many the corrector goes through, that at the step's end among them, 0..4; 0 for none.
        tau: amount of noise of a step, >= 0, 0 for the ODE and 1 for the reverse SDE: a number, for steps that begin
            within tau_min..tau_max (others draw no noise), or a function of sigma / alpha.
        tau_min, tau_max: range of a tau that is a number.
        solver: how a line through two predictions is integrated: "bh1" as the authors' code does, or "heun", exactly.
        lower_order_final: let the orders fall over the last steps; None: where they land on clean data.
        options: what every sampler takes; see `Options`.

    Returns:
        A plan of one row a step, which corrects the state and goes on to predict the next.

    Raises:
        InputError: an argument is out of range, or a name is unknown.
    """
    predictor_order = whole("predictor_order", predictor_order, 1, 3)
    rows = rows_of(schedule, steps, "x0", **options)
    ratios = [level.ratio for level in rows.levels[:-1]]
    taus = [tau(ratio) if callable(tau) else tau if tau_min <= ratio <= tau_max else 0.0 for ratio in ratios]
    add_stochastic_adams(rows, predictor_order, corrector_order, taus, lower_order_final, solver=solver)
    return rows.plan()


def add_stochastic_adams(
    rows: Rows,
    predictor_order: int,
    corrector_order: int,
    taus: Sequence[float],
    lower_order_final: bool | None = None,
    predicts: str = "x0",
    solver: str = "bh1",
) -> None:
    """Add the rows of SA-Solver: SA-Predictors, corrected by SA-Correctors with the same noise.

    Args:
        rows: where to.
        predictor_order, corrector_order, lower_order_final, solver: as `sa_solver` has them, but predictors go up to
            order 4.
        taus: amount of noise of each step, >= 0.
        predicts: what the polynomials go through, "x0" or "eps".

    Raises:
        InputError: an order or a tau is out of range, or a name is unknown.
    """
    predictor_order = whole("predictor_order", predictor_order, 1, 4)
    corrector_order = whole("corrector_order", corrector_order, 0, 4)
    mean = solver_mean(solver, "bh1", "heun")
    orders = falling(rows, predictor_order, lower_order_final)
    again = falling(rows, corrector_order, lower_order_final, least=2)
    add_multistep(rows, orders, again, predicts, [number("tau", value, 0) ** 2 for value in taus], mean)
