"""DPM-Solver and DPM-Solver++, multistep."""

from __future__ import annotations

import math

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Generator, Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING, edm_level, edm_prediction
from fastdiff.integrations.diffusers.multistep import Multistep
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.prediction import Parameterisation, Prediction, coefficients
from fastdiff.samplers.exponential import Mean, add_multistep, falling, half_square, moment, rows_of, solver_mean
from fastdiff.samplers.levels import Level
from fastdiff.schedules import Array

SOLVERS = ("midpoint", "heun")
_FEW_STEPS = 15


def misprinted(square: Mean) -> Mean:
    """Return what diffusers has for E[theta^2], or a part of it, in the SDE.

    At a rate r its coefficient is `(1 - e^-r - r) / r^2 - 1/2`. With `+ 1/2` it were `(1 - e^-r) E[theta^2] / 2`.
    """

    def of(rate: float) -> float:
        return square(rate) * (1 - 2 / ((1 - math.exp(-rate)) * moment(2, rate)))

    return of


def _by_eps(read: str | Parameterisation) -> Parameterisation:
    """Return the prediction whose x0 is what its eps leaves of x, where the two do not make up x."""

    def coefficients_of(alpha: Array, sigma: Array) -> Prediction:
        found = coefficients(read, alpha, sigma)
        return found._replace(px=(1 - sigma * found.ex) / alpha, po=-sigma * found.eo / alpha)

    return coefficients_of


class DPMSolver(Multistep):
    """What the schedulers of the DPM-Solver family share."""

    def _always_draws(self, row: int, run: Run) -> bool:
        return self._eta > 0

    def _prediction(self) -> str | Parameterisation:
        read = super()._prediction()
        return _by_eps(read) if self._predicts == "eps" and self._misreads else read

    @property
    def _predicts(self) -> str:
        """What polynomials go through: DPM-Solver++ predicts x0, DPM-Solver eps."""
        return "x0" if self.config.algorithm_type.endswith("++") else "eps"

    @property
    def _eta(self) -> float:
        """The amount of noise."""
        return 1.0 if self.config.algorithm_type.startswith("sde") else 0.0

    def _dtype(self, model_output: Tensor, sample: Tensor) -> torch.dtype:
        """Return the dtype of the prediction that polynomials go through, as diffusers finds it."""
        taken = {"x0": "sample", "eps": "epsilon"}[self._predicts] == self.config.prediction_type
        return model_output.dtype if taken else torch.promote_types(sample.dtype, model_output.dtype)

    def _multistep_plan(self, run: Run, first: int, square: Mean = half_square) -> Plan:
        """Return the plan of a multistep method; `square` is E[theta^2] of its third order."""
        predicts, few = self._predicts, len(run.times) < _FEW_STEPS
        rows = rows_of(PRESERVING, None, predicts, **self._options(run, first))
        orders = falling(rows, self.config.solver_order, self.config.lower_order_final and few)
        if self.config.euler_at_final:
            orders[-1] = 1
        mean = solver_mean(self.config.solver_type, *SOLVERS)
        add_multistep(rows, orders, (), predicts, [self._eta] * len(orders), mean, square)
        return rows.plan(stores=predicts)


class DPMSolverMultistepScheduler(DPMSolver, diffusers.DPMSolverMultistepScheduler):
    __doc__ = diffusers.DPMSolverMultistepScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Step to the next timestep; with `seed` the noise is the project's own."""
        given = variance_noise is not None
        noise = Noise(None if given else generator, seed, variance_noise, torch.float32)
        dtype = self._dtype(model_output, sample)
        found = self._step(model_output, timestep, sample, noise, {}, dtype=dtype).sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _plan(self, run: Run, first: int) -> Plan:
        wrong = self._eta and self._predicts == "x0"
        return self._multistep_plan(run, first, misprinted(half_square) if wrong else half_square)


class EDMDPMSolverMultistepScheduler(DPMSolver, diffusers.EDMDPMSolverMultistepScheduler):
    __doc__ = diffusers.EDMDPMSolverMultistepScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Step to the next timestep; with `seed` the noise is the project's own."""
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        noise = Noise(generator, seed, dtype=dtype)
        found = self._step(model_output, timestep, sample, noise, {}, dtype=dtype).sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """Return the sample [B, ...] as the network is given it, `sample / sqrt(sigma^2 + sigma_data^2)`."""
        run, row = self._place_of_input(timestep)
        return sample * self._level(float(run.sigmas[row]), math.nan).scale_in

    def _plan(self, run: Run, first: int) -> Plan:
        return self._multistep_plan(run, first)

    def _level(self, sigma: float, time: float) -> Level:
        return edm_level(sigma, self.config.sigma_data, time)

    def _prediction(self) -> Parameterisation:
        return edm_prediction(self.config.sigma_data, self.config.prediction_type)
