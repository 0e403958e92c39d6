"""What one step of training is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

STREAM = "train"


class WhoseNoise(TypedDict):
    """Arguments of `fastdiff.q_sample` and `fastdiff.noise_loss`."""

    seed: int
    index: Tensor
    step: int
    stream: str


@dataclass(frozen=True)
class Batch:
    """A process's share of a step.

    Noise is a function of (seed, index, step) alone: a sample's is the same however many processes share a batch.

    Attributes:
        x0: clean data [B, ...].
        t: schedule indices, int64 [B].
        weight: factors of the losses for the way t was drawn, float32 [B].
        label: true classes, int64 [B]; 0 for data without classes.
        cond: what the network is told, keyword arguments of the model: labels, some of them dropped.
        index: positions within the whole batch, int64 [B].
        seed, step: of the run.
    """

    x0: Tensor
    t: Tensor
    weight: Tensor
    label: Tensor
    cond: dict[str, Any]
    index: Tensor
    seed: int
    step: int

    @property
    def whose_noise(self) -> WhoseNoise:
        """Whose noise the batch's data are given: that of (seed, index, step) in the stream "train"."""
        return {"seed": self.seed, "index": self.index, "step": self.step, "stream": STREAM}
