"""The C++ kernels beyond 2^31 elements: counts, offsets and strides that no 32-bit number holds."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fastdiff.ops import native, reference
from fastdiff.ops.philox import MASK32, STREAMS, normal_pair, philox
from fastdiff.plan import Plan
from tests.ops.cpu import OPS, assert_same_bits, copied, cpu_backend, differing, example, run
from tests.ops.plans import table

pytestmark = [
    *cpu_backend,
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="needs Linux to map one piece of memory many times"),
]

BIG = 2**31 + 10  # no whole quads of normals, and no whole blocks of the kernels
PIECE = 3 * 2**24  # bytes; 2^32 is no multiple of it, so that an address that wraps lands elsewhere in the piece
BYTES = (4 * BIG // PIECE + 1) * PIECE
MAP_FIXED = 0x10
TAIL = torch.arange(BIG - 4096, BIG)  # all of it in the last piece
KEY, DRAW, ZERO = torch.tensor([[-5], [2**40 + 3]]), torch.tensor([7]), torch.tensor([0])


@pytest.fixture(scope="module")
def memory() -> Iterator[Tensor]:
    """8 GB of addresses for 48 MB of memory, mapped over and over: what one thread writes last is what stays.

    Memory that is all there would take most of these tests' time, and some machines do not have it.
    """
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    piece = os.memfd_create("piece")
    os.ftruncate(piece, PIECE)
    access, way = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED | MAP_FIXED
    start = libc.mmap(None, BYTES, 0, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    for offset in range(0, BYTES, PIECE):
        assert libc.mmap(start + offset, PIECE, access, way, piece, 0) == start + offset
    yield torch.frombuffer((ctypes.c_char * BYTES).from_address(start), dtype=torch.uint8)
    libc.munmap(start, BYTES)
    os.close(piece)


def normals_at(element: Tensor, draw: Tensor, stream: int) -> Tensor:
    """The normals of some elements of sample `KEY`: float32, by the specification."""
    seed, sample = KEY[:, 0]
    counter = (element >> 2, draw, sample & MASK32, stream << 24 | sample >> 32)
    o0, o1, o2, o3 = philox(counter, (seed & MASK32, seed >> 32 & MASK32))
    quads = torch.stack([*normal_pair(o0, o1), *normal_pair(o2, o3)], dim=-1)
    return quads.gather(1, element[:, None] & 3)[:, 0]


def test_normal(memory: Tensor) -> None:
    """The last normals of a sample count quads beyond 2^29 and lie beyond 4 GB."""
    z = memory.view(torch.bfloat16)[None, :BIG]
    native.ops.normal_(z, KEY, DRAW, STREAMS["init"])
    assert differing(z[0, TAIL], normals_at(TAIL, DRAW, STREAMS["init"]).bfloat16()) == 0


def test_q_sample(memory: Tensor) -> None:
    """So do those of x_t; x0 is one number, expanded."""
    x_t, levels, stream = memory.view(torch.float16)[None, :BIG], torch.tensor([[0.8, 0.6]]), STREAMS["q_sample"]
    x0 = torch.full((1, 1), 0.5, dtype=torch.float16)
    native.ops.q_sample_out(x0.expand(1, BIG), ZERO, levels, KEY, DRAW, stream, None, x_t, None)
    noise = normals_at(TAIL, DRAW, stream)[None]
    wanted, _ = reference.q_sample(x0.expand_as(noise), ZERO, levels, None, None, stream, noise, False)
    assert differing(x_t[:, TAIL], wanted) == 0


@pytest.mark.parametrize("samples", [1, 2])
def test_step(memory: Tensor, samples: int) -> None:
    """A state of 8 GB, in one sample and in two."""
    x = memory.view(torch.float32)[:BIG].view(samples, -1)
    plan = Plan.build("row", [0.0], {"po": 1.0, "c0": 2.0, "cz": 0.5})
    out, row = torch.full((samples, 1), 3.0), ZERO.expand(samples)
    native.ops.step(x, out.expand_as(x), table(plan), plan.layout, row, key=KEY.expand(2, samples))
    last = TAIL - (samples - 1) * x.shape[1]
    z = normals_at(last, ZERO, STREAMS["step"])[None]
    wanted = torch.zeros_like(z)
    reference.step(wanted, out[:1].expand_as(z), table(plan), plan.layout, ZERO, z=z)
    assert differing(x[-1:, last], wanted) == 0


@pytest.mark.parametrize(
    "strides",
    [
        (60, 2**31 + 7, 1000, 11),  # the samples lie far apart
        (60, 1000, 2**30 + 3, 11),  # the elements of a sample do
    ],
    ids=["samples", "elements"],
)
@pytest.mark.parametrize("name", OPS)
def test_strides(memory: Tensor, name: str, strides: tuple[int, ...]) -> None:
    """Few elements, gigabytes apart."""
    call = example(name, (2, 3, 5))
    wanted = run(native.ops, name, copied(call))
    images = [key for key, value in call.items() if isinstance(value, Tensor) and value.shape[-3:] == (2, 3, 5)]
    for k, key in enumerate(images):
        values = call[key]
        call[key] = memory.view(torch.float32).as_strided(values.shape, strides[-values.ndim :], 4000 * k).copy_(values)
    assert_same_bits(run(native.ops, name, call), wanted)
