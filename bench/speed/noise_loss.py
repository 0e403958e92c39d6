"""The training loss `mean (pred - eps)^2` and its gradient with respect to pred.

fastdiff draws eps again, once for the loss and once for the gradient; plain torch reads the eps that was kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fastdiff.bench.speed.work import CPU, Job, Tensors, Work, backend, images, noise_key, philox, with_gpu_backends
from fastdiff.ops.philox import STREAMS

DRAW = 7


class NoiseLossWork(Work):
    """Loss and gradient of predictions [B, ...] of `dtype`; eps is float32."""

    gradients = True

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.device = device
        self.pred = images(shape, dtype, 0, device).requires_grad_()
        self.eps = philox(shape, "q_sample", DRAW, device)
        self.elements, self.traffic = self.pred.numel(), 3 * self.pred.nbytes

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff and plain torch, which is also what the training scripts of diffusers do."""
        return {**with_gpu_backends(self.fastdiff, self.device), "eager": self.eager}

    def fastdiff(self, ops: str = "auto") -> Job:
        """The ops of a backend as `fastdiff.noise_loss` calls them."""
        batch, op = len(self.pred), backend(ops, self.device).noise_loss
        key, draw = noise_key(batch, self.device), torch.full((batch,), DRAW, device=self.device)
        return self._job(_redrawn, op, self.pred, key, draw)

    def eager(self) -> Job:
        """The mean squared error in float32."""
        return self._job(_kept, self.pred, self.eps)

    def _job(self, function: Callable[..., Any], *arguments: Any) -> Job:
        return Job(partial(function, *arguments), _named, self._expected)

    def _expected(self, _: object) -> Tensors:
        residual = self.pred.detach().double() - self.eps
        return {"loss": residual.square().mean(), "gradient": 2 / residual.numel() * residual}


def _redrawn(op: Callable[..., Tensor], pred: Tensor, key: Tensor, draw: Tensor) -> tuple[Tensor, ...]:
    loss = op(pred, key, draw, STREAMS["q_sample"]).mean()
    return loss, *torch.autograd.grad(loss, pred)


def _kept(pred: Tensor, eps: Tensor) -> tuple[Tensor, ...]:
    loss = functional.mse_loss(pred.float(), eps)
    return loss, *torch.autograd.grad(loss, pred)


def _named(found: tuple[Tensor, ...]) -> Tensors:
    loss, gradient = found
    return {"loss": loss.detach(), "gradient": gradient}
