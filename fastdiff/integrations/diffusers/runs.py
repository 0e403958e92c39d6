"""What a scheduler knows between two calls, kept for each run rather than for the scheduler.

A run begins with `set_timesteps`. Its timesteps know it: the storage of that tensor carries the run, so that a loop
that hands one of them to `step` is recognised, whoever called `set_timesteps` on the same scheduler since. And where
in the storage a timestep lies says which row it asks for, without a look at its value, for which the host would have
to wait for the device.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.integrations.diffusers.tables import Table
from fastdiff.schedules import Array

_RUN = "_fastdiff_run"
_MOST_STATES = 64


class State:
    """What one loop over the rows of a plan keeps from step to step.

    Attributes:
        table: the plan whose first row is the run's row `first`.
        options: what the plan was made with, beside the run.
        first: the row that the loop began with.
        row: the row to come.
        y, history: as the op `step` has them; None where the plan has none.
    """

    def __init__(self, table: Table, options: Mapping[str, Any], first: int, sample: Tensor) -> None:
        plan = table.plan
        self.table, self.options, self.first, self.row = table, options, first, first
        self.y = sample.to(table.dtype, copy=True) if plan.has_anchor else None
        slots = (plan.history_slots, *sample.shape)
        self.history: Tensor | list[Tensor] | None = None
        if plan.history_slots:
            self.history = sample.new_zeros(slots, dtype=table.dtype)
        self._thread = threading.get_ident()
        self._last: weakref.ref[Tensor] | None = None

    def fits(self, sample: Tensor) -> int:
        """Return how surely a sample is of this loop: it is what the last step returned, or it comes in its thread."""
        return 2 * (self._last is not None and self._last() is sample) + (self._thread == threading.get_ident())

    def differentiate(self, table: Table) -> None:
        """Let the loop go on with another table, in buffers of its dtype, so that no gradient's are overwritten."""
        self.table = table
        self.y = None if self.y is None else self.y.to(table.dtype, copy=True)
        self.history = None if self.history is None else [slot.to(table.dtype, copy=True) for slot in self.history]

    def advance(self, row: int, sample: Tensor) -> None:
        """Note that a row is done, and what its step returns."""
        self.row, self._last = row + 1, weakref.ref(sample)


class Run:
    """What `set_timesteps` sets, and the states of the loops that follow.

    Attributes:
        values: the scheduler's attributes that belong to the run, without the timesteps.
        times: the timesteps as numbers.
        states: of the loops, the latest last.
        tables: of its plans, with what they were made of.
    """

    def __init__(self, scheduler: object, values: Mapping[str, Any]) -> None:
        self.values: dict[str, Any] = dict(values)
        self.times: list[float] = []
        self.states: list[State] = []
        self.tables: dict[Any, tuple[Table, object]] = {}
        self._scheduler = weakref.ref(scheduler)
        self._begins_at, self._kind = 0, torch.empty(0)
        self._copied: tuple[Tensor, Tensor] | None = None

    def take(self, timesteps: Tensor) -> None:
        """Take timesteps [rows], each of which will know the run."""
        # The storage holds the run, which must not hold the storage: neither would ever be freed.
        self.times, self._begins_at = timesteps.tolist(), int(timesteps.storage_offset())
        self._kind = timesteps.new_empty(0)
        if timesteps.ndim == 1 and timesteps.is_contiguous():
            setattr(timesteps.untyped_storage(), _RUN, self)

    def timesteps(self) -> Tensor | None:
        """Return the timesteps anew, or None where there are none; they are found by their values."""
        return self._kind.new_tensor(self.times) if self.times else None

    @property
    def sigmas(self) -> Array:
        """The sigmas of the run as numbers, float64 [rows + 1] for most schedulers."""
        sigmas = self.values["sigmas"]
        if isinstance(sigmas, Tensor) and not sigmas.is_cpu:
            if self._copied is None or self._copied[0] is not sigmas:
                self._copied = sigmas, sigmas.cpu()  # waits for the device, once
            sigmas = self._copied[1]
        return np.asarray(sigmas, dtype=np.float64)

    @property
    def begin(self) -> int | None:
        """The row to begin with, where a pipeline has said so."""
        return self.values.get("_begin_index")

    def place(self, timestep: Tensor) -> int:
        """Return the row of a timestep that knows this run."""
        return int(timestep.storage_offset()) - self._begins_at

    def row_at(self, time: float) -> int | None:
        """Return the row for a time: the one to come if that has it, else the first that has.

        Where more than one has, it is the second, as in diffusers: a loop that begins within a step of two stages
        begins with a step of its own. None if no row has the time.
        """
        step = self.values.get("_step_index")
        if step is not None and step < len(self.times) and self.times[step] == time:
            return int(step)
        rows = [row for row, other in enumerate(self.times) if other == time]
        return rows[min(1, len(rows) - 1)] if rows else None

    def state(self, row: int, sample: Tensor) -> State | None:
        """Return the state of the loop that asks for a row, or None for one that begins.

        Of loops that fit alike it is the one that began first, as loops that take turns keep their order.
        """
        waiting = [state for state in self.states if state.row == row]
        return max(waiting, key=lambda state: state.fits(sample)) if waiting else None

    def begins(self, state: State) -> None:
        """Take in the state of a loop that begins; of loops that were never ended only the latest are kept."""
        self.states = [*self.states[1 - _MOST_STATES :], state]

    def advance(self, state: State, row: int, sample: Tensor) -> None:
        """Note that a loop has done a row, and what its step returns. The state of one that has ended is let go."""
        state.advance(row, sample)
        self.values["_step_index"] = row + 1
        if state.row >= len(self.times):
            self.states = [other for other in self.states if other is not state]

    def of(self, scheduler: object) -> bool:
        """Return whether this is a run of a scheduler."""
        return self._scheduler() is scheduler


def run_of(timestep: Tensor, scheduler: object) -> Run | None:
    """Return the run of a scheduler that a timestep knows, or None."""
    run = getattr(timestep.untyped_storage(), _RUN, None)
    return run if isinstance(run, Run) and timestep.numel() == 1 and run.of(scheduler) else None


class Runs:
    """The run that the attributes of a scheduler show in each thread, with its timesteps.

    A thread that has begun none sees the one that was begun last.

    Attributes:
        tables: of the plans of all runs, by what they were made of.
    """

    def __init__(self, run: Run) -> None:
        self._of_thread = threading.local()
        self._latest: tuple[Run, Tensor | None] = run, None
        self.tables: dict[Any, tuple[Table, object]] = {}

    def __deepcopy__(self, memo: object) -> Runs:
        """Return these: who copies a scheduler's attributes to put them back later finds its loops as they are then."""
        return self

    @property
    def shown(self) -> tuple[Run, Tensor | None]:
        """The run of this thread, and its timesteps."""
        found: tuple[Run, Tensor | None] = getattr(self._of_thread, "shown", self._latest)
        return found

    def show(self, run: Run, timesteps: Tensor | None) -> None:
        """Let this thread see a run; its timesteps, which know it, may be None where a part of them is still held."""
        self._of_thread.shown = self._latest = run, timesteps
