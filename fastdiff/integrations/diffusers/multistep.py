"""What the multistep schedulers share whose state is `alpha x0 + sigma eps`: DEIS, UniPC and SA-Solver."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Place
from fastdiff.integrations.diffusers.levels import prediction, x0_over
from fastdiff.integrations.diffusers.runs import Run, State
from fastdiff.prediction import Parameterisation, Prediction
from fastdiff.samplers.levels import Level
from fastdiff.schedules import Array


class Multistep(Adapter):
    """A scheduler whose sigmas are `sigma / alpha`, or those of a flow, where alpha is `1 - sigma`."""

    _else_at_last = True
    num_inference_steps: Any

    def _state(self, place: Place, sample: Tensor, options: dict[str, Any]) -> State:
        if self.num_inference_steps is None:
            raise ValueError("the number of inference steps is not set: call set_timesteps before step")
        return super()._state(place, sample, options)

    def _levels(self, run: Run, first: int) -> list[Level]:
        """Return the levels of the run from a row on, and the one that the last step lands on."""
        times = [*run.times, math.nan]
        return [self._level(sigma, time) for sigma, time in zip(run.sigmas.tolist(), times, strict=True)][first:]

    def _level(self, sigma: float, time: float) -> Level:
        if self._flows:
            return Level(1 - sigma, sigma, time, 1.0)
        alpha = 1 / math.hypot(sigma, 1.0)
        return Level(alpha, sigma * alpha, time, 1.0)

    def _options(self, run: Run, first: int) -> dict[str, Any]:
        """Return what samplers of `fastdiff.samplers` take: the levels, how x0 is found, and whether it is clipped."""
        threshold, read = self._threshold(), self._prediction()
        if threshold is None:
            return {"levels": self._levels(run, first), "prediction": read, "clip": None}
        largest = min(threshold[1], 1.0)
        return {"levels": self._levels(run, first), "prediction": x0_over(read, largest), "clip": 1.0}

    def _prediction(self) -> str | Parameterisation:
        """Return how x0 and eps are found from what the network predicts."""
        kind = self.config.prediction_type
        return _READ.get((kind, self._flows)) or prediction(kind)

    @property
    def _flows(self) -> bool:
        """Whether the sigmas are a flow's."""
        return bool(self.config.get("use_flow_sigmas"))

    @property
    def _misreads(self) -> bool:
        """Whether what the network predicts is of other levels than those of the sigmas."""
        return (self.config.prediction_type, self._flows) in _READ


def _v_of_flow(alpha: Array, sigma: Array) -> Prediction:
    return Prediction(px=alpha, po=-sigma, ex=sigma, eo=alpha, t0=-sigma, te=alpha)


def _flow_of_unit_variance(alpha: Array, sigma: Array) -> Prediction:
    one = np.ones_like(alpha)
    return Prediction(px=one, po=-sigma / alpha, ex=(1 - alpha) / sigma, eo=one, t0=alpha - 1, te=one)


# Predictions of one kind of levels at levels of the other, by type and whether the levels are a flow's: diffusers
# finds x0, or eps, as it would at levels of their own.
_READ: dict[tuple[str, bool], Parameterisation] = {
    ("v_prediction", True): _v_of_flow,
    ("flow_prediction", False): _flow_of_unit_variance,
}
