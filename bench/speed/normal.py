"""Standard normals into a tensor that is already there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastdiff.bench.speed.work import Job, Tensors, Work, noise_key, philox
from fastdiff.ops import dispatch
from fastdiff.ops.philox import STREAMS

DRAW = 7


class NormalWork(Work):
    """Fill z [B, ...] of `dtype`."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.z = torch.empty(shape, dtype=dtype)
        self.elements, self.traffic = self.z.numel(), self.z.nbytes

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff and torch's own generator, into the same tensor."""
        return {"fastdiff": self.fastdiff, "eager": self.eager}

    def fastdiff(self) -> Job:
        """The op `normal_`."""
        batch, op = len(self.z), dispatch.backend("auto", self.z.device).normal_
        call = partial(op, self.z, noise_key(batch), torch.full((batch,), DRAW), STREAMS["extra"])
        return self._job(call, partial(philox, tuple(self.z.shape), "extra", DRAW))

    def eager(self) -> Job:
        """`Tensor.normal_`, which is `torch.randn` without the allocation."""
        return self._job(partial(torch.Tensor.normal_, self.z), partial(torch.randn, self.z.shape, dtype=self.z.dtype))

    def _job(self, call: partial[Any], noise: Callable[[], Tensor]) -> Job:
        return Job(call, lambda _: {"z": self.z}, _expected, noise)


def _expected(z: Tensor | None) -> Tensors:
    assert z is not None
    return {"z": z.double()}
