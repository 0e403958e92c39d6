"""The suite's own statistics: torch's generator passes them, and each defect is refused by the one meant for it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.rng.nulls import implausible
from tests.rng.statistics import Statistics

N = 2**22
NAMES = ["moments", "distribution", "tails", "quads", "correlations", "long_lags"]


def gaussian() -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(0))


def refused(z: Tensor) -> set[str]:
    """Return the names of the statistics that refuse z, float32 [N]."""
    statistics = Statistics()
    statistics.add(z)
    return {name for name in NAMES if implausible(getattr(statistics, name)())}


def test_passes_another_generator():
    """No statistic refuses torch.randn."""
    assert not refused(gaussian())


def shifted(z: Tensor) -> Tensor:
    return z + 0.004


def widened(z: Tensor) -> Tensor:
    return z * 1.003


def coarse(z: Tensor) -> Tensor:
    """Rounded to multiples of 1/256: the moments hardly change."""
    return (z * 256).round() / 256


def without_tail(z: Tensor) -> Tensor:
    return torch.where(z.abs() > 4.2, z / 2, z)


def odd_signs(z: Tensor) -> Tensor:
    """Three of four are independent; in one quad of 100 the fourth's sign is the product of the others' signs."""
    quads = z.view(-1, 4).clone()
    quads[::100, 3] = quads[::100, 3].abs() * quads[::100, :3].sign().prod(dim=1)
    return quads.view(-1)


def near_neighbours(z: Tensor) -> Tensor:
    return z + 0.005 * z.roll(5)


def far_neighbours(z: Tensor) -> Tensor:
    return z + 0.005 * z.roll(4096)


def scaled_by_the_last(z: Tensor) -> Tensor:
    """Uncorrelated values with correlated squares."""
    return z * (1 + 0.004 * (z.roll(1) ** 2 - 1))


@pytest.mark.parametrize(
    ("name", "defect"),
    [
        ("moments", shifted),
        ("moments", widened),
        ("distribution", coarse),
        ("tails", without_tail),
        ("quads", odd_signs),
        ("correlations", near_neighbours),
        ("correlations", scaled_by_the_last),
        ("long_lags", far_neighbours),
    ],
)
def test_refuses(name, defect):
    """A small defect is seen by the statistic for its kind."""
    assert name in refused(defect(gaussian()))
