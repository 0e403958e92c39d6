"""Euler's method with EDM's preconditioning."""

from __future__ import annotations

import math
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed
from fastdiff.integrations.diffusers.euler import ChurnedEuler
from fastdiff.integrations.diffusers.exploding import refuse_index
from fastdiff.integrations.diffusers.levels import edm_level, edm_prediction
from fastdiff.prediction import Parameterisation
from fastdiff.samplers.levels import Level


class EDMEulerScheduler(ChurnedEuler, Adapter, diffusers.EDMEulerScheduler):
    __doc__ = diffusers.EDMEulerScheduler.__doc__

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
        pred_original_sample: Tensor | None = None,
        *,
        seed: Seed | None = None,
    ) -> EDMEulerSchedulerOutput | tuple[Tensor, Tensor]:
        """Step to the next sigma, by `pred_original_sample` where it is given; the arguments are diffusers'."""
        refuse_index(timestep)
        options: dict[str, Any] = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
        out = model_output
        if pred_original_sample is not None:
            out, options["predicts"] = pred_original_sample, "x0"
        stepped = self._step(out, timestep, sample, Noise(generator, seed), options, x0=True, dtype=model_output.dtype)
        return EDMEulerSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _prediction(self) -> Parameterisation:
        return edm_prediction(self.config.sigma_data, self.config.prediction_type)

    def _level_of(self, sigma: float, time: float) -> Level:
        return edm_level(sigma, self.config.sigma_data, time)
