"""Linear multistep in sigma."""

from __future__ import annotations

import diffusers
import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from torch import Tensor

from fastdiff.errors import whole
from fastdiff.integrations.diffusers.adapter import Adapter, Noise, Seed
from fastdiff.integrations.diffusers.exploding import Exploding
from fastdiff.integrations.diffusers.levels import EXPLODING, prediction
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.adams import MAX_ORDER, add_adams, integrals
from fastdiff.samplers.rows import Rows


class LMSDiscreteScheduler(Exploding, Adapter, diffusers.LMSDiscreteScheduler):
    __doc__ = diffusers.LMSDiscreteScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> LMSDiscreteSchedulerOutput | tuple[Tensor, Tensor | None]:
        """Step to the next sigma by the last `order` evaluations, 1..4; the arguments are those of diffusers' class."""
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        state, x0 = self._step(model_output, timestep, sample, Noise(seed=seed), {"order": order}, x0=True, dtype=dtype)
        found = state, None if x0 is None else x0.to(dtype)
        return LMSDiscreteSchedulerOutput(*found) if return_dict else found

    def _plan(self, run: Run, first: int, order: int = 4) -> Plan:
        """Return the plan, whose weights know all levels of the run, also those before `first`, as diffusers has it.

        A loop that begins in the middle has no eps of those levels, and leaves them out without making up for them.
        """
        whole("order", order, 1, MAX_ORDER)
        levels = self._levels(run, 0)
        predicts = prediction(self.config.prediction_type)
        rows = Rows(EXPLODING, None, levels=levels[first:], clip=None, prediction=predicts)
        for i, (now, after) in enumerate(rows.steps()):
            at = first + i
            nodes = levels[max(at + 1 - order, 0) : at + 1][::-1]
            own, *past = integrals(EXPLODING, "rho", nodes, after)
            add_adams(rows, i, order, now, after, past[:i], own)
        return rows.plan(stores="eps")
