"""What the tests on a GPU share: its backends, and one call there and on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops import dispatch, native, schema
from fastdiff.ops.philox import MASK32, STREAMS, Words, normal_pair, philox
from tests.kernels.calls import moved
from tests.ops.cpu import Call, assert_products_close, assert_same_bits, copied, run

GPU = torch.device("cuda")
each_gpu_backend = pytest.mark.parametrize("backend", schema.GPU_BACKENDS)

# The ops that reduce a sample to a number, and how far backends may be apart, relative to it: a sum of n positive
# float32 numbers, in a tree, is right to 2^-24 log2(n) < 1.3e-6 for n <= 2^22, on either side; two standard deviations
# have half of that each, twice over; a quantile lies between two equal order statistics, some roundings away. The terms
# of an inner product may cancel: it is as right relative to the norms.
TOLERANCE = {"noise_loss": 3e-6, "guidance_rescale": 6e-6, "inner_products": 3e-6, "threshold": 5e-7}


def ops_of(backend: str) -> Any:
    """Return the functions of a backend; skip the test where it is missing."""
    reason = dispatch.missing()[backend]
    if reason is not None:
        pytest.skip(reason)
    return dispatch.backend(backend, GPU)


def on_cpu(name: str, call: Call) -> dict[str, Tensor]:
    """Return what the cpu backend makes of a call, which is not changed."""
    assert native.missing() is None
    return run(native.ops, name, copied(call))


def on_gpu(backend: str, name: str, call: Call) -> dict[str, Tensor]:
    """Return what a GPU backend makes of a call's copy there, on the CPU again."""
    return to_cpu(run(ops_of(backend), name, moved(call, GPU)))


def assert_alike(name: str, found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Of an op: the same bits, or what reductions may differ by."""
    if name == "inner_products":
        assert_products_close(found["result 0"], wanted["result 0"], rtol=TOLERANCE[name])
    elif name in TOLERANCE:
        torch.testing.assert_close(found, wanted, rtol=TOLERANCE[name], atol=1e-7, equal_nan=True)
    else:
        assert_same_bits(found, wanted)


def to_cpu(results: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU."""
    return {name: tensor.cpu() for name, tensor in results.items()}


def needs_memory(gib: float) -> None:
    """Skip the test where the GPU has less memory to give."""
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    if free < gib * 2**30:
        pytest.skip(f"the GPU has {free / 2**30:.0f} GiB to give, {gib:g} are needed")


def words_at(key: Tensor, quads: Tensor) -> Words:
    """Return the words of draw 0 of the stream "step", of one sample (key [2, 1]) at any quads."""
    seed, sample = key
    counter = (quads, torch.zeros_like(quads), sample & MASK32, STREAMS["step"] << 24 | (sample >> 32 & 0xFFFFFF))
    return philox(counter, (seed & MASK32, seed >> 32 & MASK32))


def normals_at(key: Tensor, first: int, count: int) -> Tensor:
    """Return the normals of these words from one element on, float32 [count]."""
    o0, o1, o2, o3 = words_at(key, torch.arange(first // 4, (first + count + 3) // 4))
    quads = torch.stack([*normal_pair(o0, o1), *normal_pair(o2, o3)], dim=-1)
    return quads.flatten()[first % 4 :][:count]
