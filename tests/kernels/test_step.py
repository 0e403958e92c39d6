"""The Triton step against the reference: 0 differing bits for any set of columns, tensors and dtypes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from fastdiff.errors import InputError
from fastdiff.kernels import operands
from fastdiff.kernels import step as kernel
from fastdiff.kernels.normal import normal_
from fastdiff.ops import philox, reference
from fastdiff.plan import FAST_NORMALS, NEUTRAL, Plan
from tests.kernels.calls import LAYOUTS, moved
from tests.ops.cpu import FLOATS, Call, assert_same_bits, copied, run, step_call
from tests.ops.plans import ROWS, STORES, plan_of, specialised, table
from tests.ops.strategies import OPTIONAL, steps

SHAPES = [
    (1,),  # a sample is one number
    (5, 7),  # less than any block
    (2, 4, 16, 16),  # whole blocks
    (2, 3, 5, 77),  # several programs and an odd tail
]
DDIM = {"px", "po", "clip", "ex", "e0", "c0", "ce"}


def assert_same_as_reference(call: Call, device: torch.device) -> None:
    """The kernel writes the bits that the reference writes on the CPU."""
    wanted = run(reference, "step", copied(call))
    got = run(kernel, "step", moved(call, device))
    assert_same_bits({name: value.cpu() for name, value in got.items()}, wanted)


def without(call: Call, *names: str) -> Call:
    """A call without some of its optional tensors."""
    return {name: value for name, value in call.items() if name not in names}


@pytest.fixture
def several_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small calls are cut as large ones are: a program computes several tiles."""
    monkeypatch.setattr(operands, "MANY_ELEMENTS", 0)
    operands.tiled_blocks.cache_clear()
    yield
    operands.tiled_blocks.cache_clear()


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=steps(SHAPES))
def test_any_step(device: torch.device, call: Call) -> None:
    """Everything that a step writes has the bits of the reference; nothing that it should write is left as it was."""
    assert_same_as_reference(call, device)


@pytest.mark.parametrize("stores", STORES)
@pytest.mark.parametrize("dtype", FLOATS)
def test_every_column_and_tensor(device: torch.device, dtype: torch.dtype, stores: str) -> None:
    """The longest row that there is, with noise that is drawn."""
    assert_same_as_reference(step_call(plan_of(set(NEUTRAL), stores), (4, 3, 9, 5), dtype=dtype), device)


