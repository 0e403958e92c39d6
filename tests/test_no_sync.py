"""Between two calls of the model there is the step and nothing else: no value read, no copy, no memory taken.

Every op that torch dispatches there is noted: of the backend `cpu` on tensors, of `triton` and `cuda` on meta tensors,
which have a shape and no memory. Plain torch (`eager`) takes memory by nature: it is not held to this.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff as fd
from fastdiff import loop as loops
from fastdiff import noise as noises
from fastdiff.guidance import APG, CFGZero
from fastdiff.loop import Inputs, Loop, Setup
from fastdiff.ops import dispatch, native, schema
from tests.backends import needs_extension, needs_interpreter

SCHEDULE = fd.schedules.linear(100)
SHAPE = (2, 4, 3, 3)
ROWS = 5


class Log(TorchDispatchMode):
    """The ops between one call of the model and the next, by name; views are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.inside = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not (self.inside or func.is_view):
            self.rows[-1].append(str(func))
        return func(*args, **(kwargs or {}))

    def between(self, model: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the model; its own ops are not noted, and each call begins a row."""

        def call(*args: Any, **kwargs: Any) -> Tensor:
            self.inside = True
            out = model(*args, **kwargs)
            self.inside = False
            self.rows.append([])
            return out

        return call


def steps(**options: Any) -> fd.Plan:
    return fd.samplers.ddim(SCHEDULE, **{"steps": ROWS, "eta": 1.0, **options})


def anchored() -> fd.Plan:
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": 0.5, "dx": 0.5, "cz": 0.1, "slot": 0}
    return fd.Plan.build("anchored", range(ROWS), columns)


def learned() -> fd.Plan:
    return fd.samplers.ddpm(SCHEDULE, steps=ROWS, variance="learned_range")


PLANS = {"eta 0": steps(eta=0.0), "noise": steps(), "history, anchor": anchored(), "variance": learned()}
CORRECTED = {"guidance_rescale": 0.5, "dynamic_threshold": 0.9}


def rows(
    backend: str, plan: fd.Plan, device: str, dtype: torch.dtype, branches: int, **options: Any
) -> list[list[str]]:
    """Run the rows of a loop; return the ops of each that are not the model's."""
    place = torch.device(device)
    setup = Setup(plan, SHAPE, place, dtype, backend, branches, **options)
    w = torch.full((ROWS, SHAPE[0]), 2.0, device=place) if branches == 2 else None
    loop = Loop(setup, Inputs(noises.key(1, None, SHAPE[0], place), w, {}))
    channels = SHAPE[1] * (2 if plan.learns_variance else 1)
    out = torch.ones(branches * SHAPE[0], channels, *SHAPE[2:], device=place, dtype=dtype)
    loop.start()
    with Log() as log:
        model = log.between(lambda x, t: out[: len(x)])
        for row in range(ROWS):
            loop.row(row, model)
    assert len(log.rows) == ROWS
    return log.rows


@pytest.fixture
def past_the_dispatcher(monkeypatch, extension):
    """Steps as ops, which a dispatch mode sees; past the dispatcher it is the same kernel (test_step_directly.py)."""
    monkeypatch.setattr(native.ops, "step_directly", native.ops.step)


@pytest.fixture(params=schema.GPU_BACKENDS)
def gpu_backend(request, monkeypatch):
    """The ops of a GPU backend for meta tensors, which have no address to compare."""
    ops = schema.GPU_OPS[request.param]
    monkeypatch.setattr(dispatch, "backend", lambda *_: SimpleNamespace(**ops, step_directly=ops["step"]))
    monkeypatch.setattr(loops, "apart", lambda out, model_input: out)
    return request.param


each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
each_loop = pytest.mark.parametrize(
    ("dtype", "branches"), [(torch.float32, 1), (torch.bfloat16, 2)], ids=["plain", "guided bf16"]
)


@needs_extension
@each_plan
@each_loop
def test_a_row_is_a_step_on_the_cpu(past_the_dispatcher, plan, dtype, branches):
    """One op a row."""
    assert rows("cpu", plan, "cpu", dtype, branches) == [["fastdiff.step.default"]] * ROWS


@each_plan
@each_loop
def test_a_row_is_a_step_on_a_gpu(gpu_backend, plan, dtype, branches):
    """One op a row, with fast normals too."""
    for normals in ("exact", "fast"):
        noted = rows(gpu_backend, plan, "meta", dtype, branches, normals=normals)
        assert noted == [[f"fastdiff.step.{gpu_backend}"]] * ROWS


@needs_interpreter
@each_plan
@each_loop
def test_a_triton_step_is_a_launch(monkeypatch, plan, dtype, branches):
    """The Python before the launch, past the dispatcher, does nothing to a tensor either."""
    launches: list[Any] = []
    # Files of kernels take names from each other when they are imported: all of that before one is replaced.
    _, step, launch = (import_module(f"fastdiff.kernels.{name}") for name in ("normal", "step", "launch"))
    monkeypatch.setattr(launch, "run", launches.append)
    assert rows("triton", plan, "cpu", dtype, branches) == [[]] * ROWS
    assert [call.kernel for call in launches].count(step.step_kernel) == 1 + ROWS  # the start is a step


def test_corrections_are_one_op_each(gpu_backend):
    """Each gives a number per sample, the only memory taken between rows."""
    noted = rows(gpu_backend, PLANS["noise"], "meta", torch.bfloat16, 2, **CORRECTED)
    assert noted == [[f"fastdiff.{op}.{gpu_backend}" for op in ("guidance_rescale", "threshold", "step")]] * ROWS


PER_SAMPLE = (
    "add",
    "sub",
    "rsub",
    "mul",
    "div",
    "reciprocal",
    "neg",
    "sqrt",
    "clamp",
    "gt",
    "ge",
    "where",
    "scalar_tensor",
)
MEAN = ["aten.mul_.Tensor", "aten.add_.Tensor", "aten.sub_.Tensor"]


@pytest.mark.parametrize("rule", [APG(2.0, norm=1.0), APG(2.0, norm=1.0, momentum=-0.5), CFGZero(2.0)], ids=str)
def test_rules_are_numbers_of_each_sample(gpu_backend, rule):
    """One op gives three numbers a sample, a few more work on them; a running mean is brought up to date in place."""
    for noted in rows(gpu_backend, PLANS["noise"], "meta", torch.bfloat16, 2, rule=rule):
        own = [op for op in noted if op.startswith("fastdiff.")]
        assert own == [f"fastdiff.{op}.{gpu_backend}" for op in ("inner_products", "step")]
        before = noted.index(own[0])
        assert noted[:before] == (MEAN if rule.momentum else [])
        assert {op.split(".")[1] for op in noted[before + 1 : -1]} <= {*PER_SAMPLE}


def test_rows_of_one_branch_are_a_step(gpu_backend):
    """Leaving a branch out, inside a guided loop, is a matter of views."""
    noted = rows(gpu_backend, PLANS["noise"], "meta", torch.bfloat16, 2, alone=frozenset({0, 3}))
    assert noted == [[f"fastdiff.step.{gpu_backend}"]] * ROWS


@needs_extension
def test_known_data_are_put_back_by_the_step(past_the_dispatcher):
    """Inpainting adds nothing between the rows."""
    log, image = Log(), torch.ones(SHAPE)
    with log:
        model = log.between(lambda x, t: image)
        fd.sample(model, PLANS["noise"], SHAPE, x0_init=image, known=image, mask=image, backend="cpu")
    assert log.rows[:-1] == [["fastdiff.step.default"]] * (ROWS - 1)


def loop_that(does: Callable[[Loop, int], object]) -> Callable[[Loop, int, Any], None]:
    """A loop that does something else in each row, too."""
    row_as_it_is = Loop.row

    def row(self: Loop, number: int, model: Any, z: Tensor | None = None) -> None:
        row_as_it_is(self, number, model, z)
        does(self, number)

    return row


BAD: dict[str, tuple[Callable[[Loop, int], object], str]] = {
    "reads a number": (lambda loop, row: loop.first_bad.max().item(), "aten._local_scalar_dense.default"),
    "branches": (lambda loop, row: bool(loop.first_bad[0] > 0), "aten._local_scalar_dense.default"),
    "asks where": (lambda loop, row: loop.first_bad.nonzero(), "aten.nonzero.default"),
    "copies": (lambda loop, row: loop.x.clone(), "aten.clone.default"),
    "converts": (lambda loop, row: loop.x.to(torch.float64), "aten._to_copy.default"),
    "moves": (lambda loop, row: loop.x.to("meta"), "aten._to_copy.default"),
    "allocates": (lambda loop, row: torch.zeros(3), "aten.zeros.default"),
    "uploads the row": (lambda loop, row: torch.full((2,), row), "aten.full.default"),
}


@needs_extension
@pytest.mark.parametrize("bad", BAD)
def test_a_loop_that_waits_or_allocates_is_seen(past_the_dispatcher, monkeypatch, bad):
    """The check can fail: each of these is noted in every row."""
    does, op = BAD[bad]
    monkeypatch.setattr(Loop, "row", loop_that(does))
    for noted in rows("cpu", PLANS["noise"], "cpu", torch.float32, 1):
        assert noted[0] == "fastdiff.step.default"
        assert op in noted[1:]


@needs_extension
def test_the_whole_of_sample(past_the_dispatcher):
    """What users call adds nothing between the rows; before the first and after the last it may."""
    log, out = Log(), torch.ones(SHAPE)
    with log:
        fd.sample(log.between(lambda x, t: out), PLANS["noise"], SHAPE, backend="cpu")
    assert log.rows[:-1] == [["fastdiff.step.default"]] * (ROWS - 1)
    assert log.rows[-1][0] == "fastdiff.step.default"


@needs_extension
def test_every_row_looks_alike(past_the_dispatcher):
    """Rows and times begin at a multiple of 16 bytes and are dense: a compiled step or model needs one version."""
    for batch in (1, 2, 3):
        setup = Setup(PLANS["noise"], (batch, 4), torch.device("cpu"), torch.float32, "cpu")
        loop = Loop(setup, Inputs(noises.key(1, None, batch, setup.device), None, {}))
        for tensors in (loop.rows, loop.times):
            assert {(tensor.data_ptr() % 16, tensor.stride(), len(tensor)) for tensor in tensors} == {(0, (1,), batch)}
        assert [row.tolist() for row in loop.rows] == [[row] * batch for row in range(ROWS)]
        assert [t.tolist() for t in loop.times] == [[t] * batch for t in PLANS["noise"].t]
