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

from fastdiff.bench.speed.work import Job, Tensors, Work, images, noise_key, philox
from fastdiff.ops import dispatch
from fastdiff.ops.philox import STREAMS

DRAW = 7


class NoiseLossWork(Work):
    """Loss and gradient of predictions [B, ...] of `dtype`; eps is float32."""

    gradients = True

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.pred = images(shape, dtype, seed=0).requires_grad_()
        self.eps = philox(shape, "q_sample", DRAW)
        self.elements, self.traffic = self.pred.numel(), 3 * self.pred.nbytes

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff and plain torch, which is also what the training scripts of diffusers do."""
        return {"fastdiff": self.fastdiff, "eager": self.eager}

    def fastdiff(self) -> Job:
        """The ops as `fastdiff.noise_loss` calls them."""
        batch, op = len(self.pred), dispatch.backend("auto", self.pred.device).noise_loss
        return self._job(_redrawn, op, self.pred, noise_key(batch), torch.full((batch,), DRAW))

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
