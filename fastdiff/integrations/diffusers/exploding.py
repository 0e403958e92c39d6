"""What the schedulers share whose state is `x0 + sigma eps`."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.integrations.diffusers.adapter import Adapter
from fastdiff.integrations.diffusers.levels import exploding
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.samplers.levels import CLEAN, Level


class Exploding(Adapter):
    """A scheduler whose state is `x0 + sigma eps` and whose network is given `x / sqrt(sigma^2 + 1)`."""

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """Return the sample [B, ...] as the network is given it at the timestep, scaled for its sigma."""
        run, row = self._place_of_input(timestep)
        return sample * self._level(run, row).scale_in

    def _level(self, run: Run, row: int) -> Level:
        """Return the level that the network is asked at in a row of the run, or that its last step lands on."""
        sigma = float(run.sigmas[row])
        return self._level_of(sigma, run.times[row] if row < len(run.times) else math.nan) if sigma else CLEAN

    def _level_of(self, sigma: float, time: float) -> Level:
        return exploding(sigma, time)

    def _levels(self, run: Run, first: int) -> list[Level]:
        """Return the levels of the run from a row on, and the one that the last step lands on."""
        return [self._level(run, row) for row in range(first, len(run.times) + 1)]


def refuse_index(timestep: Any) -> None:
    """Raise InputError for a whole number, which is an index by mistake where timesteps are not whole."""
    if isinstance(timestep, int) or (isinstance(timestep, Tensor) and not timestep.is_floating_point()):
        raise InputError(
            "step takes one of scheduler.timesteps, not its index: pass timestep as a float or float tensor"
        )
