"""SA-Solver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Generator, Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING
from fastdiff.integrations.diffusers.multistep import Multistep
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.exponential import rows_of
from fastdiff.samplers.sa import add_stochastic_adams


class SASolverScheduler(Multistep, diffusers.SASolverScheduler):
    __doc__ = diffusers.SASolverScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Step to the next timestep; with `seed` the noise is the project's own."""
        noise, options = Noise(generator, seed), {"tau_func": self.tau_func}
        found = self._step(model_output, timestep, sample, noise, options, dtype=sample.dtype).sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _always_draws(self, row: int, run: Run) -> bool:
        return True

    def _plan(self, run: Run, first: int, tau_func: Callable[[Tensor], Any] | None = None) -> Plan:
        tau_of = tau_func or self.tau_func
        predicts = "x0" if self.predict_x0 else "eps"
        rows = rows_of(PRESERVING, None, predicts, **self._options(run, first))
        add_stochastic_adams(
            rows,
            self.config.predictor_order,
            self.config.corrector_order,
            # Functions of users expect the tensor that a pipeline hands to `step`.
            [float(tau_of(torch.tensor(time))) for time in run.times[first:]],
            self.config.lower_order_final,
            predicts,
            "bh1" if self.predict_x0 else "heun",
        )
        return rows.plan(stores=predicts)
