"""DDIM, forwards and backwards."""

from __future__ import annotations

from typing import Any, ClassVar

import diffusers
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddim_inverse import DDIMSchedulerOutput as DDIMInverseSchedulerOutput
from diffusers.schedulers.scheduling_ddim_parallel import DDIMParallelSchedulerOutput
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed
from fastdiff.integrations.diffusers.preserving import Noised, Preserving
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.ddim import add_ddim


class DDIM(Preserving):
    """What the schedulers share that step from a timestep to the one `T // num_inference_steps` below or above."""

    _at_any_time = True
    num_inference_steps: Any

    def _check(self) -> None:
        """Raise ValueError if there is no such gap."""
        if self.num_inference_steps is None:
            raise ValueError("the number of inference steps is not set: call set_timesteps before step")

    def _gap(self, run: Run) -> int:
        """Return how many timesteps a step leads on."""
        gap: int = self.config.num_train_timesteps // run.values["num_inference_steps"]
        return gap


class Denoising(Noised, DDIM):
    """What the schedulers share that step to lower timesteps."""

    _output: ClassVar[type]
    final_alpha_cumprod: Tensor

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
    ) -> Any:
        """Step from a timestep to the one before it; with `seed` the noise is the project's own."""
        self._check()
        noise = Noise(generator, seed, variance_noise, spare=eta > 0)
        options = {"eta": float(eta), "use_clipped_model_output": bool(use_clipped_model_output)}
        stepped = self._take(model_output, timestep, sample, noise, options)
        return self._output(*stepped) if return_dict else tuple(stepped)

    def _always_draws(self, row: int, run: Run) -> bool:
        return True

    def _plan(
        self,
        run: Run,
        first: int,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        ends_clean: bool = False,
    ) -> Plan:
        gap, end = self._gap(run), 1.0 if ends_clean else float(self.final_alpha_cumprod)
        times = [int(time) for time in run.times[first:]]
        steps = [(self._level(time), self._level(time - gap, end)) for time in times]
        rows = self._rows(steps, rederive_eps=use_clipped_model_output)
        for now, after in steps:
            add_ddim(rows, now, now, after, eta)
        return rows.plan(init_scale=1.0)


class DDIMScheduler(Denoising, Adapter, diffusers.DDIMScheduler):
    __doc__ = diffusers.DDIMScheduler.__doc__
    _output = DDIMSchedulerOutput


class DDIMParallelScheduler(Denoising, Adapter, diffusers.DDIMParallelScheduler):
    __doc__ = diffusers.DDIMParallelScheduler.__doc__
    _output = DDIMParallelSchedulerOutput

    def batch_step_no_noise(
        self,
        model_output: Tensor,
        timesteps: Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
    ) -> Tensor:
        """Step each sample [B, ...] from a timestep of its own [B], without noise; as in diffusers, to clean data."""
        self._check()
        if eta != 0:
            raise InputError("batch_step_no_noise adds no noise: leave eta at 0, or use step")
        options = {"use_clipped_model_output": bool(use_clipped_model_output), "ends_clean": True}
        return self._step_each(model_output, timesteps, sample, options)


class DDIMInverseScheduler(DDIM, Adapter, diffusers.DDIMInverseScheduler):
    __doc__ = diffusers.DDIMInverseScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> DDIMInverseSchedulerOutput | tuple[Tensor, Tensor | None]:
        """Step to a timestep from the one before it; the arguments are those of diffusers' class."""
        self._check()
        stepped = self._take(model_output, timestep, sample, Noise(seed=seed), {})
        return DDIMInverseSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _plan(self, run: Run, first: int) -> Plan:
        gap, start = self._gap(run), float(self.initial_alpha_cumprod)
        times = [int(time) for time in run.times[first:]]
        last = self.config.num_train_timesteps - 1
        steps = [(self._level(min(time - gap, last), start), self._level(time)) for time in times]
        if self.config.prediction_type == "sample" and any(now.sigma == 0 for now, _ in steps):
            raise InputError("from x0 nothing is known of the noise of clean data: set set_alpha_to_one=False")
        rows = self._rows(steps)
        for now, after in steps:
            rows.add(now, now._replace(time=after.time), after, c0=after.alpha, ce=after.sigma)
        return rows.plan(init_scale=1.0)

    def _threshold(self) -> None:
        return None  # diffusers does not look at it
