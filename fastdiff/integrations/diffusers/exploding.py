"""What the schedulers share whose state is `x0 + sigma eps`."""

from __future__ import annotations

import math

from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter
from fastdiff.integrations.diffusers.levels import exploding
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.samplers.levels import CLEAN, Level


class Exploding(Adapter):
    """A scheduler whose state is `x0 + sigma eps` and whose network is given `x / sqrt(sigma^2 + 1)`."""

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """Return the sample [B, ...] as the network is given it, `sample / sqrt(sigma^2 + 1)`."""
        run, row = self._place(timestep)
        self.is_scale_input_called = True
        return sample / math.hypot(run.sigmas[row], 1.0)

    def _levels(self, run: Run, first: int) -> list[Level]:
        """Return the levels of the run from a row on, and the one that the last step lands on."""
        times = [*run.times, math.nan]
        pairs = list(zip(run.sigmas.tolist(), times, strict=True))[first:]
        return [exploding(sigma, time) if sigma else CLEAN for sigma, time in pairs]
