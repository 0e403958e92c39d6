"""`torch.compile(fullgraph=True)` of a row on a device, by inductor: one graph for all rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import fastdiff as fd
from fastdiff.loop import Inputs, Loop, Setup
from fastdiff.ops import dispatch

pytestmark = pytest.mark.gpu

SHAPE = (3, 4, 16, 16)
ROWS = 50
PLAN = fd.samplers.ddim(fd.schedules.linear(100), steps=ROWS, eta=1.0)


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    """Each backend of kernels that this machine has."""
    reason = dispatch.missing()[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """One rounding: inductor leaves out those in between, and the numbers of y have bf16's few bits."""
    return x * torch.where(t > 40, y, -0.5 * y).to(x.dtype).view(-1, 1, 1, 1)


def prepared(backend: str, dtype: torch.dtype) -> Loop:
    place = torch.device("cuda", torch.cuda.current_device())
    setup = Setup(PLAN, SHAPE, place, dtype, backend, branches=2)
    condition = {"y": torch.tensor([0.5, 0.75, 0.125, 0.25, 0.375, 0.625], device=place)}
    w = torch.tensor([2.0, 0.5, 1.0], device=place).expand(ROWS, 3)
    loop = Loop(setup, Inputs(fd.noise.key(3, None, SHAPE[0], place), w, condition))
    loop.start()
    return loop


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_graph_for_all_rows(backend, dtype):
    """No break and no second version; cudagraphs are off, as they are by default."""
    loop, plain = prepared(backend, dtype), prepared(backend, dtype)
    step = dispatch.backend(backend, loop.x.device).step

    def a_row(x: Tensor, t: Tensor, row: Tensor) -> None:
        out, uncond = model(loop.model_input, t, loop.inputs.condition["y"]).chunk(2)
        rest = (uncond, loop.w[0], loop.inputs.key, loop.model_input, loop.first_bad)
        step(x, out, loop.table, loop.layout, row, *rest)

    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(a_row, fullgraph=True)
    with torch.no_grad(), torch._dynamo.config.patch(error_on_recompile=True):
        for row in range(ROWS):
            compiled(loop.x, loop.times[row], loop.rows[row])
            plain.row(row, model)
    assert counters["stats"]["unique_graphs"] == 1
    assert torch.equal(loop.x, plain.x)
    assert torch.equal(loop.model_input, plain.model_input)
    assert torch.equal(loop.first_bad, plain.first_bad)
