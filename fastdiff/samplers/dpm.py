"""DPM-Solver and DPM-Solver++ (Lu et al. 2022a, 2022b): multistep and singlestep, of the ODE and of the SDE."""

from __future__ import annotations

from typing_extensions import Unpack

from fastdiff.errors import InputError, lookup, number, whole
from fastdiff.plan import Plan
from fastdiff.samplers.exponential import (
    Integral,
    add_multistep,
    add_rows,
    exact_square,
    falling,
    half_square,
    rows_of,
    solver_mean,
)
from fastdiff.samplers.registry import named, variant
from fastdiff.samplers.rows import Options
from fastdiff.schedules import Schedule

SOLVERS = ("midpoint", "heun")
_THIRD = {"exact": True, "peers": False}


@named
def dpmpp(
    schedule: Schedule,
    steps: int | None = 20,
    order: int = 2,
    solver: str = "midpoint",
    predicts: str = "x0",
    eta: float = 0.0,
    lower_order_final: bool | None = None,
    euler_at_final: bool = False,
    third: str = "exact",
    **options: Unpack[Options],
) -> Plan:
    """Multistep DPM-Solver++ and DPM-Solver: a polynomial in lambda through the last `order` predictions.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations; None takes as many as the schedule has levels.
        order: 1 (DDIM), 2 or 3. The first steps have fewer predictions and a lower order.
        solver: of second-order steps: "midpoint" (Lu et al. 2022b, Algorithm 2) or "heun" (a line integrated exactly).
        predicts: what the polynomial goes through: "x0" is DPM-Solver++, "eps" DPM-Solver (Lu et al. 2022a).
        eta: amount of noise: 0 is the ODE, 1 the reverse SDE (SDE-DPM-Solver++ of the paper; 2M SDE and 3M SDE of
            k-diffusion). Only for "x0".
        lower_order_final: let the order fall to 1 over the last steps; None: where they land on clean data.
        euler_at_final: make the last step alone one of first order; onto clean data it is in any case.
        third: of order 3: "exact" has the whole third-order term and does the first step again once the prediction at
            its end is known, without which order 3 falls to 2; "peers" is the authors' code, diffusers and k-diffusion,
            with half of the term and neither a correction: of order 2.
        options: what every sampler takes; see `Options`.

    Returns:
        A plan of one row a step.

    Raises:
        InputError: an argument is out of range, a name is unknown, or the first level has no signal for "eps".
    """
    order, mean = whole("order", order, 1, 3), solver_mean(solver, *SOLVERS)
    if number("eta", eta, 0) and predicts == "eps":
        raise InputError(f"eta must be 0 where eps is predicted, got {eta}")
    rows = rows_of(schedule, steps, predicts, **options)
    orders = falling(rows, order, lower_order_final)
    if euler_at_final:
        orders[-1] = 1
    exact = lookup("third", third, _THIRD)
    again = [2 if exact and order == 3 and i == 0 else 0 for i in range(len(orders))]
    add_multistep(rows, orders, again, predicts, [eta] * len(orders), mean, exact_square if exact else half_square)
    return rows.plan(stores=predicts)


@named
def dpmpp_single(
    schedule: Schedule,
    steps: int | None = 20,
    order: int = 2,
    solver: str = "midpoint",
    predicts: str = "x0",
    third: str = "exact",
    **options: Unpack[Options],
) -> Plan:
    """Singlestep DPM-Solver++ and DPM-Solver: steps of `order` evaluations, whose stages are levels of the plan too.

    Lu et al. 2022b, Algorithm 1 (2S), and 2022a, Algorithms 1 and 2. With levels even in lambda
    (spacing="exponential") the stages lie where the papers have them, at 1/2 of a step, or 1/3 and 2/3. A step from
    pure noise or onto clean data is of first order, and the last one before that takes what evaluations are left.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations; None takes as many as the schedule has levels.
        order: 1 (DDIM), 2 or 3.
        solver: "midpoint" (the papers': a line through the first and the last prediction of a step) or "heun" (all of
            them, integrated exactly).
        predicts: "x0" is DPM-Solver++, "eps" DPM-Solver.
        third: of the second stage of order 3: "exact" integrates its line exactly, as the paper does; "peers" as the
            solver says, as diffusers does.
        options: what every sampler takes; see `Options`.

    Returns:
        A plan of one row a stage.

    Raises:
        InputError: an argument is out of range, a name is unknown, or the first level has no signal for "eps".
    """
    order, exact = whole("order", order, 1, 3), lookup("third", third, _THIRD)
    rows = rows_of(schedule, steps, predicts, **options)
    count, noisiest, cleanest = len(rows.steps()), rows.levels[0], rows.levels[-1]
    first, last = int(noisiest.alpha == 0), count - int(cleanest.sigma == 0)
    predictors = []
    for i in range(count):
        stage = (i - first) % order if first <= i < last else 0
        nodes = range(i - stage, i + 1, max(stage, 1) if solver == "midpoint" else 1)
        exactly = stage == 2 or (exact and stage == 1 and order == 3 and i + 1 < last)
        mean = solver_mean("heun" if exactly else solver, *SOLVERS)
        predictors.append(Integral(i - stage, i + 1, nodes, predicts, mean=mean))
    add_rows(rows, predictors)
    return rows.plan(stores=predicts)


dpmpp_2m = variant(dpmpp, "dpmpp_2m", "DPM-Solver++ 2M (Lu et al. 2022b, Algorithm 2): `dpmpp` of order 2.", order=2)
dpmpp_3m = variant(dpmpp, "dpmpp_3m", "DPM-Solver++ 3M (Lu et al. 2022b, appendix B): `dpmpp` of order 3.", order=3)
dpmpp_2m_sde = variant(
    *(dpmpp, "dpmpp_2m_sde", "SDE-DPM-Solver++ 2M (Lu et al. 2022b, section 4.3): `dpmpp` of order 2 with eta = 1."),
    {"eta": 1.0},
    order=2,
)
dpmpp_3m_sde = variant(
    *(dpmpp, "dpmpp_3m_sde", "3M SDE of k-diffusion: `dpmpp` of order 3 with eta = 1 and that code's third order."),
    {"eta": 1.0, "solver": "heun", "third": "peers"},
    order=3,
)
dpmpp_2s = variant(
    *(dpmpp_single, "dpmpp_2s", "DPM-Solver++ 2S (Lu et al. 2022b, Algorithm 1): `dpmpp_single` of order 2."),
    order=2,
)
dpmpp_3s = variant(
    *(dpmpp_single, "dpmpp_3s", "DPM-Solver-3 (Lu et al. 2022a, Algorithm 2) in x0: `dpmpp_single` of order 3."),
    order=3,
)
dpm_solver = variant(dpmpp, "dpm_solver", "DPM-Solver, multistep (Lu et al. 2022a): `dpmpp` in eps.", predicts="eps")
dpm_solver_single = variant(
    *(dpmpp_single, "dpm_solver_single", "DPM-Solver (Lu et al. 2022a, Algorithms 1 and 2): `dpmpp_single` in eps."),
    predicts="eps",
)
