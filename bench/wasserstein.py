"""Sliced Wasserstein distance between two sets of samples (Bonneel et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor


def sliced(a: Tensor, b: Tensor, projections: int = 128, seed: int = 0) -> float:
    """Return the root mean square, over random directions, of the W2 distance of samples a and b, both [N, D].

    Of one size, two projected sets are matched in order. The estimate is biased upwards by what two sets of the same
    distribution show, so compare it with that.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=0)
    squares = [_squared(a.double() @ direction, b.double() @ direction) for direction in directions.T]
    return float(torch.stack(squares).mean().sqrt())


def _squared(a: Tensor, b: Tensor) -> Tensor:
    return (a.sort().values - b.sort().values).square().mean()
