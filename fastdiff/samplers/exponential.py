"""Exponential integrators: what DPM-Solver, UniPC and SA-Solver have in common.

From a level s to a level t, h apart in `lambda = log(alpha / sigma)`, all but the network is solved exactly
(Lu et al. 2022b, prop. 4.1; with eta = tau^2 Xue et al. 2023):

    x_t = carry x_s + total E[p(theta)] + noise z,   theta = (lambda - lambda_s) / h in 0..1

    p    carry                       total                                density of theta
    x0   sigma_t/sigma_s e^(-eta h)  alpha_t - alpha_s carry              ~ e^((1 + eta) h theta)
    eps  alpha_t/alpha_s             (1 + eta) (sigma_t - sigma_s carry)  ~ e^(-h theta)

The noise is sigma_t sqrt(1 - e^(-2 eta h)) for x0, and sigma_t sqrt(eta (e^(2 h) - 1)) for eps.

A method says what stands in for p, the prediction as a function of theta: a polynomial through which predictions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from typing_extensions import Unpack

from fastdiff.errors import lookup
from fastdiff.plan import HISTORY_SLOTS
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Options, Rows
from fastdiff.schedules import Array, Schedule

Mean = Callable[[float], float]
_COLUMN = {"x0": "c0", "eps": "ce"}


def phi(k: int, z: float) -> float:
    """Return phi_k(z) = sum_n z^n / (n + k)!: phi_0 = exp, phi_k = (phi_{k-1} - 1 / (k-1)!) / z."""
    if abs(z) < 1:  # where the recursion loses digits
        return sum(z**n / math.factorial(n + k) for n in range(18))
    return (phi(k - 1, z) - 1 / math.factorial(k - 1)) / z if k else math.exp(z)


def moment(j: int, rate: float) -> float:
    """Return E[theta^j] under the density on 0..1 that is proportional to e^(rate theta)."""
    return math.factorial(j) * phi(j + 1, -rate) / phi(1, -rate)


def exact_square(rate: float) -> float:
    """Return E[theta^2], of a parabola through three predictions."""
    return moment(2, rate)


def half_square(rate: float) -> float:
    """Return half of E[theta^2], which the authors' code of DPM-Solver, diffusers and k-diffusion take for it."""
    return moment(2, rate) / 2


# E[theta] for a line through two predictions: the exact one, and what methods take for it, to second order in h.
_MEANS: dict[str, Mean] = {
    "midpoint": lambda rate: 0.5,
    "heun": lambda rate: moment(1, rate),
    "bh1": lambda rate: 0.5 / phi(1, -rate),
    "bh2": lambda rate: 0.5,
}


class Integral(NamedTuple):
    """A step with a polynomial through the predictions of some levels; levels by their place in the plan.

    Attributes:
        start, end: the levels that it goes from and to.
        nodes: the levels whose predictions the polynomial goes through; those of pure noise are left out.
        predicts: what is predicted, "x0" or "eps".
        eta: amount of noise, >= 0: 0 is the ODE, 1 the reverse SDE of Song et al. 2021.
        mean: E[theta] for two nodes.
        square: E[theta^2] for three nodes.
    """

    start: int
    end: int
    nodes: Sequence[int]
    predicts: str = "x0"
    eta: float = 0.0
    mean: Mean = _MEANS["heun"]
    square: Mean = exact_square

    def carry(self, now: Level, after: Level) -> float:
        """Return the coefficient of the state between two levels."""
        if self.predicts == "eps":
            return after.alpha / now.alpha
        return after.sigma / now.sigma * math.pow(after.ratio / now.ratio, self.eta)

    def noise(self, now: Level, after: Level) -> float:
        """Return the standard deviation of the noise added between two levels; 0 to the same one, however rounded."""
        if not self.eta or after.ratio >= now.ratio:
            return 0.0
        if self.predicts == "eps":
            return math.sqrt(self.eta * (now.ratio**2 - after.ratio**2)) * after.alpha
        return after.sigma * math.sqrt(1 - math.pow(after.ratio / now.ratio, 2 * self.eta))

    def weights(self, levels: Sequence[Level]) -> Array:
        """Return what each level's prediction gives to the state at `end`, float64 [levels]."""
        now, after = levels[self.start], levels[self.end]
        carry, h = self.carry(now, after), after.lambda_ - now.lambda_
        if self.predicts == "x0":
            total = after.alpha - now.alpha * carry
        else:
            total = (1 + self.eta) * (after.sigma - now.sigma * carry)
        weights = np.zeros(len(levels))
        if not h:  # a step to where it begins
            return weights
        # From pure noise and onto clean data h is infinite: the prediction at hand is all there is.
        nodes = [j for j in self.nodes if math.isfinite(levels[j].lambda_)] if math.isfinite(h) else [self.start]
        distinct: dict[float, int] = {}  # of a level that comes twice, the first node alone
        for j in nodes:
            distinct.setdefault(levels[j].lambda_, j)
        nodes = list(distinct.values())
        if len(nodes) == 1:
            weights[nodes] = total
            return weights
        rate = (1 + self.eta) * h if self.predicts == "x0" else -h
        moments = [moment(j, rate) for j in range(len(nodes))]
        if len(nodes) == 2:
            moments[1] = self.mean(rate)
        if len(nodes) == 3:
            moments[2] = self.square(rate)
        theta = [(levels[j].lambda_ - now.lambda_) / h for j in nodes]
        weights[nodes] = total * np.linalg.solve(np.vander(theta, increasing=True).T, moments)
        return weights


def solver_mean(solver: str, *known: str) -> Mean:
    """Return E[theta] for two predictions by the name of a solver. Raises InputError for one that is not known."""
    return lookup("solver", solver, {name: _MEANS[name] for name in known})


