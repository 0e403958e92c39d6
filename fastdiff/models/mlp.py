"""A small residual network for points, such as the 2-D toys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.models.embedding import Conditioning


@dataclass(frozen=True)
class MLPConfig:
    """Sizes of an `MLP`.

    Attributes:
        dimensions: of a point.
        width: hidden units, even.
        layers: residual layers.
        classes: number of classes; 0 for an unconditional network.
        learn_variance: give as many outputs again, the v of Nichol & Dhariwal 2021.
    """

    dimensions: int = 2
    width: int = 128
    layers: int = 4
    classes: int = 0
    learn_variance: bool = False

    def __post_init__(self) -> None:
        if min(self.dimensions, self.width, self.layers) < 1 or self.classes < 0:
            raise InputError(f"MLP sizes must be positive, got {self}")

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether samples of a shape, without the batch, fit."""
        return shape == (self.dimensions,)


class ResidualMLP(nn.Module):
    """Points x [B, dimensions] to `outputs` numbers each, in layers shifted by t [B] and, of `classes`, y [B]."""

    def __init__(self, config: MLPConfig, classes: int, outputs: int, seed: int) -> None:
        super().__init__()
        self.config = config
        width = config.width
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.conditioning = Conditioning(width, classes)
            self.input = nn.Linear(config.dimensions, width)
            self.shifts = nn.ModuleList(nn.Linear(4 * width, width) for _ in range(config.layers))
            self.layers = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width)) for _ in range(config.layers)
            )
            self.output = head(width, outputs)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.config.dimensions:
            raise InputError(f"x must be [B, {self.config.dimensions}], got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise InputError(f"t must be [{len(x)}], one time a sample, got {tuple(t.shape)}")
        embedding = self.conditioning(t, y)
        h = self.input(x)
        for shift, layer in zip(self.shifts, self.layers, strict=True):
            h = h + layer(h + shift(embedding))
        out: Tensor = self.output(h)
        return out


class MLP(ResidualMLP):
    """`model(x, t, y=None) -> out`: x [B, dimensions], t [B], y int64 [B] in 0..classes (last is null).

    Parameters are drawn from `seed` alone.
    """

    def __init__(self, config: MLPConfig, seed: int = 0) -> None:
        outputs = config.dimensions * (2 if config.learn_variance else 1)
        super().__init__(config, config.classes, outputs, seed)

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition with every label replaced by the null token."""
        return self.conditioning.unconditional(cond)


def head(width: int, outputs: int) -> nn.Sequential:
    """Return what makes outputs of hidden units [B, width]: at first the same ones of all."""
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    return nn.Sequential(nn.LayerNorm(width), nn.SiLU(), last)
