"""The C++ step against the reference: 0 differing bits for any set of columns, tensors and dtypes."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings

import fastdiff as fd
from fastdiff.ops import native, reference
from fastdiff.plan import NEUTRAL, Plan
from tests.ops.cpu import FLOATS, Call, assert_same_bits, copied, cpu_backend, run, step_call
from tests.ops.plans import ROWS, STORES, plan_of, specialised, table
from tests.ops.strategies import OPTIONAL, steps

pytestmark = cpu_backend

SHAPES = [
    (1,),  # a sample is one number
    (5, 7),  # less than any register
    (2, 128),  # one whole block of the kernels
    (3, 129),  # a block and one element
    (2, 4, 16, 16),  # whole blocks
    (2, 3, 5, 77),  # several blocks and an odd tail
]
# What a call may have besides what its plan needs.


@settings(deadline=None, max_examples=150)
@given(call=steps(SHAPES))
def test_any_step(level: int, call: Call) -> None:
    """Everything that a step writes has the bits of the reference; nothing that it should write is left as it was."""
    wanted = run(reference, "step", copied(call))
    assert_same_bits(run(native.ops, "step", copied(call)), wanted)


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_column_and_tensor(level: int, dtype: torch.dtype, stores: str) -> None:
    """The longest row that there is, with noise that is drawn."""
    call = step_call(plan_of(set(NEUTRAL), stores), (4, 3, 9, 5), dtype=dtype)
    assert_same_bits(run(native.ops, "step", copied(call)), run(reference, "step", call))


@pytest.mark.parametrize("columns", specialised(), ids=lambda columns: "+".join(sorted(columns)))
def test_specialised_kernels(level: int, columns: set[str]) -> None:
    """The kernels for common sets of columns, with and without each thing that they leave open."""
    for scaled, noisy, guided, fed, watched in itertools.product([False, True], repeat=5):
        plan = plan_of(columns | ({"scale_in"} if scaled else set()) | ({"cz"} if noisy else set()))
        call = step_call(plan, (3, 3, 7, 19), dtype=torch.bfloat16)
        given = {"uncond": guided, "model_input": fed, "first_bad": watched, "history": "slot" in columns}
        unused = {name for name in OPTIONAL if not given.get(name)}
        call = {name: value for name, value in call.items() if name not in unused}
        assert_same_bits(run(native.ops, "step", copied(call)), run(reference, "step", call))


def test_there_are_specialised_kernels() -> None:
    """The sets of columns were found in the source, and nothing but columns is among them."""
    assert len(specialised()) >= 5
    assert set.union(*specialised()) <= NEUTRAL.keys()


def test_noise_is_drawn_or_given(level: int) -> None:
    """A step with the drawn noise handed over is the step that draws it: stream "step", draw = row."""
    plan = plan_of(set(NEUTRAL))
    call = step_call(plan, (3, 3, 9, 5))
    z = torch.empty(3, 3, 9, 5)
    native.ops.normal_(z, call["key"], call["row"], 1)
    assert_same_bits(run(native.ops, "step", {**copied(call), "key": None, "z": z}), run(native.ops, "step", call))


@pytest.mark.parametrize("dtype", FLOATS)
def test_error_of_a_step(level: int, dtype: torch.dtype) -> None:
    """The next input is off float64 by at most twice what plain torch in its dtype is; the state, in float32."""
    plan = fd.samplers.ddim(fd.schedules.cosine(), steps=ROWS, clip=1.0)
    call = step_call(plan, (4, 3, 32, 32), dtype=dtype)
    kept = ("x", "out", "uncond", "w", "row", "table", "layout", "model_input")
    call = {name: call[name] for name in kept}
    got = run(native.ops, "step", copied(call))

    def plain(dtype: torch.dtype) -> torch.Tensor:
        x, out, uncond = (call[name].to(dtype) for name in ("x", "out", "uncond"))
        w = call["w"].to(dtype).reshape(-1, 1, 1, 1)
        values = call["table"][call["row"]].to(dtype).reshape(4, -1, 1, 1, 1).unbind(1)
        c = dict(zip(plan.columns, values, strict=True))
        out = uncond + w * (out - uncond)
        x0 = (c["px"] * x + c["po"] * out).clamp(-c["clip"], c["clip"])
        return c["c0"] * x0 + c["ce"] * (c["ex"] * x + c["e0"] * x0)

    def error(value: torch.Tensor) -> torch.Tensor:
        return (value - plain(torch.float64)).abs().max()

    # flash-attention's rule
    assert error(got["model_input"]) <= 2 * error(plain(dtype))
    assert error(got["x"]) <= 2 * error(plain(torch.float32))


def test_first_bad_is_the_least(level: int) -> None:
    """A sample keeps the first row that went wrong, and says whether the output (even) or the state (odd) did."""
    plan = Plan.build("sum", [2, 1, 0], {"cx": 1.0, "px": 1.0, "po": 1.0, "c0": 1.0})
    x, out = torch.zeros(2, 5, 300).unbind()
    out[1, 299] = torch.inf
    x[2, 0] = torch.nan
    x[3, 130], out[3, 131] = torch.inf, torch.nan
    x[4, 7] = torch.nan
    first_bad = torch.tensor([6, 6, 6, 6, 1])
    row = torch.tensor([0, 1, 2, 1, 2])
    native.ops.step(x, out, table(plan), plan.layout, row, first_bad=first_bad)
    assert first_bad.tolist() == [6, 2, 5, 2, 1]


def test_guidance_of_one(level: int) -> None:
    """Where w is 1, the unconditional output has no part in the result, even if it is not finite."""
    call = step_call(plan_of({"po", "c0"}), (2, 300))
    call = {name: call[name] for name in ("x", "out", "table", "layout", "row", "uncond")}
    call["uncond"][0] = torch.nan
    first_bad = torch.tensor([9, 9])
    native.ops.step(**call, w=torch.tensor([1.0, 3.0]), first_bad=first_bad)
    po, c0 = call["table"][call["row"][0]]
    assert torch.equal(call["x"][0], c0 * (po * call["out"][0]))
    assert first_bad.tolist() == [9, 9]
