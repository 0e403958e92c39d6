"""Noise and loss of a training step of a v prediction, from clean data and the network's output to their gradient.

The network's input is `x_t = alpha x0 + sigma eps`, its target `v = alpha eps - sigma x0`. fastdiff draws eps three
times and keeps neither it nor v; plain torch, as training scripts are written, keeps both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

import fastdiff as fd
from fastdiff.bench.speed.samplers import SCHEDULE
from fastdiff.bench.speed.work import CPU, SEED, Job, Tensors, Work, images, philox, with_gpu_backends
from fastdiff.bench.speed.work import backend as backend_of

DRAW = 7
WHOSE: dict[str, Any] = {"step": DRAW, "stream": "train"}


class TrainStepWork(Work):
    """x0 and the network's input are float32 [B, ...], as under autocast; its output and gradient are of `dtype`."""

    gradients = True
    memory = True

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.shape, self.device = shape, device
        self.x0, self.out = images(shape, torch.float32, 0, device), images(shape, dtype, 1, device).requires_grad_()
        levels, batch = len(SCHEDULE), shape[0]  # those in the middle, where alpha and sigma tell of the noise alike
        self.level = levels // 4 + torch.arange(batch, device=device) * (levels // 2) // batch
        self.elements, self.traffic = self.x0.numel(), 4 * self.x0.nbytes + 3 * self.out.nbytes

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff, and plain torch as a training script has it."""
        return {**with_gpu_backends(self.fastdiff, self.device), "eager": self.eager}

    def fastdiff(self, ops: str = "auto") -> Job:
        """What a trainer calls, by a backend."""
        backend_of(ops, self.device)
        noise = partial(philox, self.shape, "train", DRAW, self.device)
        return self._job(partial(_redrawn, self.x0, self.level, self.out, ops), noise)

    def eager(self) -> Job:
        """In float32, with levels looked up in tables."""
        alpha, sigma = (torch.from_numpy(of.copy()).float().to(self.device) for of in (SCHEDULE.alpha, SCHEDULE.sigma))
        noise = partial(torch.randn, self.shape, device=self.device)
        return self._job(partial(_kept, self.x0, self.level, self.out, alpha, sigma), noise)

    def _job(self, call: partial[Any], noise: Callable[[], Tensor]) -> Job:
        return Job(call, _named, self._expected, noise)

    def _expected(self, z: Tensor | None) -> Tensors:
        assert z is not None
        alpha, sigma = (
            torch.from_numpy(of[self.level.cpu().numpy()]).view(-1, 1, 1, 1).to(self.device)
            for of in (SCHEDULE.alpha, SCHEDULE.sigma)
        )
        x0, eps = self.x0.double(), z.double()
        residual = self.out.detach().double() - (alpha * eps - sigma * x0)
        gradient = 2 / residual.numel() * residual
        return {"x_t": alpha * x0 + sigma * eps, "loss": residual.square().mean(), "gradient": gradient}


def _redrawn(x0: Tensor, level: Tensor, out: Tensor, backend: str) -> tuple[Tensor, ...]:
    x_t = fd.q_sample(x0, level, SCHEDULE, SEED, **WHOSE, scaled=True, backend=backend)
    target: dict[str, Any] = {"x0": x0, "t": level, "schedule": SCHEDULE, "prediction": "v"}
    loss = fd.noise_loss(out, SEED, **WHOSE, **target, backend=backend)
    return x_t, loss, *torch.autograd.grad(loss, out)


def _kept(x0: Tensor, level: Tensor, out: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, ...]:
    noise = torch.randn_like(x0)
    alpha, sigma = alpha[level].view(-1, 1, 1, 1), sigma[level].view(-1, 1, 1, 1)
    x_t = alpha * x0 + sigma * noise
    target = alpha * noise - sigma * x0
    loss = functional.mse_loss(out.float(), target)
    return x_t, loss, *torch.autograd.grad(loss, out)


def _named(found: tuple[Tensor, ...]) -> Tensors:
    x_t, loss, gradient = found
    return {"x_t": x_t, "loss": loss.detach(), "gradient": gradient}
