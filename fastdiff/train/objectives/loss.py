"""What an objective is."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from fastdiff.guidance.branches import Model
from fastdiff.train.batch import Batch

# `loss(model, batch) -> [B]`, the loss of each sample, float32.
Loss = Callable[[Model, Batch], Tensor]
