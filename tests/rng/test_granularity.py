"""The generator's grid: u takes 2^30 values, so the tail of N(0, 1) ends in steps; what they cost is computed here."""

from __future__ import annotations

import math

import pytest
import torch

from fastdiff.ops.philox import normal_pair


# |z| exceeds x where u < 2^31 exp(-x^2/2): at 360,200, 4,001 and 16 values of u, a midpoint rule for an integral whose
# relative error was computed in float64.
@pytest.mark.parametrize(("x", "grid_error"), [(4.0, -5.2e-8), (5.0, -9.39e-6), (6.0, -6.233e-3)])
def test_tail_probability(x, grid_error):
    """P(|z| > x) is that of N(0, 1) to 4e-6 at 4, 1.6e-5 at 5 and 0.6 % at 6."""
    u = torch.arange(1, int(2**31 * math.exp(-x * x / 2)) + 2, 2)
    radius, _ = normal_pair(u << 1, torch.zeros_like(u))  # at angle 0
    # |radius cos(angle)| > x for this fraction of the angles.
    beyond = torch.arccos((x / radius.double()).clamp(max=1)) * (2 / math.pi)
    exact = math.erfc(x / math.sqrt(2)) * (1 + grid_error)
    # The radius is within 2^-22, two float32 roundings, and the probability goes with exp(-x^2/2).
    assert beyond.sum().item() / 2**30 == pytest.approx(exact, rel=x * x * 2**-22)
