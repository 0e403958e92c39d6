"""PNDM and PLMS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff import prediction as predictions
from fastdiff.errors import InputError
from fastdiff.integrations.diffusers.adapter import Adapter, Noise, Seed
from fastdiff.integrations.diffusers.levels import PRESERVING, prediction
from fastdiff.integrations.diffusers.preserving import Noised
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.prediction import Prediction
from fastdiff.samplers.adams import EQUAL_STEPS, MAX_ORDER
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Rows
from fastdiff.schedules import Array

_KEPT = MAX_ORDER - 1  # outputs that the multistep rows read
_SCRATCH = _KEPT  # of the second stage of Runge-Kutta
_STAGES = 4


class PNDMScheduler(Noised, Adapter, diffusers.PNDMScheduler):
    __doc__ = diffusers.PNDMScheduler.__doc__
    _of_run = (
        *(*Adapter._of_run, "_timesteps", "prk_timesteps", "plms_timesteps"),
        *("ets", "counter", "cur_model_output", "cur_sample"),
    )
    _at_any_time = True

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
        if self.num_inference_steps is None:
            raise ValueError("the number of inference steps is not set: call set_timesteps before step")
        if self.ets:  # outputs given by hand
            return super().step(model_output, timestep, sample, return_dict)
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        found = self._step(model_output, timestep, sample, Noise(seed=seed), {}, dtype=dtype).sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def step_prk(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take a stage of a Runge-Kutta step, with which a loop begins."""
        if self.ets:
            return super().step_prk(model_output, timestep, sample, return_dict)
        if self.num_inference_steps is not None and not self._begins(timestep, sample):
            raise InputError("no step of Runge-Kutta is left: call step_plms, or step for whichever is due")
        return self.step(model_output, timestep, sample, return_dict)

    def step_plms(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor]:
        """Take a multistep step, which goes on from Runge-Kutta's unless the configuration skips those."""
        if self.ets:
            return super().step_plms(model_output, timestep, sample, return_dict)
        if self.num_inference_steps is not None and self._begins(timestep, sample):
            raise InputError("step_plms needs the steps of Runge-Kutta before it: call step_prk, or set skip_prk_steps")
        return self.step(model_output, timestep, sample, return_dict)

    def _begins(self, timestep: int | Tensor, sample: Tensor) -> bool:
        """Return whether a stage of Runge-Kutta is due."""
        run, row = self._place(timestep)
        state = run.state(row, sample)
        return (row - state.first if state else 0) < len(self._begun_by(run))

    def _begun_by(self, run: Run) -> list[int]:
        """Return the timesteps of the Runge-Kutta stages."""
        return [] if self.config.skip_prk_steps else [int(time) for time in run.values["prk_timesteps"]]

    def _plan(self, run: Run, first: int) -> Plan:
        steps = _Steps(
            [int(time) for time in run.times[first:]],
            self._begun_by(run),
            self.config.num_train_timesteps // run.values["num_inference_steps"],
        )
        moves = [steps.move(count) for count in range(len(steps.times))]
        levels = [self._level(time) for time in (*steps.times, moves[-1][1])]
        rows = Rows(PRESERVING, None, levels=levels, clip=None, prediction=self._outputs)
        for count, ends in enumerate(moves):
            columns = self._columns(steps, count, *self._transfer(*ends))
            rows.add(levels[count], None, self._level(ends[1]), **columns)
        return rows.plan(stores="eps", init_scale=1.0)

    def _level(self, time: int, beyond: float | None = None) -> Level:
        return super()._level(time, float(self.final_alpha_cumprod) if beyond is None else beyond)

    def _outputs(self, alpha: Array, sigma: Array) -> Prediction:
        """Return the coefficients with the network's output for eps: it is outputs that diffusers combines."""
        found = predictions.coefficients(prediction(self.config.prediction_type), alpha, sigma)
        return found._replace(ex=0 * alpha, eo=1 + 0 * alpha)

    def _transfer(self, start: int, end: int) -> tuple[float, float]:
        """Return what a state and an output give to the state at another timestep (Liu et al. 2022, eq. 9)."""
        now, after = self._level(start), self._level(end)
        if self.config.prediction_type == "v_prediction":
            return now.alpha * after.alpha + now.sigma * after.sigma, now.alpha * after.sigma - after.alpha * now.sigma
        carry = after.alpha / now.alpha
        return carry, after.sigma - carry * now.sigma

    def _columns(self, steps: _Steps, count: int, carry: float, slope: float) -> dict[str, Any]:
        """Return the columns of a row, be it a stage of Runge-Kutta or a multistep step."""
        if count >= len(steps.begun_by):
            return steps.multistep(count, carry, slope)
        kept, gained = self._transfer(*steps.whole(count))
        return steps.stage(count, carry, slope, gained / kept)


class _Steps(NamedTuple):
    """The steps of a loop: stages of Runge-Kutta, and then multistep.

    Attributes:
        times: timesteps that the network is asked at.
        begun_by: timesteps of the stages that loops begin with.
        gap: of timesteps, from one step to the next.
    """

    times: list[int]
    begun_by: list[int]
    gap: int

    def move(self, count: int) -> tuple[int, int]:
        """Return the timesteps from which and to which a row leads, as diffusers counts them."""
        time = self.times[count]
        if count < len(self.begun_by):
            return self.begun_by[count // _STAGES * _STAGES], time - (0 if count % 2 else self.gap // 2)
        return (time + self.gap, time) if count == 1 else (time, time - self.gap)

    def whole(self, count: int) -> tuple[int, int]:
        """Return the timesteps from which and to which the Runge-Kutta step of a row leads."""
        last = count // _STAGES * _STAGES + _STAGES - 1
        return self.move(min(last, len(self.times) - 1))

    def stage(self, count: int, carry: float, slope: float, gain: float) -> dict[str, Any]:
        """Return the columns of a Runge-Kutta stage.

        The anchor is the state that the step began with and `gain` times the mean output, as far as it is known,
        which the stages take back.
        """
        slot, back = f"ch{count // _STAGES}", -carry * gain
        return [
            {"cx": carry, "ce": slope, "dx": 1.0, "dy": 0.0, "de": gain / 6, "slot": count // _STAGES},
            {"cy": carry, "ce": slope, "de": gain / 3, slot: back / 6, "slot": _SCRATCH},
            {"cy": carry, "ce": slope, "de": gain / 3, slot: back / 6, f"ch{_SCRATCH}": back / 3},
            {"cy": carry, "ce": slope / 6},
        ][count % _STAGES]

    def multistep(self, count: int, carry: float, slope: float) -> dict[str, Any]:
        """Return the columns of a multistep row; the second of a loop is Heun's, again from where the first began."""
        if count == 1:
            return {"cy": carry, "ce": slope / 2, "ch0": slope / 2}
        begun = len(self.begun_by)
        newest = begun // _STAGES + count - begun if begun else max(count - 1, 0)
        past = EQUAL_STEPS[min(newest, _KEPT)]
        reads = _read(newest, [slope * weight for weight in past])
        anchor = {"dx": 1.0, "dy": 0.0} if count == 0 else {}
        return {"cx": carry, "ce": slope * (1 - sum(past)), "slot": newest % _KEPT, **reads, **anchor}


def _read(newest: int, weights: Sequence[float]) -> dict[str, float]:
    return {f"ch{(newest - 1 - k) % _KEPT}": weight for k, weight in enumerate(weights)}
