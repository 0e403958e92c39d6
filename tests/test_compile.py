"""`torch.compile(fullgraph=True)` of a row, model and step together: one graph for all rows of a plan.

Without a GPU the graph runs op by op (`aot_eager`): it is the one that inductor is given on a GPU (tests/gpu).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fastdiff as fd
from fastdiff.loop import Inputs, Loop, Setup
from fastdiff.ops import dispatch
from tests.backends import needs_extension, needs_interpreter

SHAPE = (2, 2, 3, 3)
ROWS = 50
PLAN = fd.samplers.ddim(fd.schedules.linear(100), steps=ROWS, eta=1.0)
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Nothing compiled before counts."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return x * (y + t.to(x.dtype) / 100).view(-1, 1, 1, 1)


def a_row(step: Callable[..., None], loop: Loop) -> Callable[[Tensor, Tensor, Tensor], None]:
    """What a user who compiles a loop of their own would write."""
    key, table, layout = loop.inputs.key, loop.table, loop.layout

    def run(x: Tensor, t: Tensor, row: Tensor) -> None:
        out = model(loop.model_input, t, loop.inputs.condition["y"])
        out, uncond = out.chunk(2)
        step(x, out, table, layout, row, uncond, loop.w[0], key, loop.model_input, loop.first_bad)

    return run


def prepared(backend: str, dtype: torch.dtype) -> Loop:
    setup = Setup(PLAN, SHAPE, CPU, dtype, backend, branches=2)
    y = torch.tensor([0.5, 0.6, 0.1, 0.2], dtype=dtype)
    loop = Loop(setup, Inputs(fd.noise.key(3, None, 2, CPU), torch.tensor([[2.0, 0.5]]).expand(ROWS, 2), {"y": y}))
    loop.start()
    return loop


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [
        pytest.param("cpu", torch.float32, marks=needs_extension),
        pytest.param("cpu", torch.bfloat16, marks=needs_extension),
        pytest.param("triton", torch.bfloat16, marks=needs_interpreter),
    ],
    ids=str,
)
def test_one_graph_for_all_rows(backend, dtype):
    """No break, no second version, and the bits of the loop in plain torch."""
    loop, plain = prepared(backend, dtype), prepared("eager", dtype)
    row = torch.compile(a_row(dispatch.backend(backend, CPU).step, loop), fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for k in range(ROWS):
            row(loop.x, loop.times[k], loop.rows[k])
            plain.row(k, model)
    assert counters["stats"]["unique_graphs"] == 1
    for ours, theirs in ((loop.x, plain.x), (loop.model_input, plain.model_input), (loop.first_bad, plain.first_bad)):
        assert torch.equal(ours, theirs)


@needs_extension
def test_a_row_number_on_the_host_recompiles():
    """The check can fail: a row that is a number of Python needs a second version."""
    loop = prepared("cpu", torch.float32)
    step: Any = dispatch.backend("cpu", CPU).step

    def run(x: Tensor, row: int) -> None:
        rows = torch.full((2,), row)
        step(x, x, loop.table, loop.layout, rows, None, None, loop.inputs.key)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        compiled(loop.x, 0)
        with pytest.raises(torch._dynamo.exc.RecompileError):
            compiled(loop.x, 1)
