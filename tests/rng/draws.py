"""Where the suite draws: walks through the space of (seed, sample, stream, draw, element), and sets of close keys."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.ops import dispatch
from fastdiff.ops.philox import STREAMS

# Plain torch takes 100 ns a normal, the C++ kernels less than 1: without them the suite is a small one.
FAST = dispatch.resolve("auto", torch.device("cpu")) == "cpu"
BLOCK = 2**22
WALK_ELEMENTS = 16
KEY_ELEMENTS = 2**16 if FAST else 2**14

# What a walk counts: the arguments of fd.noise.normal as functions of a counter.
WALKS: dict[str, Callable[[Tensor], dict[str, int | Tensor]]] = {
    "element": lambda i: {"seed": 1, "index": i},  # from sample to sample once a sample is done
    "sample": lambda i: {"seed": 2, "index": i},
    "high word of sample": lambda i: {"seed": 3, "index": i << 32},
    "seed": lambda i: {"seed": i, "index": 0 * i},
    "high word of seed": lambda i: {"seed": i << 32, "index": 0 * i},
    "draw": lambda i: {"seed": 4, "index": 0 * i, "step": i},
}


def walk(name: str) -> Iterator[Tensor]:
    """Yield blocks, float32 [BLOCK], of a sequence along which the named coordinate counts fastest.

    Along "element" a block is a sample; there are 2^27 draws in all. Along another coordinate it is the first elements
    of BLOCK / WALK_ELEMENTS keys, then their second elements, and so on; there are 2^25 draws.
    """
    elements, blocks = (BLOCK, 32) if name == "element" else (WALK_ELEMENTS, 8)
    keys = BLOCK // elements
    for block in range(blocks if FAST else 1):
        counter = torch.arange(block * keys, (block + 1) * keys)
        yield fd.noise.normal((keys, elements), stream="step", **WALKS[name](counter)).T.reshape(-1)


def flips(width: int, *bases: int) -> list[int]:
    """Return each base and what differs from it in one of its `width` bits."""
    return [base ^ bit for base in bases for bit in (0, *(1 << k for k in range(width)))]


MIXED = 0x0123456789ABCDEF  # about as many ones as zeros

# Sets of (stream, seed, sample, draw).
KEY_SETS: dict[str, list[tuple[str, int, int, int]]] = {
    "adjacent seeds": [("init", i, 0, 0) for i in range(128)],
    "adjacent high words of seeds": [("init", i << 32, 0, 0) for i in range(128)],
    "seeds one bit apart": [("init", seed, 0, 0) for seed in flips(64, 0, MIXED)],
    "adjacent samples": [("init", 0, i, 0) for i in range(128)],
    "adjacent high words of samples": [("init", 0, i << 32, 0) for i in range(128)],
    "samples one bit apart": [("init", 0, sample, 0) for sample in flips(56, 0, MIXED >> 8)],
    "adjacent draws": [("step", 0, 0, i) for i in range(128)],
    "draws one bit apart": [("step", 0, 0, draw) for draw in flips(32, 0, MIXED >> 32, MIXED & 0xFFFFFFFF)],
    "streams": [(stream, 0, sample, draw) for stream in STREAMS for sample in range(5) for draw in range(5)],
    "numbers that trade places": [("init", *numbers) for numbers in itertools.product(range(5), repeat=3)],
}


def key_set(name: str) -> Tensor:
    """Return the first KEY_ELEMENTS normals at every key of a set, float32 [keys, KEY_ELEMENTS]."""
    parts = []
    for stream, group in itertools.groupby(KEY_SETS[name], key=lambda key: key[0]):
        _, seeds, samples, draws = zip(*group, strict=True)
        shape = (len(seeds), KEY_ELEMENTS)
        parts.append(fd.noise.normal(shape, seed=seeds, index=samples, step=draws, stream=stream))
    return torch.cat(parts)
