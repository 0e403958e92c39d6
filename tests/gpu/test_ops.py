"""Every op of the GPU backends gives the bits of the cpu backend, whatever its columns, dtypes, sizes and strides."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.ops.philox import STREAMS
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan
from tests.gpu.cases import (
    GPU,
    assert_alike,
    each_gpu_backend,
    needs_memory,
    normals_at,
    on_cpu,
    on_gpu,
    ops_of,
    to_cpu,
)
from tests.kernels.calls import LAYOUTS, moved
from tests.ops.cpu import (
    FLOATS,
    LEVELS,
    OPS,
    Call,
    Random,
    assert_same_bits,
    copied,
    differing,
    example,
    run,
    step_call,
    to_noise,
)
from tests.ops.plans import ROWS, plan_of, specialised
from tests.ops.plans import table as table_of

pytestmark = [pytest.mark.gpu, each_gpu_backend]

EVERY_COLUMN = plan_of(set(NEUTRAL))
IMAGES = ("x", "out", "uncond", "model_input", "variance", "y", "x0_out", "known", "mask")
PIECE = 1000
LARGE = 2**30 + 8  # float32 elements of 4 GiB and a little, whole vectors
SHAPES = [
    (4, 1),
    (3, 5, 7),  # less than a block, and no multiple of 4
    (2, 3, 33, 31),  # some blocks and a rest
    (2, 4, 64, 64),  # whole blocks
    (1, 1_000_003),  # a batch of one, many blocks
    (70_000, 5),  # more samples than a grid has rows
]


def a_step(plan: Plan, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Call:
    """A step of a plan with every tensor that it can take, and a threshold where it clips."""
    call = step_call(plan, shape, seed, dtype)
    return call if "clip" in plan.columns else {**call, "threshold": None}


def random_columns(seed: int) -> set[str]:
    """Return any set of columns."""
    chosen = random.Random(seed)
    return {name for name in NEUTRAL if chosen.random() < chosen.choice([0.2, 0.5, 0.8])}


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_op(backend: str, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    """With every optional tensor that it takes: the bits of the cpu backend, and of a reduction its digits."""
    call = example(name, shape, dtype)
    found, wanted = on_gpu(backend, name, call), on_cpu(name, call)
    assert_alike(name, found, wanted)


@pytest.mark.parametrize("name", ["noise_loss", "noise_loss_backward"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_noise_loss_without_a_target(backend: str, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    """Predictions of the noise itself have kernels of their own."""
    call = to_noise(example(name, shape, dtype))
    assert_alike(name, on_gpu(backend, name, call), on_cpu(name, call))


@pytest.mark.parametrize("seed", range(16))
def test_any_columns(backend: str, seed: int) -> None:
    """A step of a plan with any set of columns, in any dtype, with rows, seeds and guidance of their own."""
    plan = plan_of(random_columns(seed), stores=["x0", "eps"][seed % 2])
    call = a_step(plan, (5, 3, 9, 11), seed, FLOATS[seed % 3])
    call["w_uncond"] = None if seed % 4 < 2 else call["w_uncond"]
    assert_same_bits(on_gpu(backend, "step", call), on_cpu("step", call))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("columns", specialised(), ids=lambda columns: "-".join(sorted(columns)))
def test_columns_of_the_samplers(backend: str, columns: set[str], dtype: torch.dtype) -> None:
    """Plain steps without optional tensors, as most loops take them; the second on what the first one wrote."""
    plan = plan_of(columns)
    whole = a_step(plan, (3, 4, 32, 32), 0, dtype)
    kept = ("x", "out", "table", "layout", "row", "key", "model_input", "first_bad", "history")
    call = {name: whole[name] for name in kept}
    there, here = moved(call, GPU), copied(call)
    for _ in range(2):
        found, wanted = run(ops_of(backend), "step_directly", there), on_cpu("step", here)
        here |= wanted
    assert_same_bits(to_cpu(found), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_step_whatever_the_strides(backend: str, layout: str, dtype: torch.dtype) -> None:
    """Image tensors that are not dense are read and written where they are, and nothing between their elements."""
    call = a_step(EVERY_COLUMN, (3, 4, 9, 8), 1, dtype)
    arranged = moved(call, GPU)
    for name in IMAGES:
        arranged[name] = LAYOUTS[layout](arranged[name])
    between = {name: gaps(arranged[name]) for name in IMAGES}
    assert_same_bits(to_cpu(run(ops_of(backend), "step", arranged)), on_cpu("step", call))
    assert_same_bits({name: gaps(arranged[name]) for name in IMAGES}, between)


def gaps(view: torch.Tensor) -> torch.Tensor:
    """Return what lies in a tensor's memory beside its elements."""
    memory = view if view._base is None else view._base
    outside = torch.ones_like(memory, dtype=torch.bool)
    outside.as_strided(view.shape, view.stride(), view.storage_offset()).fill_(False)
    return memory[outside]


