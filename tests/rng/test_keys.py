"""Keys that lie close together give unrelated noise: 8e7 draws, about 3 s."""

from __future__ import annotations

import pytest
import torch

from tests.rng import draws
from tests.rng.nulls import implausible
from tests.rng.statistics import CHUNK, gram, uncorrelated

FOLD = 0x1E3779B97F4A7C15
FOR_EACH = pytest.mark.parametrize("name", draws.KEY_SETS)


@FOR_EACH
def test_uncorrelated(name):
    """Values and squares at the same element of any two keys are uncorrelated."""
    z = draws.key_set(name)
    products = sum(gram(chunk) for chunk in z.split(CHUNK // len(z), dim=1))
    assert not implausible(uncorrelated(products, z.shape[1]))


@FOR_EACH
def test_no_quad_twice(name):
    """No quad comes twice, within a key or in two keys at any shift, so no sequence is a piece of another."""
    # The 128 bits of a quad, folded to 64: by chance two of the 2^21 agree with probability 1e-7.
    quads = draws.key_set(name).view(-1, 4).view(torch.int64)
    folded, _ = (quads[:, 0] * FOLD + quads[:, 1]).sort()
    assert not (folded[1:] == folded[:-1]).any()