def rows_of(schedule: Schedule, steps: int | None, predicts: str, **options: Unpack[Options]) -> Rows:
    """Return rows to fill. Raises InputError for a wrong option, or "eps" where the first level is pure noise."""
    lookup("predicts", predicts, _COLUMN)
    rows = Rows(schedule, steps, **options)
    if predicts == "eps":
        rows.need_signal("a solver that predicts eps")
    return rows


def falling(rows: Rows, order: int, lower_order_final: bool | None, least: int = 1) -> list[int]:
    """Return the order of each step: `order`, with `lower_order_final` falling to `least` at the last step.

    None lets it fall where the last step lands on clean data.
    """
    count = len(rows.steps())
    falls = rows.levels[-1].sigma == 0 if lower_order_final is None else lower_order_final
    return [min(order, count - 1 - i + least) if falls else order for i in range(count)]


def add_multistep(
    rows: Rows,
    orders: Sequence[int],
    again: Sequence[int] = (),
    predicts: str = "x0",
    eta: Sequence[float] = (),
    mean: Mean = _MEANS["heun"],
    square: Mean = exact_square,
) -> None:
    """Add the rows of a multistep method.

    Args:
        rows: where to.
        orders: how many of the last predictions each step goes through, as far as there are any.
        again: through how many each step goes when the one at its end is known, that one among them; 0 for none.
        predicts, eta, mean, square: as `Integral` has them, eta for each step.
    """

    def integral(step: int, newest: int, count: int) -> Integral:
        nodes = range(newest, max(newest - count, -1), -1)
        return Integral(step, step + 1, nodes, predicts, eta[step] if eta else 0.0, mean, square)

    predictors = [integral(i, i, order) for i, order in enumerate(orders)]
    correctors = [integral(i, i + 1, count) if count else None for i, count in enumerate(again)]
    add_rows(rows, predictors, correctors)


def add_corrections(rows: Rows, again: Sequence[int], predicts: str = "x0", mean: Mean = _MEANS["heun"]) -> None:
    """Add rows that predict nothing: each corrects the state that someone else's step from the last one led to.

    The anchor is the corrected state. Arguments are those of `add_multistep`.
    """
    for i, level in enumerate(rows.levels[:-1]):
        columns: dict[str, Any] = {"x": 1.0, "y": 0.0}
        if i and again[i - 1]:
            nodes = range(i, max(i - again[i - 1], -1), -1)
            corrector = Integral(i - 1, i, nodes, predicts, mean=mean)
            weights = corrector.weights(rows.levels)
            past = {f"h{j % HISTORY_SLOTS}": weights[j] for j in nodes[1:]}
            newest = _COLUMN[predicts][1:]
            columns = {"y": corrector.carry(rows.levels[i - 1], level), newest: weights[i], **past}
        both = {f"{kind}{name}": value for kind in "cd" for name, value in columns.items()}
        rows.add(level, None, level, slot=i % HISTORY_SLOTS, **both)


def add_rows(rows: Rows, predictors: Sequence[Integral], correctors: Sequence[Integral | None] = ()) -> None:
    """Add the row of each step.

    A state is linear in the state that its step began from and in the predictions since. So where a step begins at an
    earlier level, or is corrected by another integral, it is enough to change what those predictions gave: no earlier
    state need be kept.

    Args:
        rows: where to.
        predictors: the step of each row, to the next level from this one, or (eta = 0) from an earlier one.
        correctors: what each step is replaced by, in the row after it; None or missing for nothing.
    """
    steps = list(zip(rows.steps(), predictors, strict=True))
    contributions: list[Array] = []  # of each level's prediction to the state after each row
    given = np.zeros(len(rows.levels))  # what they gave to it in the step so far
    for i, ((now, after), predictor) in enumerate(steps):
        corrector = correctors[i - 1] if i and correctors else None
        kept = corrector.weights(rows.levels) if corrector else given if predictor.start == i else 0.0
        change = predictor.carry(now, after) * (kept - given)
        given = predictor.weights(rows.levels)
        contributions.append(change + given)
    slots = max(i - int(np.flatnonzero([*gave[:i], 1.0])[0]) for i, gave in enumerate(contributions))
    for i, ((now, after), predictor) in enumerate(steps):
        rows.add(
            now,
            cx=predictor.carry(now, after),
            cz=predictor.noise(now, after),
            slot=i % slots if slots else -1,
            **{_COLUMN[predictor.predicts]: contributions[i][i]},
            **{f"ch{j % slots}": contributions[i][j] for j in range(max(i - slots, 0), i)},
        )


def add_restarting(rows: Rows, predictors: Sequence[Integral]) -> None:
    """Add the rows of singlestep methods, whose stages all begin at the state that the first one found.

    The anchor keeps that state, so that each stage may have noise of its own. Arguments are those of `add_rows`.
    """
    slots = max(predictor.end - 1 - predictor.start for predictor in predictors)
    followers = [*predictors[1:], None]
    for i, (predictor, follower) in enumerate(zip(predictors, followers, strict=True)):
        now, after = rows.levels[predictor.start], rows.levels[predictor.end]
        carry, weights = predictor.carry(now, after), predictor.weights(rows.levels)
        state = {"cx": carry} if predictor.start == i else {"cy": carry}
        if follower and follower.start == i:
            state |= {"dx": 1.0, "dy": 0.0}
        rows.add(
            rows.levels[i],
            cz=predictor.noise(now, after),
            slot=i % slots if slots else -1,
            **state,
            **{_COLUMN[predictor.predicts]: weights[i]},
            **{f"ch{j % slots}": weights[j] for j in range(predictor.start, i)},
        )