def test_halves_of_a_networks_output(backend: str) -> None:
    """`out.chunk(2, dim=1)` and the two branches of guidance are read without a copy."""
    draw, plan = Random(2), plan_of({"px", "po", "cx", "c0", "cz", "cv"})
    output = draw.normal(4, 6, 16, 16, dtype=torch.bfloat16)
    (out, variance), call = output.chunk(2, dim=1), a_step(plan, (2, 3, 16, 16))
    call |= {"out": out[:2], "uncond": out[2:], "variance": variance[:2]}
    there = output.to(GPU)
    out_there, variance_there = there.chunk(2, dim=1)
    halves = {"out": out_there[:2], "uncond": out_there[2:], "variance": variance_there[:2]}
    assert_same_bits(to_cpu(run(ops_of(backend), "step", {**moved(call, GPU), **halves})), on_cpu("step", call))


def test_model_input_of_two_branches(backend: str) -> None:
    """The next input is written once for each branch of guidance."""
    call = a_step(EVERY_COLUMN, (3, 3, 9, 11), 3, torch.bfloat16)
    call["model_input"] = torch.full((6, 3, 9, 11), torch.nan, dtype=torch.bfloat16)
    assert_same_bits(on_gpu(backend, "step", call), on_cpu("step", call))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", [0, 5, 2**19 + 517, 2**20 + 2])
def test_first_bad_finds_one_element(backend: str, bad: float, where: int) -> None:
    """One element of one sample, in the network's output or in the state, is noted with its row; others are not."""
    for name in ("x", "out"):
        call = a_step(plan_of({"cx", "ce", "eo"}), (3, 2**20 + 3), 4)
        call[name][1, where] = bad
        assert_same_bits(on_gpu(backend, "step", call), on_cpu("step", call))


def test_row_outside_the_table(backend: str) -> None:
    """Nothing can be refused without waiting for the device: the sample becomes NaN, and no other one changes."""
    call = a_step(EVERY_COLUMN, (5, 3, 9, 11), 5)
    call["row"] = torch.tensor([0, ROWS, 1, -1, ROWS - 1])
    good = [0, 2, 4]
    wanted = on_cpu("step", {**call, "row": call["row"].clamp(0, ROWS - 1)})
    found = on_gpu(backend, "step", call)
    assert differing(found["x"][good], wanted["x"][good]) == 0
    assert found["x"][[1, 3]].isnan().all()


def test_level_outside_the_table(backend: str) -> None:
    """Its sample becomes NaN."""
    call = example("q_sample", (4, 3, 9, 11))
    call["level"] = torch.tensor([0, len(call["table"]), -1, 1])
    found = on_gpu(backend, "q_sample", call)["result 0"]
    wanted = on_cpu("q_sample", {**call, "level": torch.tensor([0, 0, 0, 1])})["result 0"]
    assert differing(found[[0, 3]], wanted[[0, 3]]) == 0
    assert found[[1, 2]].isnan().all()


