"""Embeddings of time and class that every network here shares."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.errors import InputError

MAX_PERIOD = 10_000.0


def sinusoidal(t: Tensor, width: int) -> Tensor:
    """Cosines and sines of t [B] at `half = width // 2` frequencies `10000^(-i / half)`, float32 [B, width].

    Vaswani et al. 2017, section 3.5.
    """
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=t.device) * (-math.log(MAX_PERIOD) / half))
    angle = t.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=1)


class Conditioning(nn.Module):
    """Time and, if `classes` > 0, class as one activated vector [B, 4 width].

    Class number `classes` is the null token.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        if width < 2 or width % 2:
            raise InputError(f"width must be even and at least 2, got {width}")
        self.width, self.classes = width, classes
        self.time_in = nn.Linear(width, 4 * width)
        self.time_out = nn.Linear(4 * width, 4 * width)
        self.label = nn.Embedding(classes + 1, 4 * width) if classes else None

    def forward(self, t: Tensor, y: Tensor | None) -> Tensor:
        """Embed t [B] and y (int64 [B]; None is the null token for all)."""
        features = sinusoidal(t, self.width).to(self.time_in.weight.dtype)
        embedded = self.time_out(F.silu(self.time_in(features)))
        if self.label is None:
            if y is not None:
                raise InputError("this network has no classes: leave y out")
            return F.silu(embedded)
        return F.silu(embedded + self.label(torch.full_like(t, self.classes, dtype=torch.int64) if y is None else y))

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return a network's condition with every label replaced by the null token."""
        if self.label is None or "y" not in cond:
            raise InputError("guidance needs a network with classes, and their labels y in cond")
        return {**cond, "y": torch.full_like(cond["y"], self.classes)}
