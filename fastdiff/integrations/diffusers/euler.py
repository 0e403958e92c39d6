"""Euler's method in sigma: with churn, and ancestral."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import Tensor

from fastdiff.errors import number
from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed, Stepped
from fastdiff.integrations.diffusers.exploding import Exploding, refuse_index
from fastdiff.integrations.diffusers.levels import EXPLODING, prediction
from fastdiff.integrations.diffusers.runs import Run, State
from fastdiff.plan import Plan
from fastdiff.prediction import Parameterisation, coefficients
from fastdiff.samplers import euler_ancestral
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Rows
from fastdiff.samplers.stages import MAX_CHURN


class ChurnedEuler(Exploding):
    """Euler's method with diffusers' churn: a step first raises its state to `sigma_hat = (1 + gamma) sigma` by noise.

    Karras et al. 2022 (Algorithm 2) ask the network for its output at the raised state. Diffusers has asked before, at
    sigma, and takes that output for the one at the raised state.
    """

    @abstractmethod
    def _prediction(self) -> str | Parameterisation:
        """Return what the network predicts."""

    def _plan(
        self,
        run: Run,
        first: int,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        predicts: str | Parameterisation | None = None,
    ) -> Plan:
        predicts = predicts or self._prediction()
        rows = Rows(EXPLODING, None, levels=self._levels(run, first), clip=None, prediction=predicts)
        gamma = min(number("s_churn", s_churn, 0) / (len(run.sigmas) - 1), MAX_CHURN)
        for now, after in rows.steps():
            raised = now.sigma * (1 + gamma) if s_tmin <= now.sigma <= s_tmax else now.sigma
            asked = self._asked(now, raised)
            keeps = after.sigma / raised
            columns = {"cx": keeps, "c0": 1 - keeps}
            if gamma:
                # The x0 of the row knows nothing of the noise. The one that does is left in the anchor.
                noise = s_noise * math.sqrt(raised**2 - now.sigma**2)
                in_x0 = noise * _share_of_state(predicts, asked)
                columns |= {"cz": keeps * noise + (1 - keeps) * in_x0, "dy": 0.0, "d0": 1.0, "dz": in_x0}
            rows.add(now, asked, **columns)
        return rows.plan()

    def _asked(self, now: Level, raised: float) -> Level:
        """Return the level that the network's output is taken to be of, with the time and scale it was asked with."""
        return now._replace(sigma=raised)

    def _advance(self, state: State, *args: Any, **kwargs: Any) -> Stepped:
        stepped = super()._advance(state, *args, **kwargs)
        return stepped if state.y is None else stepped._replace(x0=state.y.clone())


def _share_of_state(predicts: str | Parameterisation, level: Level) -> float:
    """Return how much of the state there is in x0."""
    return float(coefficients(predicts, np.array(level.alpha), np.array(level.sigma)).px)


class EulerDiscreteScheduler(ChurnedEuler, Adapter, diffusers.EulerDiscreteScheduler):
    __doc__ = diffusers.EulerDiscreteScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """Step to the next sigma; the arguments are those of diffusers' class."""
        refuse_index(timestep)
        churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        stepped = self._step(model_output, timestep, sample, Noise(generator, seed), churn, x0=True)
        return EulerDiscreteSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _prediction(self) -> str | Parameterisation:
        predicts = self.config.prediction_type
        return prediction("sample" if predicts == "original_sample" else predicts)

    def _asked(self, now: Level, raised: float) -> Level:
        return now if self.config.prediction_type == "v_prediction" else super()._asked(now, raised)


class EulerAncestralDiscreteScheduler(Exploding, Adapter, diffusers.EulerAncestralDiscreteScheduler):
    __doc__ = diffusers.EulerAncestralDiscreteScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """Step to the next sigma; the arguments are those of diffusers' class."""
        refuse_index(timestep)
        stepped = self._step(model_output, timestep, sample, Noise(generator, seed), {}, x0=True)
        return EulerAncestralDiscreteSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _plan(self, run: Run, first: int) -> Plan:
        predicts = prediction(self.config.prediction_type)
        return euler_ancestral(EXPLODING, levels=self._levels(run, first), clip=None, prediction=predicts)

    def _always_draws(self, row: int, run: Run) -> bool:
        return True
