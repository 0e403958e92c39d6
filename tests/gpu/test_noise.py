"""Noise on a GPU: the exact normals' bits, and that the fast ones are standard normals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff import noise
from fastdiff.ops.philox import MASK32, STREAMS
from fastdiff.plan import FAST_NORMALS, Plan
from tests.gpu.cases import GPU, each_gpu_backend, needs_memory, on_cpu, ops_of, words_at
from tests.ops.cpu import Random, differing

pytestmark = [pytest.mark.gpu, each_gpu_backend]

CASES = json.loads((Path(__file__).parents[1] / "truth" / "noise.json").read_text())["cases"]
TRUTH = [case for case in CASES if "bits" in case]
SIZE = 2**26
DEVIATIONS = 5.0  # of a statistic from its expectation: by chance once in a million


def fast_normals(backend: str, key: Tensor, size: int) -> Tensor:
    """Return the noise that a step adds to zeros, [B, size] on the GPU; the draw is 0."""
    plan = Plan.build("noise", [0.0], {"cz": 1.0})
    x = torch.zeros(key.shape[1], size, device=GPU)
    row = torch.zeros(len(x), dtype=torch.int64, device=GPU)
    table = torch.ones(1, 1, device=GPU)
    ops_of(backend).step(x, x.clone(), table, plan.layout | FAST_NORMALS, row, None, None, key.to(GPU))
    return x


@pytest.mark.parametrize("case", TRUTH, ids=lambda case: f"{case['stream']}-{case['seed']}-{case['sample']}")
def test_known_answers(backend: str, case: dict[str, Any]) -> None:
    """The bits of tests/truth/noise.json."""
    key = noise.key(int(case["seed"]), [int(case["sample"])], 1, GPU)
    z = torch.empty(1, len(case["bits"]), device=GPU)
    ops_of(backend).normal_(z, key, torch.tensor([case["draw"]], device=GPU), STREAMS[case["stream"]])
    assert [f"{word & MASK32:08x}" for word in z[0].cpu().view(torch.int32).tolist()] == case["bits"]


@pytest.mark.parametrize("part", range(4))
def test_half_a_billion_normals_have_the_bits_of_the_cpu(backend: str, part: int) -> None:
    """2^29 of them in four parts: 2^28 radii, of the 2^30 that there are, each with its square root."""
    needs_memory(2)
    random = Random(part)
    z, key, draw = torch.empty(64, 2**21), random.key(64), random.below(2**32, 64)
    there = torch.empty_like(z, device=GPU)
    ops_of(backend).normal_(there, key.to(GPU), draw.to(GPU), part)
    assert differing(there.cpu(), on_cpu("normal_", {"z": z, "key": key, "draw": draw, "stream": part})["z"]) == 0


def test_fast_normals_follow_their_formula(backend: str) -> None:
    """Against float64: log2 of the hardware is right to 2^-22, which a square root near 0 makes 6e-4."""
    key, quads = Random(0).key(1), 2**18
    words = words_at(key, torch.arange(quads))
    pairs = []
    for a, b in (words[:2], words[2:]):
        radius = (-2 * math.log(2) * torch.log2(a.double() * 2**-32 + 2**-33)).sqrt()
        angle = torch.where(b >= 2**31, b - 2**32, b).double() * math.pi * 2**-31
        pairs += [radius * angle.cos(), radius * angle.sin()]
    wanted = torch.stack(pairs, dim=1).flatten()
    assert (fast_normals(backend, key, 4 * quads)[0].cpu() - wanted).abs().max() < 1e-3


def test_fast_normals_are_standard_normal(backend: str) -> None:
    """Moments, tails, the largest distance from the distribution function, and what neighbours have in common."""
    z = fast_normals(backend, Random(1).key(1), SIZE)[0].double()
    even = {2: 1.0, 4: 3.0, 6: 15.0, 8: 105.0, 10: 945.0, 12: 10395.0, 16: 2027025.0}
    for power in (1, 2, 3, 4, 6, 8):
        expected, second = even.get(power, 0.0), even[2 * power]
        deviation = (float(z.pow(power).mean()) - expected) / math.sqrt((second - expected**2) / SIZE)
        assert abs(deviation) < DEVIATIONS, f"moment {power} is off by {deviation:.1f} standard errors"
    for bound in (1.0, 2.0, 3.0, 4.0, 5.0):
        expected = SIZE * math.erfc(bound / math.sqrt(2))
        deviation = (int((z.abs() > bound).sum()) - expected) / math.sqrt(expected)
        assert abs(deviation) < DEVIATIONS, f"the count beyond {bound} is off by {deviation:.1f} standard deviations"
    uniform = torch.special.ndtr(z.sort().values)
    distance = (uniform - torch.arange(SIZE, device=GPU, dtype=torch.float64) / SIZE).abs().max()
    assert distance < 2.7 / math.sqrt(SIZE)  # Kolmogorov-Smirnov: by chance once in a million
    for lag in (1, 2, 3, 4, 1024):
        for values in (z, z.square() - 1):
            product = values[lag:] * values[:-lag]
            deviation = float(product.mean() / product.std()) * math.sqrt(len(product))
            assert abs(deviation) < DEVIATIONS, (
                f"at lag {lag} neighbours are {deviation:.1f} standard errors correlated"
            )


def test_fast_normals_depend_on_their_key_alone(backend: str) -> None:
    """A sample is the same in any batch."""
    key = Random(2).key(4)
    together = fast_normals(backend, key, 1003)
    for sample in range(4):
        alone = fast_normals(backend, key[:, sample : sample + 1], 1003)
        assert torch.equal(together[sample], alone[0])
