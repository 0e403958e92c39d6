"""Schedulers of distilled models: LCM, TCD and consistency models."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_consistency_models import CMStochasticIterativeSchedulerOutput
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_tcd import TCDSchedulerOutput
from torch import Tensor

from fastdiff.errors import number
from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Place, Seed, Stepped
from fastdiff.integrations.diffusers.exploding import Exploding, refuse_index
from fastdiff.integrations.diffusers.levels import EXPLODING
from fastdiff.integrations.diffusers.preserving import Noised, Preserving, RowByRow
from fastdiff.integrations.diffusers.runs import Run, State
from fastdiff.plan import Plan
from fastdiff.prediction import consistency
from fastdiff.samplers.consistency import add_tcd, boundary
from fastdiff.samplers.levels import CLEAN, Level
from fastdiff.samplers.rows import Rows


class Jumping(Noised, Preserving):
    """A scheduler that jumps to a level and noises from there; where it jumped to is left in the anchor."""

    num_inference_steps: Any
    final_alpha_cumprod: Tensor

    def _place(self, timestep: float | Tensor) -> Place:
        if self.num_inference_steps is None:
            raise ValueError("the number of inference steps is not set: call set_timesteps before step")
        return super()._place(timestep)

    def _advance(self, state: State, *args: Any, **kwargs: Any) -> Stepped:
        return super()._advance(state, *args, **kwargs)._replace(x0=state.y)

    def _ends(self, row: int, run: Run) -> bool:
        """Return whether a row is the last of all that were asked for; `strength` may have left it out."""
        return bool(row == run.values["num_inference_steps"] - 1)


class LCMScheduler(Jumping, Adapter, diffusers.LCMScheduler):
    __doc__ = diffusers.LCMScheduler.__doc__
    _of_run = (*Adapter._of_run, "custom_timesteps")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> LCMSchedulerOutput | tuple[Tensor, Tensor]:
        """Step to the next timestep; with `seed` the noise is the project's own."""
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        found, denoised = self._take(model_output, timestep, sample, Noise(generator, seed, dtype=dtype), {})
        denoised = found if denoised is None else denoised  # the last state of a whole loop is what it was denoised to
        return LCMSchedulerOutput(found, denoised) if return_dict else (found, denoised)

    def _plan(self, run: Run, first: int) -> Plan:
        times, end = [int(time) for time in run.times], float(self.final_alpha_cumprod)
        steps = [
            (self._level(time, end), CLEAN if self._ends(row, run) else self._level(after, end))
            for row, (time, after) in enumerate(zip(times, [*times[1:], times[-1]], strict=True))
        ][first:]
        rows = self._rows(steps)
        for now, after in steps:
            skip, out = boundary(self.config.timestep_scaling * now.time)
            state = {"cx": after.alpha * skip, "c0": after.alpha * out, "cz": after.sigma}
            rows.add(now, None, after, **state, dx=skip, d0=out, dy=0.0)
        return rows.plan(init_scale=1.0)


class TCDScheduler(Jumping, Adapter, diffusers.TCDScheduler):
    __doc__ = diffusers.TCDScheduler.__doc__
    _of_run = (*Adapter._of_run, "custom_timesteps")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.3,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> TCDSchedulerOutput | tuple[Tensor, Tensor | None]:
        """Step to the next timestep by way of one below it, as far as eta says; the arguments are diffusers'."""
        number("eta", eta, 0, 1)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        noise = Noise(generator, seed, dtype=dtype, spare=eta > 0)
        stepped = self._take(model_output, timestep, sample, noise, {"eta": float(eta)})
        return TCDSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _plan(self, run: Run, first: int, eta: float = 0.3) -> Plan:
        times = [int(time) for time in run.times]
        rows = self._rows([(self._level(time), self._level(after)) for time, after in pairwise([*times, 0])][first:])
        for row, (now, after) in enumerate(rows.steps(), first):
            s = self._aim(after, eta)
            add_tcd(rows, now, s, s if self._ends(row, run) else after, d0=s.alpha, de=s.sigma, dy=0.0)
        return rows.plan(init_scale=1.0)

    def _aim(self, after: Level, eta: float) -> Level:
        """Return the level that a step first goes to; as in diffusers its timestep is rounded down from float32."""
        return self._level(int(np.float32(1 - eta) * np.float32(after.time)))

    def _threshold(self) -> None:
        return None  # diffusers does not look at it

    def _clip(self) -> None:
        return None  # nor at this

    def _always_draws(self, row: int, run: Run) -> bool:
        return not self._ends(row, run)


class CMStochasticIterativeScheduler(Exploding, RowByRow, Adapter, diffusers.CMStochasticIterativeScheduler):
    __doc__ = diffusers.CMStochasticIterativeScheduler.__doc__
    _of_run = (*Adapter._of_run, "custom_timesteps")

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> CMStochasticIterativeSchedulerOutput | tuple[Tensor]:
        """Step to the next sigma; with `seed` the noise is the project's own."""
        refuse_index(timestep)
        found = self._take(model_output, timestep, sample, Noise(generator, seed), {}).sample
        return CMStochasticIterativeSchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _plan(self, run: Run, first: int) -> Plan:
        least, most = self.config.sigma_min, self.config.sigma_max
        levels = [self._level(run, min(row, len(run.sigmas) - 1)) for row in range(len(run.times) + 1)][first:]
        predicts = consistency(self.config.sigma_data, least)
        rows = Rows(
            EXPLODING, None, levels=levels, clip=1.0 if self.config.clip_denoised else None, prediction=predicts
        )
        for now, after in rows.steps():
            above = min(max(after.sigma, least), most) ** 2 - least**2
            rows.add(now, c0=1.0, cz=self.config.s_noise * math.sqrt(max(above, 0.0)) if len(run.times) > 1 else 0.0)
        return rows.plan()

    def _level_of(self, sigma: float, time: float) -> Level:
        return Level(1.0, sigma, time, 1 / math.hypot(sigma, self.config.sigma_data))

    def _always_draws(self, row: int, run: Run) -> bool:
        return len(run.times) > 1
