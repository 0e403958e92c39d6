"""What the schedulers share whose state is `sqrt(abar) x0 + sqrt(1 - abar) eps`, and those whose rows stand alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.integrations.diffusers.adapter import Adapter, Noise, Place, Stepped
from fastdiff.integrations.diffusers.levels import PRESERVING, prediction, variance_preserving, x0_over
from fastdiff.integrations.diffusers.runs import Run, State
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Rows


class RowByRow(Adapter):
    """A scheduler whose rows need nothing of those before, so that they may be asked for in any order."""

    def _state(self, place: Place, sample: Tensor, options: dict[str, Any]) -> State:
        dtype = torch.promote_types(sample.dtype, torch.float32)
        return State(self._table(place.run, 0, options, sample.device, dtype), options, 0, sample)

    def _take(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        noise: Noise,
        options: dict[str, Any],
        dtype: torch.dtype | None = None,
    ) -> Stepped:
        """Take a step; state and x0 have the dtype that diffusers' arithmetic gives them, unless it is given."""
        dtype = dtype or torch.promote_types(sample.dtype, model_output.dtype)
        after, x0 = self._step(model_output, timestep, sample, noise, options, x0=True, dtype=dtype)
        return Stepped(after, None if x0 is None else x0.to(dtype))


class ByTimestep(Adapter):
    """A scheduler whose levels are those of `alphas_cumprod`, by timestep."""

    _copied: tuple[Tensor, NDArray[np.floating[Any]]] | None = None

    def _level(self, time: int, beyond: float = 1.0) -> Level:
        """Return the level of a timestep, or that of abar = `beyond` for those below 0."""
        return variance_preserving(float(self._alpha_bars[time]) if time >= 0 else beyond, time)

    @property
    def _alpha_bars(self) -> NDArray[np.floating[Any]]:
        """The levels as diffusers has them, in their own dtype."""
        if self._copied is None or self._copied[0] is not self.alphas_cumprod:
            self._copied = self.alphas_cumprod, self.alphas_cumprod.numpy(force=True)
        return self._copied[1]


class Noised(ByTimestep):
    """A scheduler that adds noise, for which diffusers puts `alphas_cumprod` on the samples' device."""

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return samples [B, ...] with noise added for their timesteps [B], as diffusers' class does."""
        alpha_bars = self._alpha_bars
        noised: Tensor = super().add_noise(original_samples, noise, timesteps)  # type: ignore[misc]
        self._copied = self.alphas_cumprod, alpha_bars  # a step need not wait for the device to know them
        return noised


class Preserving(ByTimestep, RowByRow):
    """A scheduler of such levels, whose x0 is found and bounded as the configuration says."""

    def _rows(self, steps: list[tuple[Level, Level]], rederive_eps: bool = False) -> Rows:
        """Return rows to fill for steps from a level to another; x0 is found and bounded as the configuration says."""
        read, limit, clip = prediction(self.config.prediction_type), self._threshold(), self._clip()
        if limit is not None:
            clip, read = 1.0, x0_over(read, min(limit[1], 1.0))
        levels = [*(now for now, _ in steps), steps[-1][1]]
        return Rows(PRESERVING, None, levels=levels, clip=clip, rederive_eps=rederive_eps, prediction=read)

    def _clip(self) -> float | None:
        """Return the bound on |x0|, or None."""
        return self.config.clip_sample_range if self.config.clip_sample else None

    def _step_each(self, model_output: Tensor, timesteps: Tensor, sample: Tensor, options: dict[str, Any]) -> Tensor:
        """Step each sample of a batch, without noise, from a timestep of its own [B]; float32 at least.

        The table has a row for each training timestep, so that a timestep on a device is the number of its row.
        """
        every = Run(self, self._runs.shown[0].values)
        every.times = [float(time) for time in range(len(self.alphas_cumprod))]
        x = sample.to(torch.promote_types(sample.dtype, torch.float32), copy=True)
        table = self._table(every, 0, options, x.device, x.dtype)
        rows = timesteps.to(x.device, torch.int64).reshape(-1).expand(len(x)).contiguous()
        table.step(x, model_output[:, : sample.shape[1]], rows, threshold=self._threshold())
        return x
