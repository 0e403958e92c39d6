"""Euler's method for flow matching, where x is `(1 - sigma) x0 + sigma eps` and the network predicts `eps - x0`."""

from __future__ import annotations

import math

import diffusers
import torch
from diffusers.schedulers import scheduling_flow_match_euler_discrete as theirs
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.integrations.diffusers.adapter import Adapter, Generator, Noise, Place, Seed
from fastdiff.integrations.diffusers.exploding import refuse_index
from fastdiff.integrations.diffusers.levels import PRESERVING
from fastdiff.integrations.diffusers.runs import Run
from fastdiff.integrations.diffusers.tables import Table
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level
from fastdiff.samplers.rows import Rows

# Older versions of diffusers draw from torch's own generator whatever generator they are given.
_HEEDS_GENERATOR = hasattr(theirs, "randn_tensor")
# How far below a token's sigma the one that it steps to lies at least.
_APART = 1e-6


class FlowMatchEulerDiscreteScheduler(Adapter, diffusers.FlowMatchEulerDiscreteScheduler):
    __doc__ = diffusers.FlowMatchEulerDiscreteScheduler.__doc__
    init_noise_sigma = 1.0

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: Generator | None = None,
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
        *,
        seed: Seed | None = None,
    ) -> theirs.FlowMatchEulerDiscreteSchedulerOutput | tuple[Tensor]:
        """Step to the next sigma; the arguments are those of diffusers' class, which makes no use of those for churn.

        With `per_token_timesteps` [B, tokens] each token of the sample [B, tokens, channels] steps from its own time to
        the highest sigma below; diffusers expects the network's output turned in sign then, `x0 - eps`.
        """
        refuse_index(timestep)
        noise = Noise(generator if _HEEDS_GENERATOR else None, seed)
        if per_token_timesteps is None:
            stepped = self._step(model_output, timestep, sample, noise, {}).sample
        else:
            stepped = self._step_tokens(model_output, timestep, sample, noise, per_token_timesteps)
        return theirs.FlowMatchEulerDiscreteSchedulerOutput(prev_sample=stepped) if return_dict else (stepped,)

    def _plan(self, run: Run, first: int) -> Plan:
        levels = [self._level(run, row) for row in range(first, len(run.times) + 1)]
        rows = Rows(PRESERVING, None, levels=levels, clip=None, prediction="flow")
        for now, after in rows.steps():
            noise = {"cz": after.sigma} if self.config.stochastic_sampling else {"ce": after.sigma}
            rows.add(now, c0=after.alpha, **noise)
        return rows.plan(init_scale=1.0)

    def _level(self, run: Run, row: int) -> Level:
        """Return the level of a row. Where sigmas are inverted x0 and eps change places, and the steps are the same."""
        sigma = float(run.sigmas[row]) if row < len(run.sigmas) else 0.0  # there is none behind the training levels
        return Level(1 - sigma, sigma, run.times[row] if row < len(run.times) else math.nan, 1.0)

    def _always_draws(self, row: int, run: Run) -> bool:
        return bool(self.config.stochastic_sampling)

    def _draw(self, noise: Noise, like: Tensor, place: Place) -> Tensor:
        return super()._draw(noise, like.float(), place)  # as diffusers does, whatever the network's dtype is

    # --- a time for each token

    def _step_tokens(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, noise: Noise, times: Tensor
    ) -> Tensor:
        """Step each token as if it were a sample of its own, with a row of its own."""
        place = self._place(timestep)
        x = sample.to(torch.promote_types(sample.dtype, torch.float32), copy=True)
        table, z = self._table_of_tokens(place.run, times.to(x)), None
        if self.config.stochastic_sampling:
            key, z = self._noise(noise, table, sample, place)
            if key is not None:
                z = noises.normal(sample.shape, key[0], key[1], place.row, "step", x.device)
            z = None if z is None else z.flatten(0, 1)
        each = torch.arange(times.numel(), device=x.device)
        table.step(x.flatten(0, 1), model_output.flatten(0, 1), each, z=z)
        place.run.values["_step_index"] = place.row + 1
        return x

    def _table_of_tokens(self, run: Run, times: Tensor) -> Table:
        """Return a table with a row for each token, made on the device, as the tokens' times are known there alone."""
        now, sigmas = times / self.config.num_train_timesteps, run.values["sigmas"].to(times)[:, None, None]
        after = torch.where(sigmas < now - _APART, sigmas, 0.0).amax(dim=0)
        one = torch.ones_like(now)
        columns = {"po": one, "cx": one, "c0": now - after}  # x0 of the row is the network's output itself
        if self.config.stochastic_sampling:
            columns = {"px": one, "po": -now, "c0": 1 - after, "cz": after}
        layout = Plan.build("", [0.0], dict.fromkeys(columns, 1.0))
        values = torch.stack([columns[name].flatten() for name in layout.columns], dim=1)
        return Table(layout, times.device, times.dtype, values)
