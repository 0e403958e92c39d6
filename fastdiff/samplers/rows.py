"""Rows: what every sampler fills. It knows the levels to visit and how x0 and eps are found from the network."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
from typing_extensions import Unpack

from fastdiff import prediction as predictions
from fastdiff.errors import InputError, lookup, number
from fastdiff.plan import NEUTRAL, Plan
from fastdiff.samplers.levels import Level, Visits, at_index, at_ratio, start_scale, visited
from fastdiff.schedules import Schedule

_GAPS = {"visited": "to the next level that is visited", "uniform": "T // steps levels"}


class Common(Visits, total=False):
    """What every sampler takes by name, beside what `Visits` lists.

    Attributes:
        clip: bound on |x0|; None for none.
        rederive_eps: find eps from the clipped x0 rather than take the network's own.
        prediction: what the network predicts, a name of `fastdiff.prediction` or a function like those there.
    """

    clip: float | None
    rederive_eps: bool
    prediction: str | predictions.Parameterisation


class Options(Common, total=False):
    """What most samplers take by name.

    Attributes:
        spacing: which levels to visit; see `fastdiff.samplers.spacing` and `fastdiff.samplers.sigmas`. None is
            "karras", but "trailing" where the schedule begins in pure noise or nearly so, as cosine does.
        timesteps: schedule indices to visit instead, falling strictly.
    """

    spacing: str | None
    timesteps: Sequence[int] | None


class Rows:
    """The rows of a plan in the making.

    Attributes:
        schedule: the levels that the network was trained on.
        levels: those to visit, noisiest first, and the one to land on.
    """

    def __init__(
        self,
        schedule: Schedule,
        steps: int | None,
        spacing: str | None = None,
        timesteps: Sequence[int] | None = None,
        *,
        clip: float | None = 1.0,
        rederive_eps: bool = True,
        prediction: str | predictions.Parameterisation = "eps",
        **which: Unpack[Visits],
    ) -> None:
        """Choose the levels; the arguments are those of `Options`. Raises InputError where one is out of range."""
        self.schedule = schedule
        self.levels = visited(schedule, steps, spacing, timesteps, **which)
        self._gap = len(schedule) // (which.get("start", 0) + len(self.levels) - 1)
        self._clip = None if clip is None else number("clip", clip, 0, above=True)
        self._rederive, self._prediction = rederive_eps and clip is not None, prediction
        self._at: list[Level] = []
        self._asked: list[Level] = []
        self._lands: list[Level | None] = []
        self._columns: list[dict[str, float]] = []

    def steps(self, gaps: str = "visited") -> list[tuple[Level, Level]]:
        """Return the steps, each from a level to the one after it.

        With gaps="uniform", to the level that is T // steps lower, which may be another (diffusers' DDIM), and to the
        last one where there is none. Raises InputError for another name, or if levels lie between the schedule's.
        """
        if lookup("gaps", gaps, _GAPS) and gaps == "visited":
            return list(pairwise(self.levels))
        index = np.array([level.place for level in self.levels[:-1]]) - self._gap
        if np.isnan(index).any():
            raise InputError("gaps='uniform' counts the schedule's own levels: use a spacing that picks those")
        after = [at_index(self.schedule, int(i)) if i >= 0 else self.levels[-1] for i in index]
        return list(zip(self.levels, after, strict=False))

    def between(self, ratio: float) -> Level:
        """Return the level with `sigma / alpha = ratio`, for the stages of a step."""
        return at_ratio(self.schedule, ratio)

    def need_signal(self, sampler: str) -> None:
        """Raise InputError if the first level is pure noise, where a sampler that divides by alpha cannot begin."""
        if self.levels[0].alpha == 0:
            raise InputError(f"{sampler} cannot begin where alpha is 0: use ddim, ddpm or dpmpp_2m, or start=1")

    def start_scale(self, at: Level) -> float:
        """Return the standard deviation of the noise that a plan begins with at a level."""
        return start_scale(self.schedule, at)

    def add(self, at: Level, asked: Level | None = None, lands: Level | None = None, /, **columns: float) -> None:
        """Add the row whose state is at a level; columns that are left out do nothing.

        Args:
            at: the level of the state.
            asked: the network is asked as if the state were here; None is at the state's own level.
            lands: where the row leads; None is to the next row's level, and from the last one to the last to visit.
            columns: those of the plan.
        """
        self._at.append(at)
        self._asked.append(asked or at)
        self._lands.append(lands)
        self._columns.append(columns)

    def plan(self, stores: str = "x0", init_scale: float | None = None) -> Plan:
        """Return the plan of the rows.

        Args:
            stores: what the history keeps, "x0" or "eps".
            init_scale: standard deviation of the start state; None is that of the first level's noise.

        Raises:
            InputError: the prediction is unknown or cannot begin where alpha is 0.
        """
        alpha, sigma, time, scale_in, step_sigma, _ = np.array(self._asked).T
        used = {column: NEUTRAL.get(column, 0.0) for row in self._columns for column in row}
        columns: dict[str, npt.ArrayLike] = {
            column: [row.get(column, neutral) for row in self._columns] for column, neutral in used.items()
        }
        found = predictions.coefficients(self._prediction, alpha, sigma, step_sigma)
        columns |= {"scale_in": scale_in, "px": found.px, "po": found.po}
        if self._clip is not None:
            columns["clip"] = self._clip
        if stores == "eps" or {"ce", "de"} & set(columns):
            if self._rederive:
                columns |= {"ex": 1 / sigma, "e0": -alpha / sigma}
            else:
                columns |= {"ex": found.ex, "eo": found.eo}
        following = zip(self._lands, [*self._at[1:], self.levels[-1]], strict=True)
        levels = [self._at[0], *(lands or nominal for lands, nominal in following)]
        return Plan.build(
            *("", time, columns),
            alpha=[level.alpha for level in levels],
            sigma=[level.sigma for level in levels],
            init_scale=self.start_scale(self._at[0]) if init_scale is None else init_scale,
            stores=stores,
        )
