"""Standard normals into a tensor that is already there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.speed.work import CPU, Job, Tensors, Work, backend, noise_key, philox, with_gpu_backends
from fastdiff.ops.philox import STREAMS

DRAW = 7


class NormalWork(Work):
    """Fill z [B, ...] of `dtype`."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.device = device
        self.z = torch.empty(shape, dtype=dtype, device=device)
        self.elements, self.traffic = self.z.numel(), self.z.nbytes

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff and torch's own generator, into the same tensor."""
        return {**with_gpu_backends(self.fastdiff, self.device), "eager": self.eager}

    def fastdiff(self, ops: str = "auto") -> Job:
        """The op `normal_` of a backend."""
        batch, op = len(self.z), backend(ops, self.device).normal_
        draw = torch.full((batch,), DRAW, device=self.device)
        call = partial(op, self.z, noise_key(batch, self.device), draw, STREAMS["extra"])
        return self._job(call, partial(philox, tuple(self.z.shape), "extra", DRAW, self.device))

    def eager(self) -> Job:
        """`Tensor.normal_`, which is `torch.randn` without the allocation."""
        noise = partial(torch.randn, self.z.shape, dtype=self.z.dtype, device=self.device)
        return self._job(partial(torch.Tensor.normal_, self.z), noise)

    def _job(self, call: partial[Any], noise: Callable[[], Tensor]) -> Job:
        return Job(call, lambda _: {"z": self.z}, _expected, noise)


def _expected(z: Tensor | None) -> Tensors:
    assert z is not None
    return {"z": z.double()}