def test_slot_outside_the_history_is_not_written(backend: str) -> None:
    """A table says which slot to write; one that names none of those that are there writes nothing at all."""
    call = a_step(plan_of({"cx", "slot"}), (3, 3, 9, 11), 6)
    slot = [name for name in NEUTRAL if name in ("cx", "slot")].index("slot")
    table = call["table"].clone()
    table[:, slot] = torch.tensor([HISTORY_SLOTS, -2.0, 100.0])[:ROWS]
    found = on_gpu(backend, "step", {**call, "table": table})
    assert differing(found["history"], call["history"]) == 0
    assert differing(found["x"], on_cpu("step", call)["x"]) == 0


@pytest.mark.parametrize("shape", [(0, 4, 8, 8), (3, 0)])
@pytest.mark.parametrize("name", sorted(set(OPS) - {"threshold"}))
def test_nothing_to_do(backend: str, name: str, shape: tuple[int, ...]) -> None:
    """Without samples or without elements an op returns what the cpu backend returns."""
    call = example(name, shape)
    assert_same_bits(on_gpu(backend, name, call), on_cpu(name, call))


def test_stores_eps(backend: str) -> None:
    """History holds what the plan says."""
    for stores in ("x0", "eps"):
        plan = plan_of({"px", "po", "ex", "eo", "cx", "slot"}, stores)
        call = a_step(plan, (3, 3, 9, 11), 7)
        assert_same_bits(on_gpu(backend, "step", call), on_cpu("step", call))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param({"out": torch.zeros(2, 3)}, "(?i)out.*(cpu.*cuda|cuda.*cpu)", id="device"),
        pytest.param({"x": torch.zeros(2, 3, dtype=torch.float64, device="meta")}, "x must be float32", id="float64"),
        pytest.param({"out": torch.zeros(2, 4, device="meta")}, "out must have the shape", id="shape"),
        pytest.param({"row": torch.zeros(3, dtype=torch.int64, device="meta")}, "row must be", id="rows"),
    ],
)
def test_mistakes_are_refused(backend: str, change: dict[str, torch.Tensor], said: str) -> None:
    """On the host, in one line, before anything is written. (What is on `meta` here is made on the GPU.)"""
    call = moved(a_step(plan_of({"cx", "ce", "eo"}), (2, 3)), GPU)
    call |= {name: torch.zeros_like(value, device=GPU) if value.is_meta else value for name, value in change.items()}
    before = call["x"].clone()
    with pytest.raises((InputError, RuntimeError), match=said):
        run(ops_of(backend), "step", call)
    assert torch.equal(call["x"], before)


def test_runs_on_the_current_stream(backend: str) -> None:
    """A step waits for what its stream does before, and is waited for by what comes behind."""
    call = a_step(plan_of({"cx", "ce", "eo", "cz"}), (4, 3, 64, 64), 8)
    wanted, there = on_cpu("step", call), moved(call, GPU)
    run(ops_of(backend), "step", moved(call, GPU))  # compiled before the clock of the other stream runs
    late = torch.zeros_like(there["x"])
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(200_000_000)  # a tenth of a second: on any other stream the step would see zeros
        late.copy_(there["x"])
        run(ops_of(backend), "step", {**there, "x": late})
        found = late.clone()
        torch.cuda.current_stream().synchronize()
    assert differing(found.cpu(), wanted["x"]) == 0


