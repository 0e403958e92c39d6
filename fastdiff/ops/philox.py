"""Philox4x32-10 and the exact Box-Muller normals in plain torch: the specification of every backend's noise.

Slow on purpose: each step is the one that docs/noise.md names, in integers and in the exact float32 of `exact`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff.ops.exact import fma, polynomial, sqrt

STREAMS = {"init": 0, "step": 1, "q_sample": 2, "train": 3, "extra": 4, "probe": 5, "latent": 6}
MASK32 = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

LOG = (
    -2.0,
    0.9999997615814209,
    -0.6666837334632874,
    0.5000414848327637,
    -0.39913666248321533,
    0.33124786615371704,
    -0.2990453541278839,
    0.2873367965221405,
    -0.1744469851255417,
)
SIN = (0.7853981852531433, -0.08074543625116348, 0.00249000103212893, -3.5950448364019394e-05)
COS = (0.9999999403953552, -0.308424174785614, 0.015849683433771133, -0.0003187278052791953)
MINUS_2_LOG_2 = -1.3862943649291992  # -1.3862943611198906 in float32
SQRT_HALF_BITS = 0x3F3504F3

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def normal(shape: Sequence[int], key: Tensor, draw: Tensor, stream: int) -> Tensor:
    """Standard normals, float32 of shape (B, ...).

    key: int64 [2, B], the seeds' bits and the global sample indices; draw: int64 [B]; stream: a number of `STREAMS`.
    """
    size = math.prod(shape[1:])
    quad = torch.arange((size + 3) // 4, device=key.device)
    seed, sample, draw = key[0, :, None], key[1, :, None], draw[:, None]
    counter = (quad, draw & MASK32, sample & MASK32, stream << 24 | (sample >> 32 & 0xFFFFFF))
    o0, o1, o2, o3 = philox(counter, (seed & MASK32, seed >> 32 & MASK32))
    quads = torch.stack([*normal_pair(o0, o1), *normal_pair(o2, o3)], dim=-1)
    return quads.flatten(1)[:, :size].reshape(tuple(shape)).contiguous()


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Philox4x32-10 (Salmon et al. 2011) on int64 tensors that hold unsigned 32-bit words and broadcast together."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # A 32 x 32 bit product fits int64 up to its sign, which the mask after the arithmetic shift removes.
        product0, product1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> 32 & MASK32) ^ c1 ^ k0,
            product1 & MASK32,
            (product0 >> 32 & MASK32) ^ c3 ^ k1,
            product0 & MASK32,
        )
        k0, k1 = (k0 + WEYL[0]) & MASK32, (k1 + WEYL[1]) & MASK32
    return c0, c1, c2, c3


def normal_pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two standard normals, float32, from two words (int64 tensors of unsigned 32-bit values), by Box-Muller."""
    u = (a >> 1 | 1).to(torch.float32)
    bits = u.view(torch.int32)
    exponent = bits - SQRT_HALF_BITS >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1
    log_term = polynomial(LOG, f) * f
    radius = sqrt(fma((exponent - 31).to(torch.float32), MINUS_2_LOG_2, log_term))

    t = _signed(b).to(torch.float32) * 2.0**-31
    t2 = t * t
    s = polynomial(SIN, t2) * t
    c = polynomial(COS, t2)
    c = torch.where(b & 2 != 0, -c, c)
    swap = b & 1 != 0
    return radius * torch.where(swap, s, c), radius * torch.where(swap, c, s)


def _signed(word: Tensor) -> Tensor:
    return torch.where(word > MASK32 >> 1, word - (MASK32 + 1), word)
