"""Euler's method in sigma."""

from __future__ import annotations

import math

import diffusers
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed
from fastdiff.integrations.diffusers.exploding import Exploding
from fastdiff.integrations.diffusers.levels import EXPLODING, prediction
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers import euler


class EulerDiscreteScheduler(Exploding, Adapter, diffusers.EulerDiscreteScheduler):
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
        stepped = self._step(model_output, timestep, sample, Noise(generator, seed), {}, x0=True)
        return EulerDiscreteSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _plan(self, run: Run, first: int) -> Plan:
        return euler(
            EXPLODING,
            levels=self._levels(run, first),
            clip=None,
            prediction=prediction(self.config.prediction_type),
        )
