"""DEIS."""

from __future__ import annotations

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.integrations.diffusers.adapter import Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING
from fastdiff.integrations.diffusers.multistep import Multistep
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers import deis

_FEW_STEPS = 15


class DEISMultistepScheduler(Multistep, diffusers.DEISMultistepScheduler):
    __doc__ = diffusers.DEISMultistepScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Step to the next timestep; the arguments are those of diffusers' class, and no noise is drawn."""
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        found = self._step(model_output, timestep, sample, Noise(seed=seed), {}, dtype=dtype).sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _plan(self, run: Run, first: int) -> Plan:
        if self._misreads:
            kind = self.config.prediction_type
            raise InputError(f"DEIS finds no eps from {kind} at these sigmas: set use_flow_sigmas={not self._flows}")
        return deis(
            PRESERVING,
            order=min(self.config.solver_order, 3),
            lower_order_final=self.config.lower_order_final and len(run.times) < _FEW_STEPS,
            **self._options(run, first),
        )
