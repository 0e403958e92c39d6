"""What an encoder says of a latent: a point, or a Gaussian around it (Kingma & Welling 2013)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

# `noise(shape) -> z`, standard normals.
Noise = Callable[[torch.Size], Tensor]


class Posterior(NamedTuple):
    """q(z | x) = N(mean, diag exp(log_variance)).

    Attributes:
        mean: [B, c, h, w].
        log_variance: [B, c, h, w]; None for a latent that is its mean.
    """

    mean: Tensor
    log_variance: Tensor | None = None

    @property
    def variance(self) -> Tensor:
        """[B, c, h, w]: 0 for a point."""
        return torch.zeros_like(self.mean) if self.log_variance is None else self.log_variance.exp()

    def draw(self, noise: Noise) -> Tensor:
        """Return `mean + exp(log_variance / 2) noise` (Kingma & Welling 2013, eq. 10), or the mean of a point."""
        if self.log_variance is None:
            return self.mean
        return self.mean + (self.log_variance / 2).exp() * noise(self.mean.shape)


def kl_to_standard_normal(mean: Tensor, log_variance: Tensor) -> Tensor:
    """Return KL(N(mean, diag exp(log_variance)) || N(0, I)) of each sample, in nats, [B].

    `sum (mean^2 + exp(log_variance) - 1 - log_variance) / 2` (Kingma & Welling 2013, appendix B).

    Args:
        mean: [B, ...].
        log_variance: [B, ...], of the same shape.
    """
    # expm1: the terms of a variance near 1 cancel.
    return (mean**2 + log_variance.expm1() - log_variance).flatten(1).sum(dim=1) / 2