@pytest.mark.parametrize("shape", [(1, 4096), (2, 3, 5, 277)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_several_tiles(several_tiles: None, device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """A program with several tiles writes what several programs with one tile each write, and notes the same."""
    call = step_call(plan_of(set(NEUTRAL)), shape, dtype=dtype)
    call["out"].view(-1)[-1] = torch.nan
    assert_same_as_reference(call, device)


@pytest.mark.parametrize("columns", specialised(), ids=lambda columns: "+".join(sorted(columns)))
def test_common_columns(device: torch.device, columns: set[str]) -> None:
    """The samplers that most people run, with and without each thing that they leave open."""
    for noisy, guided, watched in itertools.product([False, True], repeat=3):
        plan = plan_of(columns | ({"cz", "scale_in"} if noisy else set()))
        call = step_call(plan, (3, 3, 7, 19), dtype=torch.bfloat16)
        given = {"uncond": guided, "model_input": True, "first_bad": watched, "history": "slot" in columns}
        assert_same_as_reference(without(call, *(name for name in OPTIONAL if not given.get(name))), device)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_format(device: torch.device, layout: str) -> None:
    """However the elements of its tensors lie, a step writes the same numbers to the same elements."""
    call = step_call(plan_of(set(NEUTRAL)), (3, 4, 5, 6), dtype=torch.bfloat16)
    images = ("x", "out", "uncond", "variance", "y", "model_input", "x0_out", "known", "mask")
    wanted = run(reference, "step", copied(call))
    for names in (images, *((name,) for name in images)):
        placed = moved(call, device)
        for name in names:
            placed[name] = LAYOUTS[layout](placed[name])
        got = run(kernel, "step", placed)
        assert_same_bits({name: value.cpu() for name, value in got.items()}, wanted)


def test_other_memory_of_first_bad_and_history(device: torch.device) -> None:
    """What is written between other numbers gets there."""
    call = step_call(plan_of(set(NEUTRAL)), (3, 4, 5, 6))
    wanted = run(reference, "step", copied(call))
    for name, dim in (("first_bad", 1), ("history", 1), ("history", -1)):
        placed = moved(call, device)
        placed[name] = torch.stack([placed[name]] * 2, dim=dim).select(dim, 0)
        got = run(kernel, "step", placed)
        assert_same_bits({name: value.cpu() for name, value in got.items()}, wanted)


def test_halves_of_a_network_with_learned_variance(device: torch.device) -> None:
    """`out.chunk(2, dim=1)` is read where it lies: the samples of both halves lie between each other."""
    call = step_call(plan_of({"px", "po", "clip", "cx", "c0", "cz", "cv"}), (3, 4, 8, 8), dtype=torch.bfloat16)
    wanted = run(reference, "step", copied(call))
    placed = moved(call, device)
    both = torch.cat([placed["out"], placed["variance"]], dim=1)
    placed["out"], placed["variance"] = both.chunk(2, dim=1)
    assert operands.is_dense(placed["out"]) and not placed["out"].is_contiguous()
    got = run(kernel, "step", placed)
    assert_same_bits({name: value.cpu() for name, value in got.items()}, wanted)


def test_one_row_for_all(device: torch.device) -> None:
    """A row that is expanded over the samples, as the sampling loop passes it."""
    call = step_call(plan_of(DDIM | {"cz"}), (3, 5, 7))
    call["row"] = torch.tensor([1, 1, 1])
    placed = moved(call, device)
    placed["row"] = torch.tensor([1], device=device).expand(3)
    got = run(kernel, "step", placed)
    assert_same_bits({name: value.cpu() for name, value in got.items()}, run(reference, "step", call))


def test_noise_is_drawn_or_given(device: torch.device) -> None:
    """A step with the drawn noise handed over is the step that draws it: stream "step", draw = row."""
    call = moved(step_call(plan_of(set(NEUTRAL)), (3, 3, 9, 5)), device)
    z = torch.empty(3, 3, 9, 5, device=device)
    normal_(z, call["key"], call["row"], 1)
    given = run(kernel, "step", {**copied(call), "key": None, "z": z})
    assert_same_bits(given, run(kernel, "step", call))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fast_normals(device: torch.device, dtype: torch.dtype) -> None:
    """They are r cos and r sin of the same words of Philox, near to the float64 ones.

    The approximate log2 and sine are off by 2^-22 and 2^-20 (PTX ISA, lg2.approx and sin.approx): near r = 0, where the
    error is largest, r^2 by 2 log(2) 2^-22, and r by less than 1e-3.
    """
    shape, plan = (2, 4, 32, 32), plan_of({"cz"})
    call = without(step_call(plan, shape, dtype=dtype), "uncond", "w", "scale", "threshold", "y", "history", "variance")
    call["layout"] |= FAST_NORMALS
    got = run(kernel, "step", moved(call, device))["x"].cpu().double()
    z = got / call["table"][call["row"]].double().view(-1, 1, 1, 1)

    quad = torch.arange(math.prod(shape[1:]) // 4)
    mask, (seed, sample), row = philox.MASK32, call["key"][:, :, None], call["row"][:, None]
    counter = (quad, row, sample & mask, 1 << 24 | (sample >> 32 & 0xFFFFFF))
    words = philox.philox(counter, (seed & mask, seed >> 32 & mask))
    normals = []
    for a, b in (words[:2], words[2:]):
        radius = (-2 * ((a.double() + 0.5) * 2.0**-32).log()).sqrt()
        angle = torch.where(b > mask >> 1, b - (mask + 1), b).double() * (math.pi * 2.0**-31)
        normals += [radius * angle.cos(), radius * angle.sin()]
    assert (z - torch.stack(normals, dim=-1).view(shape)).abs().max() < 1e-3


def test_rows_that_are_not_in_the_table(device: torch.device) -> None:
    """They make their sample NaN, which is noted, and no other."""
    call = step_call(plan_of(DDIM), (4, 300))
    call = without(call, "uncond", "w", "scale", "threshold", "y", "history", "x0_out")
    call["row"] = torch.tensor([0, ROWS, 2, 2**40])
    got = run(kernel, "step", moved(call, device))
    assert got["x"].isnan().all(dim=1).tolist() == [False, True, False, True]
    assert got["model_input"].isnan().any(dim=1).tolist() == [False, True, False, True]
    assert got["first_bad"].tolist() == [2 * ROWS, 2 * ROWS, 2 * ROWS, 2 * ROWS]


def test_slots_that_are_not_in_the_history(device: torch.device) -> None:
    """They are not written."""
    plan = plan_of({"px", "c0", "slot"})
    call = without(step_call(plan, (4, 300)), "threshold")
    call["row"], call["history"] = torch.tensor([0, 1, 2, 0]), call["history"][:2]
    call["table"][:, -1] = torch.tensor([0.0, 2.0, torch.nan])
    got = run(kernel, "step", moved(call, device))["history"].cpu()
    changed = (got != call["history"]).any(dim=2)
    assert changed.tolist() == [[True, False, False, True], [False] * 4]


def test_first_bad_is_the_least(device: torch.device) -> None:
    """A sample keeps the first row that went wrong, and says whether the output (even) or the state (odd) did."""
    plan = Plan.build("sum", [2, 1, 0], {"cx": 1.0, "px": 1.0, "po": 1.0, "c0": 1.0})
    x, out = torch.zeros(2, 5, 3000).unbind()
    out[1, 2999] = torch.inf
    x[2, 0] = torch.nan
    x[3, 130], out[3, 2131] = torch.inf, torch.nan
    x[4, 7] = torch.nan
    first_bad = torch.tensor([6, 6, 6, 6, 1], device=device)
    row = torch.tensor([0, 1, 2, 1, 2])
    arguments = (value.to(device) for value in (x, out, table(plan)))
    kernel.step(*arguments, plan.layout, row.to(device), first_bad=first_bad)
    assert first_bad.tolist() == [6, 2, 5, 2, 1]


def test_guidance_of_one(device: torch.device) -> None:
    """Where w is 1, the unconditional output has no part in the result, even if it is not finite."""
    call = step_call(plan_of({"po", "c0"}), (2, 300))
    call = {name: call[name] for name in ("x", "out", "table", "layout", "row", "uncond")}
    call["uncond"][0] = torch.nan
    call["w"], call["first_bad"] = torch.tensor([1.0, 3.0]), torch.tensor([9, 9])
    got = run(kernel, "step", moved(call, device))
    po, c0 = call["table"][call["row"][0]]
    assert torch.equal(got["x"][0].cpu(), c0 * (po * call["out"][0]))
    assert got["first_bad"].tolist() == [9, 9]


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_nothing_to_do(device: torch.device, shape: tuple[int, ...]) -> None:
    """No samples, or samples without elements."""
    call = moved(step_call(plan_of(set(NEUTRAL)), shape), device)
    before = copied(call)
    assert_same_bits(run(kernel, "step", call), {name: before[name] for name in run(kernel, "step", call)})


def test_the_state_may_be_the_output(device: torch.device) -> None:
    """Element for element, a tensor may be read and written: the start of a sampling loop does it."""
    call = step_call(plan_of({"cx", "po", "c0", "scale_in"}), (2, 3, 7, 19))
    call = {name: call[name] for name in ("x", "table", "layout", "row", "model_input")}
    call["out"] = call["x"]
    wanted = run(reference, "step", {**copied(call), "out": call["x"].clone()})
    placed = moved(call, device)
    placed["out"] = placed["x"]
    got = run(kernel, "step", placed)
    assert_same_bits({name: value.cpu() for name, value in got.items()}, wanted)


def test_shared_memory_is_refused(device: torch.device) -> None:
    """What is written may be neither several elements in one place nor a part of what is read."""
    call = moved(step_call(plan_of({"cx", "po", "c0"}), (2, 8)), device)
    call = {name: call[name] for name in ("x", "out", "table", "layout", "row")}
    shared = torch.zeros(24, device=device)
    call["x"], call["out"] = shared[:16].view(2, 8), shared[8:].view(2, 8)
    with pytest.raises(InputError, match=r"^x is written and shares memory with out other than element for element"):
        kernel.step(**call)
    with pytest.raises(InputError, match=r"^x is written, so its elements must not share memory: pass a copy$"):
        kernel.step(**{**call, "x": torch.zeros(1, 8, device=device).expand(2, 8)})


SHAPE = (2, 3, 5)
ZEROS, ONES = torch.zeros(SHAPE), torch.ones(2)
KINDS = "must be float32, bfloat16 or float16 for the GPU kernels"
SAME = "must have the shape of the other image tensors of the call"
EACH = "with one number for each of 2 samples"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": ZEROS.double()}, "x must be float32"),
        ({"x": torch.zeros(())}, "image tensors must have at least 1 dimension"),
        ({"out": ZEROS.long()}, f"out {KINDS}, got int64"),
        ({"uncond": ZEROS.cfloat()}, f"uncond {KINDS}, got complex64"),
        ({"variance": ZEROS.double()}, f"variance {KINDS}, got float64"),
        ({"y": ZEROS.half()}, "y must be float32"),
        ({"history": torch.zeros(4, *SHAPE).half()}, "history must be float32"),
        ({"z": ZEROS.half()}, "z must be float32"),
        ({"x0_out": ZEROS.half()}, "x0_out must be float32"),
        ({"out": torch.zeros(2, 3, 4)}, f"out {SAME}, (2, 3, 5), got (2, 3, 4)"),
        ({"out": torch.zeros(4, 3, 5)}, f"out {SAME}"),
        ({"uncond": torch.zeros(1, 3, 5)}, f"uncond {SAME}"),
        ({"model_input": torch.zeros(3, 3, 5)}, f"model_input {SAME}"),
        ({"model_input": torch.zeros(1, 3, 5)}, f"model_input {SAME}"),
        ({"y": torch.zeros(2, 3, 5, 1)}, f"y {SAME}"),
        ({"history": torch.zeros(4, 2, 3)}, f"history {SAME}"),
        ({"history": torch.zeros(5, *SHAPE)}, "history must be [slots, samples, ...] with at most 4 slots"),
        ({"history": torch.zeros(4)}, "history must be [slots, samples, ...] with at most 4 slots"),
        ({"history": torch.zeros(3, *SHAPE)}, "the table reads history slot 3, and history has 3 slots"),
        ({"history": None}, "the table reads history slot 0, and history has 0 slots"),
        ({"y": None}, "the table has columns of the anchor state, which need y"),
        ({"variance": None}, "the table has the column cv, which needs variance"),
        ({"mask": None}, "the table has columns of what is known, which need mask"),
        ({"known": None}, "the table has the column k0, which needs known"),
        ({"known": ZEROS.half()}, "known must be float32"),
        ({"mask": torch.zeros(2, 1, 5)}, f"mask {SAME}"),
        ({"w_uncond": ONES.double()}, f"w_uncond must be float32 {EACH}"),
        ({"key": None}, "the table has columns of noise, which need key or z"),
        ({"w": None}, "uncond needs w, the guidance scale of each sample"),
        ({"w": ONES.double()}, f"w must be float32 {EACH}"),
        ({"scale": torch.ones(3)}, f"scale must be float32 {EACH}"),
        ({"threshold": torch.ones(2, 1)}, f"threshold must be float32 {EACH}"),
        ({"row": torch.tensor([0])}, f"row must be int64 {EACH}"),
        ({"first_bad": torch.zeros(2)}, f"first_bad must be int64 {EACH}"),
        ({"key": torch.zeros(2, 3).long()}, "key must be int64 [2, 2]: seeds and sample indices"),
        ({"table": torch.zeros(3, 1)}, f"table must be float32 [rows, {len(NEUTRAL)}] for this call"),
        ({"layout": 2 * FAST_NORMALS}, f"layout {2 * FAST_NORMALS} names no set of columns"),
        ({"layout": -1}, "layout -1 names no set of columns"),
        ({"out": ZEROS.to("meta")}, "out is on meta and the other tensors of the call on "),
        ({"row": torch.tensor([0, 1]).to("meta")}, "row is on meta and the other tensors of the call on "),
    ],
)
def test_refusals(device: torch.device, change: dict[str, Any], words: str) -> None:
    """One line that names the argument, and nothing has been written."""
    call = moved(step_call(plan_of(set(NEUTRAL)), SHAPE), device)
    for name, value in change.items():
        on_meta = isinstance(value, torch.Tensor) and value.device.type == "meta"
        call[name] = value.to(device) if isinstance(value, torch.Tensor) and not on_meta else value
    before = copied(call)
    with pytest.raises(InputError) as caught:
        kernel.step(**call)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
    for name in ("x", "model_input", "first_bad", "y", "history", "x0_out"):
        if name not in change:
            assert_same_bits({name: call[name]}, {name: before[name]})


def test_a_clip_to_zero_keeps_the_sign(device: torch.device) -> None:
    """The lower bound is then -0, not 0."""
    plan = Plan.build("nothing", [1.0] * ROWS, {"po": 1.0, "clip": 0.0, "c0": 1.0})
    call = {name: step_call(plan, SHAPE)[name] for name in ("x", "out", "table", "layout", "row")}
    assert_same_as_reference(call, device)


def test_a_threshold_needs_a_clip(device: torch.device) -> None:
    """A threshold without the bound to which it scales back is refused, not ignored."""
    call = moved(step_call(plan_of(NEUTRAL.keys() - {"clip"}), SHAPE), device)
    with pytest.raises(InputError, match=r"^threshold needs the column clip$"):
        kernel.step(**call)


@pytest.mark.gpu
def test_more_than_2_31_elements(device: torch.device) -> None:
    """The last elements of a sample that no 32-bit offset reaches have the noise and the bits of their place."""
    size = 2**31 + 4096 + 5
    x = torch.ones(1, size, device=device)
    plan = plan_of({"cx", "cz"})
    key, row = torch.tensor([[7], [1]], device=device), torch.tensor([1], device=device)
    kernel.step(x, x, table(plan).to(device), plan.layout, row, key=key)
    first = (size - 4096) // 4
    counter = tuple(torch.tensor([value]) for value in (1, 1, 1 << 24))
    words = philox.philox((torch.arange(first, size // 4), *counter), (torch.tensor([7]), torch.tensor([0])))
    z = torch.stack([*philox.normal_pair(*words[:2]), *philox.normal_pair(*words[2:])], dim=-1).flatten()
    wanted = {"x": torch.ones(len(z))}
    reference.step(wanted["x"][None], wanted["x"][None], table(plan), plan.layout, torch.tensor([1]), z=z[None])
    assert_same_bits({"x": x[0, 4 * first : 4 * first + len(z)].cpu()}, wanted)
