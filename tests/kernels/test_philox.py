"""Philox in Triton gives the words of the specification."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastdiff.kernels.philox import philox
from fastdiff.ops import philox as specification

QUADS = 256
KNOWN = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]  # of counter 0 and key 0 (docs/noise.md)


@triton.jit
def words_kernel(words, key, draw, stream, first, QUADS: tl.constexpr):
    quad = tl.arange(0, QUADS)
    a, b, c, d = philox((quad + first).to(tl.uint32), tl.load(key), tl.load(key + 1), tl.load(draw), stream)
    tl.store(words + quad, a.to(tl.int64))
    tl.store(words + QUADS + quad, b.to(tl.int64))
    tl.store(words + 2 * QUADS + quad, c.to(tl.int64))
    tl.store(words + 3 * QUADS + quad, d.to(tl.int64))


@pytest.mark.parametrize("seed", [0, -1, 2**62 + 12345])
@pytest.mark.parametrize("sample", [0, 2**32 - 1, 2**56 - 1])
@pytest.mark.parametrize("stream", [0, 4, 255])
def test_words(device: torch.device, seed: int, sample: int, stream: int) -> None:
    """Any key and counter, with all bits of each in use; the quads are the last ones."""
    words = torch.empty(4, QUADS, dtype=torch.int64, device=device)
    key, draw = torch.tensor([seed, sample], device=device), torch.tensor(2**32 - 2, device=device)
    first = 2**31 - QUADS
    with np.errstate(all="ignore"):
        words_kernel[(1,)](words, key, draw, stream, first, QUADS)
    quad = torch.arange(first, first + QUADS)
    mask = specification.MASK32
    values = (2**32 - 2, sample & mask, stream << 24 | sample >> 32 & 0xFFFFFF)
    counter = (quad, *(torch.full_like(quad, value) for value in values))
    wanted = specification.philox(counter, (torch.tensor(seed & mask), torch.tensor(seed >> 32 & mask)))
    assert torch.equal(words.cpu(), torch.stack(wanted))


def test_known_answer(device: torch.device) -> None:
    """The published words of counter 0 and key 0."""
    words = torch.empty(4, QUADS, dtype=torch.int64, device=device)
    zeros = torch.zeros(2, dtype=torch.int64, device=device)
    with np.errstate(all="ignore"):
        words_kernel[(1,)](words, zeros, zeros, 0, 0, QUADS)
    assert words[:, 0].tolist() == KNOWN
