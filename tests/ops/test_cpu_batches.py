"""Batches of the C++ kernels: a sample's result does not depend on the others, on threads, or on there being any."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastdiff.ops import native, reference
from fastdiff.plan import Plan
from tests.ops.cpu import BATCH_DIM, FLOATS, OPS, Call, assert_same_bits, copied, cpu_backend, example, run
from tests.ops.plans import table

pytestmark = cpu_backend

# csrc/cpu/parallel.h gives a thread at least 16384 elements of noise or 32768 others: these are shared among two.
SHARED = [
    (1, 3, 160, 163),  # the threads meet within the one sample
    (5, 3, 80, 81),  # and within the third of five
    (700, 131),  # many samples that do not fill their blocks
]


def of_sample(call: Call, b: int) -> Call:
    """The call for one sample of its batch."""
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor) and name != "table"}
    parts = {name: value.narrow(BATCH_DIM.get(name, 0), b, 1) for name, value in tensors.items()}
    return copied({**call, **parts})


@pytest.mark.parametrize("shape", SHARED, ids=str)
@pytest.mark.parametrize("name", OPS)
def test_threads(name: str, shape: tuple[int, ...]) -> None:
    """Two threads give the bits of one, where the work is enough to be shared."""
    call = example(name, shape, torch.bfloat16)
    wanted = run(native.ops, name, copied(call))
    torch.set_num_threads(2)
    assert_same_bits(run(native.ops, name, call), wanted)


@pytest.mark.parametrize("name", OPS)
def test_a_batch_is_its_samples(level: int, name: str) -> None:
    """A sample alone, with its own row, seed, w and the rest, gets the bits that it gets in a batch."""
    call = example(name, (4, 3, 13, 17))
    alone = [run(native.ops, name, of_sample(call, b)) for b in range(4)]
    together = run(native.ops, name, call)
    dims = {"result 0": 1, **BATCH_DIM} if name == "inner_products" else BATCH_DIM
    joined = {key: torch.cat([one[key] for one in alone], dims.get(key, 0)) for key in together}
    assert_same_bits(together, joined)


@pytest.mark.parametrize("name", ["step", "normal_", "q_sample"])
def test_shared_work_against_the_reference(level: int, name: str) -> None:
    """Every instruction set on two threads is 0 bits from the specification."""
    call = example(name, (3, 3, 99, 101), torch.float16)
    wanted = run(reference, name, copied(call))
    torch.set_num_threads(2)
    assert_same_bits(run(native.ops, name, call), wanted)


def test_first_bad_from_several_threads(level: int) -> None:
    """Threads that find different things wrong with one sample leave the least."""
    plan = Plan.build("sum", [1, 0], {"cx": 1.0, "px": 1.0, "po": 1.0})
    row, ends = torch.tensor([0, 1]), (0, 99_999)
    torch.set_num_threads(2)
    for bad_output, bad_state in (ends, ends[::-1]):
        x, out = torch.zeros(2, 100_000), torch.zeros(2, 100_000)
        x[0, bad_state], out[0, bad_output], x[1, bad_state] = torch.nan, torch.inf, torch.inf
        first_bad = torch.full((2,), 9)
        native.ops.step(x, out, table(plan), plan.layout, row, first_bad=first_bad)
        assert first_bad.tolist() == [0, 3]


@pytest.mark.parametrize("shape", [(0,), (0, 3, 5), (2, 0), (2, 3, 0, 4)], ids=str)
@pytest.mark.parametrize("name", OPS)
def test_nothing_to_do(level: int, name: str, shape: tuple[int, ...]) -> None:
    """An empty batch, and samples without elements, have results of their shape; a quantile of nothing is refused."""
    for dtype in FLOATS:
        call = example(name, shape, dtype)
        if name == "threshold" and shape[0]:
            with pytest.raises(RuntimeError, match="^threshold needs samples with elements$"):
                run(native.ops, name, call)
        else:
            assert_same_bits(run(native.ops, name, copied(call)), run(reference, name, call))
