"""iPNDM."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING
from fastdiff.integrations.diffusers.runs import Run, State
from fastdiff.plan import Plan
from fastdiff.samplers.adams import MAX_ORDER, add_adams_for_equal_steps
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Rows

_KEPT = MAX_ORDER - 1


class IPNDMScheduler(Adapter, diffusers.IPNDMScheduler):
    __doc__ = diffusers.IPNDMScheduler.__doc__
    _of_run = (*Adapter._of_run, "alphas", "betas", "ets")
    ets: Any

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Step to the next timestep; the arguments are those of diffusers' class, and no noise is drawn."""
        place = self._place(timestep)
        run, row = place
        state = run.state(row, sample)
        if self.ets and state is None:  # of the loop before, or given by hand: diffusers goes on with them
            return super().step(model_output, timestep, sample, return_dict)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        state = state or self._state(place, sample, {})
        found = self._step(model_output, timestep, sample, Noise(seed=seed), {}, dtype=dtype).sample
        if row == len(run.times) - 1:
            self.ets = _newest(state)
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _plan(self, run: Run, first: int) -> Plan:
        levels = self._levels(run)[first:]
        rows = Rows(PRESERVING, None, levels=levels, clip=None, prediction="v")
        for i, (now, after) in enumerate(rows.steps()):
            if now.alpha:
                add_adams_for_equal_steps(rows, i, MAX_ORDER, now, after)
            else:  # diffusers finds 0 for x0 in pure noise, whatever the network says
                rows.add(now, ce=after.sigma, slot=i % _KEPT)
        return rows.plan(stores="eps", init_scale=1.0)

    def _levels(self, run: Run) -> list[Level]:
        pairs = zip(run.values["alphas"].tolist(), run.values["betas"].tolist(), [*run.times, math.nan], strict=True)
        return [Level(alpha, sigma, time, 1.0) for alpha, sigma, time in pairs]


def _newest(state: State) -> list[Tensor]:
    """Return the last eps of a loop, the newest last."""
    assert state.history is not None
    count = state.row - state.first
    return [state.history[i % _KEPT] for i in range(max(count - _KEPT, 0), count)]
