"""The bodies of the CUDA kernels, run on the host, give the bits of the C++ backend."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import native, reference
from fastdiff.ops.philox import STREAMS
from fastdiff.plan import FAST_NORMALS, NEUTRAL, Plan
from tests.ops import cpu
from tests.ops.cpu import FLOATS, OPS, assert_same_bits, copied, example, step_call, to_noise
from tests.ops.plans import plan_of, specialised
from tests.ops.strategies import plans

pytestmark = cpu.cpu_backend
SUMS = {"noise_loss", "guidance_rescale", "inner_products"}  # which add in an order of their own
# Sums of at most 1e4 rounded terms in float64 agree to some 1e-12, and are then rounded to float32: one or two ulp.
CLOSE = {"rtol": 2.5e-7, "atol": 0.0, "equal_nan": True}
# Whole vectors; samples that end within one; more than one element to none; several vectors for each thread.
SHAPES = [(3, 4, 8, 8), (2, 3, 5, 7), (1, 1, 1, 1), (2, 12, 1), (2, 3, 64, 96)]
OPTIONAL = [
    *("uncond", "w", "model_input", "first_bad", "variance", "scale", "threshold", "y", "history", "x0_out"),
    *("w_uncond", "known", "mask"),
]


def assert_same(cuda: SimpleNamespace, name: str, call: cpu.Call) -> None:
    """A call gives, and leaves in its arguments, what it does with the C++ backend."""
    other = copied(call)
    got, wanted = cpu.run(cuda, name, call), cpu.run(native.ops, name, other)
    if name in SUMS:
        torch.testing.assert_close(got, wanted, **CLOSE)
    else:
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [name for name in OPS if name != "step_directly"])
def test_every_op_with_all_that_it_takes(cuda: SimpleNamespace, name: str, shape, dtype: torch.dtype) -> None:
    assert_same(cuda, name, example(name, shape, dtype))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", ["noise_loss", "noise_loss_backward"])
def test_noise_loss_without_a_target(cuda: SimpleNamespace, name: str, dtype: torch.dtype) -> None:
    """Predictions of the noise itself have kernels of their own."""
    for shape in SHAPES:
        assert_same(cuda, name, to_noise(example(name, shape, dtype)))


def test_noise_loss_of_several_kinds(cuda: SimpleNamespace) -> None:
    """pred and x0 are widened each from its own dtype."""
    for name, kinds in itertools.product(["noise_loss", "noise_loss_backward"], itertools.permutations(FLOATS, 2)):
        call = example(name, (2, 4, 8, 8))
        call["pred"], call["x0"] = (call[image].to(dtype) for image, dtype in zip(("pred", "x0"), kinds, strict=True))
        assert_same(cuda, name, call)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("question", [set(), {"cz"}, {"scale_in"}, {"cz", "scale_in"}], ids=str)
@pytest.mark.parametrize("columns", specialised(), ids=lambda columns: "+".join(sorted(columns)))
def test_specialised_kernels(cuda: SimpleNamespace, columns: set[str], question: set[str], dtype: torch.dtype) -> None:
    """The kernels that know their columns, with and without what they ask for, in vectors and without."""
    for shape in [(3, 4, 8, 8), (2, 4, 5, 3)]:
        for optional in (set(), {"uncond", "w"}, {"model_input", "first_bad"}):
            call = step_call(plan_of(columns | question), shape, dtype=dtype)
            call = {
                name: value for name, value in call.items() if name not in OPTIONAL or name in optional | {"history"}
            }
            assert_same(cuda, "step", call)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", range(8))
@pytest.mark.parametrize("name", ["out", "x"])
def test_what_is_not_finite_is_noticed_anywhere_in_a_vector(cuda: SimpleNamespace, name: str, place: int, value: float):
    """Among finite numbers before and behind it."""
    call = step_call(plan_of({"cx", "po", "c0"}), (2, 64), dtype=torch.bfloat16)
    call = {key: call[key] for key in ("x", "out", "table", "layout", "row", "model_input", "first_bad")}
    call[name][1, 24 + place] = value
    assert_same(cuda, "step", call)


@hypothesis.given(plan=plans(), given=st.sets(st.sampled_from(OPTIONAL)), data=st.data())
@hypothesis.settings(max_examples=150, deadline=None, derandomize=True)
def test_any_plan(cuda: SimpleNamespace, plan: Plan, given: set[str], data: st.DataObject) -> None:
    """Any columns, and any of the tensors that they leave free, of kinds of their own."""
    shape = data.draw(st.sampled_from([(2, 4, 2, 4), (3, 3, 5), (1, 16)]))
    call = step_call(plan, shape, seed=data.draw(st.integers(0, 9)))
    for name in ("out", "uncond", "variance", "model_input"):
        call[name] = call[name].to(data.draw(st.sampled_from(FLOATS)))
    columns = set(plan.columns)
    needed = {"history"} | ({"variance"} if "cv" in columns else set())
    needed |= {"y"} if columns & {"cy", *(name for name in NEUTRAL if name.startswith("d"))} else set()
    needed |= {"known", "mask"} if columns & {"k0", "kz"} else set()
    if "clip" not in columns:
        given = given - {"threshold"}
    if {"uncond", "w"} & given:
        given = given | {"uncond", "w"}
    call = {name: value for name, value in call.items() if name not in OPTIONAL or name in needed | given}
    if data.draw(st.booleans()):
        call["z"] = cpu.Random(4).normal(*shape)
    assert_same(cuda, "step", call)


STRANGE = {
    "channels last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    "every other": lambda t: torch.stack([t, t], -1)[..., 0],
    "not aligned": lambda t: torch.cat([t.new_zeros(1), t.flatten()])[1:].view(t.shape),
    "part of a batch": lambda t: torch.cat([t, t], 1).chunk(2, dim=1)[1],
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("lie", STRANGE)
def test_memory_formats(cuda: SimpleNamespace, lie: str, dtype: torch.dtype) -> None:
    """Samples that are not dense, or not aligned, give what dense ones give."""
    for name in (
        "step",
        "q_sample_out",
        "normal_",
        "noise_loss",
        "noise_loss_backward",
        "guidance_rescale",
        "inner_products",
        "threshold",
    ):
        call = example(name, (3, 4, 8, 8), dtype)
        strange = {
            key: STRANGE[lie](value) if isinstance(value, Tensor) and value.ndim == 4 else value
            for key, value in copied(call).items()
        }
        got, wanted = cpu.run(cuda, name, strange), cpu.run(cuda, name, call)
        torch.testing.assert_close(got, wanted, rtol=0, atol=0, equal_nan=True)


def test_model_input_of_several_branches(cuda: SimpleNamespace) -> None:
    for dtype in FLOATS:
        for shape in [(2, 4, 8, 8), (2, 3, 5, 5)]:
            call = step_call(plan_of({"px", "po", "cx", "c0"}), shape, dtype=dtype)
            call = {name: call[name] for name in ("x", "out", "table", "layout", "row", "model_input")}
            call["model_input"] = torch.cat([call["model_input"]] * 3)
            assert_same(cuda, "step", call)


@pytest.mark.parametrize("row", [-1, 3, 2**40])
def test_a_row_outside_the_table_makes_its_sample_nan(cuda: SimpleNamespace, row: int) -> None:
    """A GPU cannot refuse it. The other samples are as they are, and no slot of the history is written."""
    for columns in ({"px", "po", "clip", "cx", "c0", "slot"}, {*NEUTRAL}):
        call = step_call(plan_of(columns), (3, 4, 8, 8))
        history, wanted = call["history"].clone(), copied(call)
        call["row"][1] = row
        got, wanted = cpu.run(cuda, "step", call), cpu.run(native.ops, "step", wanted)
        assert got["x"][1].isnan().all() and got["model_input"][1].isnan().all()
        assert torch.equal(got["history"][:, 1], history[:, 1])
        assert torch.equal(got["x"][[0, 2]], wanted["x"][[0, 2]])
        assert got["first_bad"][1] == min(2 * row + 1, 2 * len(call["table"]))


def test_a_slot_outside_the_history_is_not_written(cuda: SimpleNamespace) -> None:
    call = step_call(plan_of({"px", "po", "clip", "cx", "c0", "slot"}), (3, 4, 8, 8))
    call["history"] = call["history"][:2]
    call["row"] = torch.tensor([0, 1, 2])  # into the slots 0, 3 and -1
    before = call["history"].clone()
    got = cpu.run(cuda, "step", call)["history"]
    assert not torch.equal(got[0, 0], before[0, 0])
    got[0, 0] = before[0, 0]
    assert torch.equal(got, before)


def test_a_level_outside_the_table_makes_its_sample_nan(cuda: SimpleNamespace) -> None:
    call = example("q_sample", (3, 4, 8, 8))
    call["level"] = torch.tensor([0, 3, -1])
    x_t = cpu.run(cuda, "q_sample", call)["result 0"]
    assert x_t[0].isfinite().all() and x_t[1:].isnan().all()
    loss = cpu.run(cuda, "noise_loss", {**example("noise_loss", (3, 4, 8, 8)), "level": call["level"]})["result 0"]
    assert loss.isfinite().tolist() == [True, False, False]


def test_sums_do_not_depend_on_the_batch(cuda: SimpleNamespace) -> None:
    """Samples that begin anywhere in memory, alone and among others, to the bit."""
    for name in ("noise_loss", "guidance_rescale", "inner_products", "threshold"):
        call = example(name, (3, 3, 37, 41))
        together = cpu.run(cuda, name, call)["result 0"]
        for b in range(3):
            alone = {
                key: value[:, b : b + 1] if key == "key" else value[b : b + 1] if key != "table" else value
                for key, value in call.items()
                if isinstance(value, Tensor)
            }
            assert torch.equal(cpu.run(cuda, name, {**call, **alone})["result 0"], together[..., b : b + 1]), name


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.995, 1.0])
def test_threshold_among_equal_and_infinite_numbers(cuda: SimpleNamespace, quantile: float) -> None:
    call = {**example("threshold", (4, 5, 7)), "quantile": quantile}
    call["out"] = call["out"].round()
    call["out"][1, 2] = torch.inf
    call["x"][2] = 0.0
    call["out"][2] = 0.0
    call["out"][3, 1, 1] = torch.nan
    assert_same(cuda, "threshold", call)


def test_sums_of_samples_without_elements(cuda: SimpleNamespace) -> None:
    for name in sorted(SUMS):
        assert_same(cuda, name, example(name, (2, 0)))


def test_sums_of_constant_samples(cuda: SimpleNamespace) -> None:
    """The ratio is 1 where the guided output has no spread."""
    call = example("guidance_rescale", (2, 3, 5))
    call["out"] = torch.full_like(call["out"], 0.1)
    call["uncond"] = torch.full_like(call["out"], 0.7)
    assert torch.equal(cpu.run(cuda, "guidance_rescale", call)["result 0"], torch.ones(2))


def test_fast_normals_are_close_to_the_exact_ones_of_the_same_words(cuda: SimpleNamespace) -> None:
    """Their formula, with the host's functions: the radius and the half-plane of a pair follow from its words alike.

    u and the exact spec's u differ by 2^-31, so the radius does by 1e-6 where u > 1e-3, which 0.998 of the pairs are.
    The angles are others; both are uniform.
    """
    shape, size = (1, 4, 64, 64), 4 * 64 * 64
    plan = plan_of({"cz"})
    call = step_call(plan, shape)
    call = {name: call[name] for name in ("x", "out", "table", "layout", "row", "key")}
    exact = cpu.run(cuda, "step", copied(call))["x"].view(-1, 2)
    fast = cpu.run(cuda, "step", {**call, "layout": call["layout"] | FAST_NORMALS})["x"].view(-1, 2)
    apart = (exact.norm(dim=1) - fast.norm(dim=1)).abs()
    assert (apart < 2e-6).double().mean() > 0.99
    scale = call["table"][int(call["row"]), 0]
    assert abs(float((fast / scale).mean())) < 5 / size**0.5  # five standard errors
    assert abs(float((fast / scale).square().mean()) - 1) < 5 * (2 / size) ** 0.5
    assert abs(float((fast / scale).prod(dim=1).mean())) < 5 / (size / 2) ** 0.5


def test_noise_is_the_specification(cuda: SimpleNamespace) -> None:
    """Against plain torch too, with seeds and samples of all sizes."""
    key = torch.tensor([[0, -1, 2**63 - 1], [0, 2**56 - 1, 2**33 + 5]])
    draw = torch.tensor([0, 2**32 - 1, 7])
    z = torch.empty(3, 50)
    cuda.normal_(z, key, draw, STREAMS["train"])
    assert torch.equal(z, reference.normal(z.shape, key, draw, STREAMS["train"]))
