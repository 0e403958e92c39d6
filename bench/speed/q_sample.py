"""Noising data for training: `x_t = alpha_t x0 + sigma_t eps`, a level for each sample.

fastdiff draws eps inside and keeps none of it, as `noise_loss` draws it again; the others keep eps for their loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.bench.speed.samplers import SCHEDULE, scheduler
from fastdiff.bench.speed.work import CPU, Job, Tensors, Work, backend, images, noise_key, philox, with_gpu_backends
from fastdiff.ops.philox import STREAMS

DRAW = 7


class QSampleWork(Work):
    """Noise images [B, ...] of `dtype`, each to its own level; x_t is a new tensor of that dtype."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.x0 = images(shape, dtype, 0, device)
        self.level = torch.arange(shape[0], device=device) * (len(SCHEDULE) // shape[0])
        self.table = torch.from_numpy(np.stack([SCHEDULE.alpha, SCHEDULE.sigma], axis=1)).float().to(device)
        self.elements, self.traffic = self.x0.numel(), 2 * self.x0.nbytes

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff, plain torch, diffusers."""
        return {**with_gpu_backends(self.fastdiff, self.device), "eager": self.eager, "diffusers": self.diffusers}

    def fastdiff(self, ops: str = "auto") -> Job:
        """The op of a backend as `fastdiff.q_sample` calls it."""
        op = backend(ops, self.device).q_sample
        batch = len(self.x0)
        key, draw = noise_key(batch, self.device), torch.full((batch,), DRAW, device=self.device)
        call = partial(op, self.x0, self.level, self.table, key, draw, STREAMS["q_sample"], None, False)
        return self._job(call, partial(philox, self.shape, "q_sample", DRAW, self.device))

    def eager(self) -> Job:
        """Plain torch, in float32."""
        alpha, sigma = self.table.unbind(1)
        return self._job(partial(_eager, self.x0, self.level, alpha, sigma), self._randn)

    def diffusers(self) -> Job:
        """`add_noise` as a training script calls it."""
        job = self._job(partial(_add_noise, scheduler("DDPMScheduler", {}), self.x0, self.level), self._randn)
        return replace(job, computes=self.dtype)

    def _job(self, call: partial[Any], noise: Callable[[], Tensor]) -> Job:
        return Job(call, lambda found: {"x_t": found[0]}, self._expected, noise)

    def _randn(self) -> Tensor:
        return torch.randn(self.shape, dtype=self.dtype, device=self.device)

    def _expected(self, z: Tensor | None) -> Tensors:
        assert z is not None
        per_sample = (len(self.x0), *[1] * (self.x0.ndim - 1))
        level = self.level.cpu().numpy()
        alpha, sigma = (
            torch.from_numpy(values[level]).view(per_sample).to(self.device)
            for values in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        return {"x_t": alpha * self.x0.double() + sigma * z.double()}


def _eager(x0: Tensor, level: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn_like(x0)
    x_t = alpha[level].view(-1, 1, 1, 1) * x0 + sigma[level].view(-1, 1, 1, 1) * noise
    return x_t.to(x0.dtype), noise


def _add_noise(theirs: Any, x0: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
    noise = torch.randn_like(x0)
    return theirs.add_noise(x0, noise, level), noise
