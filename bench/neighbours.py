"""Does a network copy its training set? Distances to the nearest training image, beside those of unseen real images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

QUANTILES = {"min": 0.0, "5 %": 0.05, "25 %": 0.25, "median": 0.5, "75 %": 0.75}
COPY = 0.5  # nearer than this is a copy: over 8x8 pixels, half of one of the 16 grey levels in each


def nearest(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return each x's [N, ...] nearest of reference [M, ...]: Euclidean distance, float64 [N], and index, int64 [N]."""
    # Through a matrix product, the default, small distances would be differences of large numbers.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(x.flatten(1).double(), reference.flatten(1).double(), compute_mode=exact)
    least = distances.min(dim=1)
    return least.values, least.indices


def compare(samples: Tensor, held_out: Tensor) -> dict[str, dict[str, Any]]:
    """Summarise the distances of samples [N] and of held-out images [M] to their nearest training images.

    Each gets its quantiles, the shares nearer than the held-out 1 % quantile and than the held-out minimum, and the
    number of copies.
    """
    return {"samples": _summary(samples, held_out), "held-out": _summary(held_out, held_out)}


def _summary(distances: Tensor, held_out: Tensor) -> dict[str, Any]:
    return {
        "count": len(distances),
        "quantiles": {name: float(distances.quantile(q)) for name, q in QUANTILES.items()},
        "below 1 %": float((distances < held_out.quantile(0.01)).double().mean()),
        "below minimum": float((distances < held_out.min()).double().mean()),
        "copies": int((distances < COPY).sum()),
    }