def test_runs_on_the_device_of_its_tensors(backend: str) -> None:
    """Whichever device is the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    call = a_step(EVERY_COLUMN, (3, 3, 9, 11), 9)
    with torch.cuda.device(0):
        found = to_cpu(run(ops_of(backend), "step", moved(call, torch.device("cuda:1"))))
    assert_same_bits(found, on_cpu("step", call))


@pytest.mark.parametrize("shape", [(1, 2**31 + 5), (3, 2**30 + 3)])
def test_more_elements_than_32_bits_count(backend: str, shape: tuple[int, int]) -> None:
    """A step with noise on one sample, and on a batch, of more than 2^31 elements: the ends, and around 2^31."""
    needs_memory(25)
    plan = Plan.build("large", [0.0], {"cx": 0.9, "ce": -0.3, "eo": 1.0, "cz": 0.5})
    ops, random = ops_of(backend), Random(9)
    starts = [begin for begin in (0, 2**30 - 500, 2**31 - 500, shape[1] - PIECE) if begin + PIECE <= shape[1]]
    key, row, table = random.key(shape[0]), torch.zeros(shape[0], dtype=torch.int64), table_of(plan)
    z = torch.empty(shape, device=GPU)
    ops.normal_(z, key.to(GPU), row.to(GPU), STREAMS["step"])
    noise = pieces(z, starts)
    del z
    for begin, piece in zip(starts, noise, strict=True):
        exact = torch.stack([normals_at(one, begin, PIECE) for one in key.split(1, dim=1)])
        assert differing(piece, exact) == 0
    draws = torch.Generator(GPU).manual_seed(0)
    x = torch.empty(shape, device=GPU).uniform_(-3, 3, generator=draws)
    out = torch.empty(shape, dtype=torch.bfloat16, device=GPU).uniform_(-3, 3, generator=draws)
    before = zip(pieces(x, starts), pieces(out, starts), noise, strict=True)
    given = {"table": table, "layout": plan.layout, "row": row}
    wanted = [on_cpu("step", {"x": x, "out": out, "z": z, **given})["x"] for x, out, z in before]
    ops.step(x, out, table.to(GPU), plan.layout, row.to(GPU), None, None, key.to(GPU))
    for found, piece in zip(pieces(x, starts), wanted, strict=True):
        assert differing(found, piece) == 0


@pytest.mark.parametrize("name", ["step", "q_sample"])
def test_more_bytes_than_32_bits_count(backend: str, name: str) -> None:
    """A dense float32 sample of a little more than 4 GiB, read and written by whole vectors: some pieces of it."""
    needs_memory(13)
    starts = (0, LARGE // 2 - 500, LARGE - PIECE)
    key = Random(10).key(1)
    draws = torch.Generator(GPU).manual_seed(1)
    image = torch.empty(1, LARGE, device=GPU).uniform_(-3, 3, generator=draws)
    if name == "step":
        plan = plan_of({"cx", "ce", "eo", "cz"})
        given = {"table": table_of(plan), "layout": plan.layout, "row": torch.zeros(1, dtype=torch.int64)}
        whole = {"x": torch.empty_like(image).uniform_(-3, 3, generator=draws), "out": image}
    else:
        given = {"level": torch.ones(1, dtype=torch.int64), "table": LEVELS, "stream": STREAMS["step"]}
        whole = {"x0": image}
    parts = {argument: pieces(tensor, starts) for argument, tensor in whole.items()}
    drawn = {"key": key, "draw": torch.zeros(1, dtype=torch.int64), "return_noise": False}
    results = run(ops_of(backend), name, {**moved({**given, **drawn}, GPU), **whole})
    found = pieces(results["x" if name == "step" else "result 0"], starts)
    for number, begin in enumerate(starts):
        z = normals_at(key, begin, PIECE)[None]
        call = {**given, **{argument: part[number] for argument, part in parts.items()}, "return_noise": False}
        (wanted, *_) = on_cpu(name, {**call, "z": z} if name == "step" else {**call, "noise": z}).values()
        assert differing(found[number], wanted) == 0


def pieces(tensor: torch.Tensor, starts: Sequence[int]) -> list[torch.Tensor]:
    """Return PIECE elements of every sample from each start on."""
    return [tensor[:, begin : begin + PIECE].cpu() for begin in starts]
