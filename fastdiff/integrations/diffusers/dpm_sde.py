"""DPM-Solver++ of two stages, with the noise of one Brownian motion."""

from __future__ import annotations

from typing import Any, ClassVar

import diffusers
import torch
from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler, DPMSolverSDESchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Noise, Place, Seed
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.integrations.diffusers.second_order import Halfway
from fastdiff.plan import Plan
from fastdiff.samplers.dpm_sde import add_stochastic


class DPMSolverSDEScheduler(Halfway, Adapter, diffusers.DPMSolverSDEScheduler):
    __doc__ = diffusers.DPMSolverSDEScheduler.__doc__
    _of_run: ClassVar[tuple[str, ...]] = (*Adapter._of_run, "noise_sampler")
    noise_sampler_seed: Any

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
        *,
        seed: Seed | None = None,
    ) -> DPMSolverSDESchedulerOutput | tuple[Tensor, Tensor]:
        """Carry out a row, of which each step but the last has two; with `seed` the noise is the project's own."""
        one_path = seed is not None or self.seed is not None
        noise = Noise(seed=seed, dtype=sample.dtype)
        stepped = self._take(model_output, timestep, sample, noise, s_noise=float(s_noise), one_path=one_path)
        return DPMSolverSDESchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _plan(self, run: Run, first: int, s_noise: float = 1.0, one_path: bool = True) -> Plan:
        rows, steps = self._steps(run, first)
        for step, middle in steps:
            add_stochastic(rows, step._replace(noise_scale=s_noise), middle, one_path=one_path)
        return rows.plan()

    def _always_draws(self, row: int, run: Run) -> bool:
        return run.values["noise_sampler"] is None  # as in diffusers, the first step begins the motion

    def _draw(self, noise: Noise, like: Tensor, place: Place) -> Tensor:
        """Return the increment of the run's Brownian motion over a stage, of unit variance."""
        run, row = place
        sigmas = run.values["sigmas"].cpu()
        if run.values["noise_sampler"] is None:
            ends = float(sigmas[sigmas > 0].min()), float(sigmas.max())
            like = torch.empty_like(like, dtype=noise.dtype)
            run.values["noise_sampler"] = BrownianTreeNoiseSampler(like, *ends, self.noise_sampler_seed)
        start, end = _stage(sigmas, row)
        increment: Tensor = run.values["noise_sampler"](start, end) if end > 0 else torch.zeros_like(like)
        return increment


def _stage(sigmas: Tensor, row: int) -> tuple[Tensor, Tensor]:
    """Return the sigmas between which a row's stage lies, rounded as diffusers rounds them: so fine is the motion."""
    first = row - row % 2
    start, end = sigmas[first].log(), sigmas[first + 1].log()
    if row == first:
        end = start + (end - start) * 0.5
    return start.exp(), end.exp()
