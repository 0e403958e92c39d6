"""Sliced Wasserstein distance between two sets of samples (Bonneel et al. 2015)."""

from __future__ import annotations

import torch
from torch import Tensor


def sliced(a: Tensor, b: Tensor, projections: int = 64) -> float:
    """Return the root mean square, over fixed random directions, of the W2 distance of samples a and b, both [N, D].

    Of one size, two projected sets are matched in order. The estimate is biased upwards by what two sets of the same
    distribution show, so compare it with that.
    """
    return between(quantiles(a, projections), quantiles(b, projections))


def quantiles(x: Tensor, projections: int = 64) -> Tensor:
    """Return the projections of samples [N, D] on fixed random directions, each in order, [projections, N]."""
    directions = torch.randn(projections, x.shape[1], generator=torch.Generator().manual_seed(0))
    unit = torch.nn.functional.normalize(directions, dim=1)
    return (unit @ x.float().T).sort().values


def between(a: Tensor, b: Tensor) -> float:
    """Return the distance of two sets of samples whose `quantiles` these are."""
    return float((a - b).double().square().mean().sqrt())
