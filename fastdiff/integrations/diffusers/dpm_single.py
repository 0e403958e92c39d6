"""DPM-Solver and DPM-Solver++, singlestep."""

from __future__ import annotations

from typing import ClassVar

import diffusers
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Seed
from fastdiff.integrations.diffusers.dpm import SOLVERS, DPMSolver, misprinted
from fastdiff.integrations.diffusers.levels import PRESERVING
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.plan import Plan
from fastdiff.samplers.exponential import Integral, add_restarting, exact_square, rows_of, solver_mean


class DPMSolverSinglestepScheduler(DPMSolver, diffusers.DPMSolverSinglestepScheduler):
    __doc__ = diffusers.DPMSolverSinglestepScheduler.__doc__
    _of_run: ClassVar[tuple[str, ...]] = (*Adapter._of_run, "order_list")

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generator | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Carry out a stage of a step; with `seed` the noise, of its own for each stage, is the project's."""
        noise = Noise(generator, seed, dtype=self._dtype(model_output, sample))
        dtype = torch.promote_types(sample.dtype, model_output.dtype)
        found = self._step(model_output, timestep, sample, noise, {}, dtype=dtype).sample
        return SchedulerOutput(prev_sample=found) if return_dict else (found,)

    def _plan(self, run: Run, first: int) -> Plan:
        rows = rows_of(PRESERVING, None, self._predicts, **self._options(run, first))
        orders = run.values["order_list"][first:]
        # A loop that begins within a step has no earlier predictions.
        add_restarting(rows, [self._stage(i, min(order, i + 1)) for i, order in enumerate(orders)])
        return rows.plan(stores=self._predicts)

    def _stage(self, row: int, order: int) -> Integral:
        """Return a stage that goes through the predictions of `order` rows, or, midpoint, of the first and the last."""
        start, solver = row + 1 - order, self.config.solver_type
        nodes = range(start, row + 1, max(order - 1, 1) if solver == "midpoint" else 1)
        mean = solver_mean("heun" if order == 3 else solver, *SOLVERS)
        square = misprinted(exact_square) if self._eta else exact_square
        return Integral(start, row + 1, nodes, self._predicts, self._eta, mean, square)
