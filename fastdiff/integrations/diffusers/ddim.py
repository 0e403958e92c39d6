"""DDIM, forwards and backwards."""

from __future__ import annotations

from typing import Any

import diffusers
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING, prediction, variance_preserving
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.ddim import add_ddim
from fastdiff.samplers.rows import Rows


class DDIMScheduler(Adapter, diffusers.DDIMScheduler):
    __doc__ = diffusers.DDIMScheduler.__doc__
    _at_any_time = True

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generator | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> DDIMSchedulerOutput | tuple[Tensor, Tensor]:
        """Step from a timestep to the one before it; with `seed` the noise is the project's own."""
        if self.num_inference_steps is None:
            raise ValueError("the number of inference steps is not set: call set_timesteps before step")
        stepped = self._step(
            *(model_output, timestep, sample, Noise(generator, seed, variance_noise)),
            {"eta": float(eta), "use_clipped_model_output": use_clipped_model_output},
            x0=True,
            dtype=sample.dtype,
        )
        return DDIMSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _plan(self, run: Run, first: int, eta: float = 0.0, use_clipped_model_output: bool = False) -> Plan:
        gap = self.config.num_train_timesteps // run.values["num_inference_steps"]
        steps = [(int(time), int(time) - gap) for time in run.times[first:]]
        pairs = [(self._level(time), self._level(after)) for time, after in steps]
        rows = Rows(
            *(PRESERVING, None),
            levels=[*(now for now, _ in pairs), pairs[-1][1]],
            clip=self._clip(),
            rederive_eps=use_clipped_model_output,
            prediction=prediction(self.config.prediction_type),
        )
        for now, after in pairs:
            add_ddim(rows, now, now, after, eta)
        return rows.plan(init_scale=1.0)

    def _level(self, time: int) -> Any:
        return variance_preserving(float(self.alphas_cumprod[time] if time >= 0 else self.final_alpha_cumprod), time)

    def _clip(self) -> float | None:
        if self.config.thresholding:
            return 1.0
        return self.config.clip_sample_range if self.config.clip_sample else None
