"""Methods of two stages a step: Heun's, and the midpoint methods of k-diffusion."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed, Stepped
from fastdiff.integrations.diffusers.exploding import Exploding
from fastdiff.integrations.diffusers.levels import EXPLODING, prediction
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Rows
from fastdiff.samplers.stages import Step, add_heun, add_midpoint, ancestral


class Paired(Exploding):
    """A scheduler whose steps have two rows each, but the last, onto clean data, has one."""

    _step_index: int | None

    @property
    def state_in_first_order(self) -> bool:
        """Whether the row to come is the first of its step."""
        return not self._step_index or self._step_index % 2 == 0

    def _take(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, noise: Noise, **options: Any
    ) -> Stepped:
        """Carry out a row; its results have the dtype that sample and output have together, as in diffusers."""
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        state, x0 = self._step(model_output, timestep, sample, noise, options, x0=True, dtype=dtype)
        return Stepped(state, None if x0 is None else x0.to(dtype))

    def _steps(self, run: Run, first: int) -> tuple[Rows, list[tuple[Step, Level]]]:
        """Return rows to fill, and the steps, each with the level at which its second row asks the network."""
        if first % 2:
            raise InputError(f"row {first} is the second of a step: begin with the first, at index {first - 1}")
        begins = range(first, len(run.times), 2)
        rows = Rows(
            EXPLODING,
            None,
            levels=[*(self._level(run, row) for row in begins), self._level(run, len(run.times))],
            clip=self.config.clip_sample_range if self.config.get("clip_sample") else None,
            prediction=prediction(self.config.prediction_type),
        )
        steps = zip(begins, rows.steps(), strict=True)
        return rows, [(Step(now, after, after), self._level(run, row + 1)) for row, (now, after) in steps]


class Halfway(Paired):
    """A scheduler whose second rows ask the network halfway, in the logarithm, between the step's sigmas."""

    def _level(self, run: Run, row: int) -> Level:
        if row % 2 == 0 or row == len(run.times):
            return super()._level(run, row)
        return self._level_of(math.sqrt(run.sigmas[row - 1] * run.sigmas[row]), run.times[row])


class TwoStages(Paired):
    """A scheduler whose steps are those of an ODE, perhaps with noise behind."""

    @abstractmethod
    def _add_step(self, rows: Rows, step: Step, middle: Level) -> None:
        """Add the rows of a step, whose second one asks the network at the level `middle`."""

    def _plan(self, run: Run, first: int) -> Plan:
        rows, steps = self._steps(run, first)
        for step, middle in steps:
            self._add_step(rows, step, middle)
        return rows.plan()


class Noiseless(TwoStages):
    """A scheduler whose steps are those of an ODE alone."""

    _output: ClassVar[type]

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> Any:
        """Carry out a row, of which each step but the last has two; the arguments are those of diffusers' class."""
        stepped = self._take(model_output, timestep, sample, Noise(seed=seed))
        return self._output(*stepped) if return_dict else tuple(stepped)


class HeunDiscreteScheduler(Noiseless, Adapter, diffusers.HeunDiscreteScheduler):
    __doc__ = diffusers.HeunDiscreteScheduler.__doc__
    _output = HeunDiscreteSchedulerOutput

    def _add_step(self, rows: Rows, step: Step, middle: Level) -> None:
        add_heun(rows, step)


class KDPM2DiscreteScheduler(Halfway, Noiseless, Adapter, diffusers.KDPM2DiscreteScheduler):
    __doc__ = diffusers.KDPM2DiscreteScheduler.__doc__
    _output = KDPM2DiscreteSchedulerOutput

    def _add_step(self, rows: Rows, step: Step, middle: Level) -> None:
        add_midpoint(rows, step, middle)


class KDPM2AncestralDiscreteScheduler(TwoStages, Adapter, diffusers.KDPM2AncestralDiscreteScheduler):
    __doc__ = diffusers.KDPM2AncestralDiscreteScheduler.__doc__

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> KDPM2AncestralDiscreteSchedulerOutput | tuple[Tensor, Tensor]:
        """Carry out a row, of which each step but the last has two; the arguments are those of diffusers' class."""
        stepped = self._take(model_output, timestep, sample, Noise(generator, seed))
        return KDPM2AncestralDiscreteSchedulerOutput(*stepped) if return_dict else tuple(stepped)

    def _add_step(self, rows: Rows, step: Step, middle: Level) -> None:
        # The step goes down to sigma'^2 / sigma: halfway, in the logarithm, is sigma', the level of the second row.
        add_midpoint(rows, ancestral(rows, step, eta=1.0), middle)

    def _always_draws(self, row: int, run: Run) -> bool:
        return row % 2 == 1
