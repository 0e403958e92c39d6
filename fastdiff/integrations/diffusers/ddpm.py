"""DDPM."""

from __future__ import annotations

from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm_parallel import DDPMParallelSchedulerOutput
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.integrations.diffusers import whole_loop
from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed
from fastdiff.integrations.diffusers.levels import TINY
from fastdiff.integrations.diffusers.preserving import Noised, Preserving
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.ddpm import LEARNED, add_ddpm

# Names of variances in `fastdiff.samplers.ddpm`; as in diffusers, others are "small".
_VARIANCES = {"fixed_large": "large", "fixed_large_log": "large", "learned_range": LEARNED, "learned": "none"}
# `sqrt(v) z = exp(log(v) / 2) z`. The least logarithm is finite, as infinity times a column that is 0 would be NaN.
_SQUARE_ROOT = {"cz": 1.0, "cv": 0.5}
_LEAST_LOGARITHM = -200.0


class DDPM(Noised, Preserving):
    """What the schedulers share that step to the posterior at the next timestep of the run."""

    _of_run = (*Adapter._of_run, "custom_timesteps")
    _at_any_time = True
    _output: ClassVar[type]

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> Any:
        """Step from a timestep to the next one; with `seed` the noise is the project's own."""
        variance, dtype = self.config.variance_type, model_output.dtype
        if variance in ("learned", "learned_range") and model_output.shape == sample.shape:
            raise InputError(f"variance_type {variance!r} needs a model whose output has twice the sample's channels")
        options = {}
        if variance == "learned" and whole_loop.running.get() is None:
            model_output, options["logarithm"] = _with_logarithm(model_output, sample.shape[1]), True
        noise = Noise(generator, seed, dtype=dtype)
        stepped = self._take(model_output, timestep, sample, noise, options, torch.promote_types(sample.dtype, dtype))
        return self._output(*stepped) if return_dict else tuple(stepped)

    def _alone(self, run: Run, time: float) -> Run:
        raise InputError(f"timestep {time:g} is none of scheduler.timesteps: pass one of those to step")

    def _plan(self, run: Run, first: int, gap: int | None = None, logarithm: bool = False) -> Plan:
        """Return the plan of a run, or, with a gap, that of the means that many timesteps below each of its times."""
        variance = self.config.variance_type
        if variance == "learned" and gap is None and not logarithm:
            raise InputError("a plan has no square root of a learned variance: use learned_range, or step alone")
        times = [int(time) for time in run.times[first:]]
        lands = [*times[1:], -1] if gap is None else [time - gap for time in times]
        pairs = list(zip(times, lands, strict=True))
        steps = [(self._level(time), self._level(land)) for time, land in pairs]
        rows = self._rows(steps)
        for (time, land), (now, after) in zip(pairs, steps, strict=True):
            adds = gap is None and time > 0
            kind = _VARIANCES.get(variance, "small") if adds else "none"
            root = _SQUARE_ROOT if adds and variance == "learned" else {}
            add_ddpm(rows, now, after, kind, self._beta(time, land), **root)
        return rows.plan(init_scale=1.0)

    def _beta(self, time: int, land: int) -> float:
        """Return the variance of the noise between two timesteps.

        Near clean data most digits of the levels' ratio are lost in it. So the ratio is rounded where diffusers rounds.
        """
        now, after = np.maximum(self._alpha_bars[[time, land]], TINY**2)  # both may be 0, as float32 ends somewhere
        return float(1 - (now / after if land >= 0 else now))


class DDPMScheduler(DDPM, Adapter, diffusers.DDPMScheduler):
    __doc__ = diffusers.DDPMScheduler.__doc__
    _output = DDPMSchedulerOutput


class DDPMParallelScheduler(DDPM, Adapter, diffusers.DDPMParallelScheduler):
    __doc__ = diffusers.DDPMParallelScheduler.__doc__
    _output = DDPMParallelSchedulerOutput

    def batch_step_no_noise(self, model_output: Tensor, timesteps: Tensor, sample: Tensor) -> Tensor:
        """Step each sample [B, ...] from a timestep of its own [B] to the mean `T // num_inference_steps` below it."""
        count = self.config.num_train_timesteps
        return self._step_each(model_output, timesteps, sample, {"gap": count // (self.num_inference_steps or count)})


def _with_logarithm(model_output: Tensor, channels: int) -> Tensor:
    """Return a network's output with the logarithm of the variance in it, which is behind its first channels."""
    prediction, variance = model_output[:, :channels], model_output[:, channels:]
    exact = variance.to(torch.promote_types(variance.dtype, torch.float32))
    return torch.cat([prediction, exact.log().clamp(min=_LEAST_LOGARITHM)], dim=1)
