"""UniPC."""

from __future__ import annotations

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING
from fastdiff.integrations.diffusers.multistep import Multistep
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.unipc import unic, unipc


class UniPCMultistepScheduler(Multistep, diffusers.UniPCMultistepScheduler):
    __doc__ = diffusers.UniPCMultistepScheduler.__doc__

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
        found = self._step(model_output, timestep, sample, Noise(seed=seed), {}, dtype=sample.dtype).sample
        if self.solver_p:  # a scheduler that predicts, from the corrected state
            found = self.solver_p.step(model_output, timestep, found).prev_sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _threshold(self) -> tuple[float, float] | None:
        return super()._threshold() if self.predict_x0 else None  # diffusers does not look at it for eps

    def _plan(self, run: Run, first: int) -> Plan:
        sampler = unic if self.solver_p else unipc
        return sampler(
            PRESERVING,
            order=self.config.solver_order,
            solver=self.config.solver_type,
            predicts="x0" if self.predict_x0 else "eps",
            disable_corrector=[step - first for step in self.disable_corrector],
            lower_order_final=bool(self.config.lower_order_final),
            **self._options(run, first),
        )
