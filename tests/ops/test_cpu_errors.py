"""What the C++ backend refuses: each refusal is one line that names the argument."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastdiff.ops import native
from fastdiff.plan import FAST_NORMALS, NEUTRAL
from tests.ops.cpu import WRITTEN, copied, cpu_backend, differing, example, run
from tests.ops.plans import plan_of, table

pytestmark = cpu_backend

SHAPE = (2, 3, 5)
ZEROS, ONES = torch.zeros(SHAPE), torch.ones(2)
COLUMNS, NONE = len(NEUTRAL), torch.zeros(3, 0)  # of a table
KINDS = "must be float32, bfloat16 or float16 for the cpu backend; float64 runs on eager"
SAME = "must have the shape of the other image tensors of the call"
TOGETHER = "noise_loss needs x0, level and table together, or none of them"
EACH = "with one number for each of 2 samples"


def refused(name: str, **change: Any) -> str:
    """Call an op with some arguments changed; return the words of its refusal."""
    call = {**example(name, SHAPE), **change}
    before = copied(call)
    with pytest.raises(RuntimeError) as caught:
        run(native.ops, name, call)
    for key in WRITTEN[name]:
        if call[key] is not None:
            assert differing(call[key], before[key]) == 0, f"{key} was written"
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("step", {"x": ZEROS.double()}, f"x {KINDS}"),
        ("step", {"out": ZEROS.long()}, f"out {KINDS}"),
        ("step", {"uncond": ZEROS.cfloat()}, f"uncond {KINDS}"),
        ("step", {"variance": ZEROS.to(torch.float8_e4m3fn)}, f"variance {KINDS}"),
        ("step", {"x": ZEROS.half()}, "x must be float32"),
        ("step", {"y": ZEROS.half()}, "y must be float32"),
        ("step", {"history": torch.zeros(4, *SHAPE).half()}, "history must be float32"),
        ("step", {"z": ZEROS.half()}, "z must be float32"),
        ("step", {"x0_out": ZEROS.half()}, "x0_out must be float32"),
        ("step", {"out": torch.zeros(2, 3, 4)}, f"out {SAME}"),
        ("step", {"out": torch.zeros(2, 15)}, f"out {SAME}"),
        ("step", {"uncond": torch.zeros(1, 3, 5)}, f"uncond {SAME}"),
        ("step", {"variance": torch.zeros(2, 1, 5)}, f"variance {SAME}"),
        ("step", {"model_input": torch.zeros(3, 3, 5)}, f"model_input {SAME}"),
        ("step", {"model_input": torch.zeros(1, 3, 5)}, f"model_input {SAME}"),
        ("step", {"y": torch.zeros(2, 3, 5, 1)}, f"y {SAME}"),
        ("step", {"history": torch.zeros(4, 2, 3)}, f"history {SAME}"),
        ("step", {"history": torch.zeros(5, *SHAPE)}, "history must be [slots, samples, ...] with at most 4 slots"),
        ("step", {"history": torch.zeros(4)}, "history must be [slots, samples, ...] with at most 4 slots"),
        ("step", {"history": torch.zeros(3, *SHAPE)}, "the table reads history slot 3, and history has 3 slots"),
        ("step", {"history": None}, "the table reads history slot 0, and history has 0 slots"),
        ("step", {"y": None}, "the table has columns of the anchor state, which need y"),
        ("step", {"variance": None}, "the table has the column cv, which needs variance"),
        ("step", {"mask": None}, "the table has columns of what is known, which need mask"),
        ("step", {"known": None}, "the table has the column k0, which needs known"),
        ("step", {"known": ZEROS.half()}, "known must be float32"),
        ("step", {"mask": ZEROS.bool()}, f"mask {KINDS}"),
        ("step", {"mask": torch.zeros(2, 1, 5)}, f"mask {SAME}"),
        ("step", {"w_uncond": ONES.double()}, f"w_uncond must be float32 {EACH}"),
        ("step", {"key": None}, "the table has columns of noise, which need key or z"),
        ("step", {"w": None}, "uncond needs w, the guidance scale of each sample"),
        ("step", {"w": ONES.double()}, f"w must be float32 {EACH}"),
        ("step", {"scale": torch.ones(3)}, f"scale must be float32 {EACH}"),
        ("step", {"threshold": torch.ones(2, 1)}, f"threshold must be float32 {EACH}"),
        ("step", {"row": torch.tensor([0, 3])}, "row 3 is not in the table, which has 3 rows"),
        ("step", {"row": torch.tensor([-1, 0])}, "row -1 is not in the table, which has 3 rows"),
        ("step", {"row": torch.tensor([0])}, f"row must be int64 {EACH}"),
        ("step", {"row": torch.tensor([0, 1]).int()}, f"row must be int64 {EACH}"),
        ("step", {"first_bad": torch.zeros(2)}, f"first_bad must be int64 {EACH}"),
        ("step", {"key": torch.zeros(2, 3).long()}, "key must be int64 [2, 2]: seeds and sample indices"),
        ("step", {"key": torch.zeros(2, 2)}, "key must be int64 [2, 2]: seeds and sample indices"),
        ("step", {"table": torch.zeros(3, COLUMNS - 1)}, f"table must be float32 [rows, {COLUMNS}] for this call"),
        ("step", {"table": torch.zeros(3, COLUMNS).double()}, f"table must be float32 [rows, {COLUMNS}] for this call"),
        ("step", {"layout": 2 * FAST_NORMALS, "table": NONE}, f"layout {2 * FAST_NORMALS} names no set of columns"),
        ("step", {"layout": FAST_NORMALS, "table": NONE}, "fast normals are for GPUs: use normals='exact'"),
        ("step", {"layout": -1}, "layout -1 names no set of columns"),
        ("normal_", {"z": ZEROS.double()}, f"z {KINDS}"),
        ("normal_", {"z": torch.zeros(())}, "image tensors must have 1 to 16 dimensions, the samples first"),
        ("normal_", {"z": torch.zeros([1] * 17)}, "image tensors must have 1 to 16 dimensions, the samples first"),
        ("normal_", {"z": torch.zeros(3, 3)}, "key must be int64 [2, 3]: seeds and sample indices"),
        ("normal_", {"draw": torch.zeros(3).long()}, f"draw must be int64 {EACH}"),
        ("normal_", {"stream": 256}, "stream must be 0..255, got 256"),
        ("normal_", {"stream": -1}, "stream must be 0..255, got -1"),
        ("q_sample", {"level": torch.tensor([0, 3])}, "level 3 is not in the table, which has 3 rows"),
        ("q_sample", {"level": torch.tensor([0, -1])}, "level -1 is not in the table, which has 3 rows"),
        ("q_sample", {"table": torch.zeros(3, 3)}, "table must be float32 [rows, 2] for this call"),
        ("q_sample", {"key": None}, "q_sample needs key and draw, or noise"),
        ("q_sample", {"draw": None}, "q_sample needs key and draw, or noise"),
        ("q_sample", {"noise": ZEROS.half()}, "noise must be float32"),
        ("q_sample", {"noise": torch.zeros(2, 3)}, f"noise {SAME}"),
        ("q_sample", {"x0": ZEROS.double()}, f"x0 {KINDS}"),
        ("q_sample_out", {"x_t": torch.zeros(2, 3, 4)}, f"x_t {SAME}"),
        ("q_sample_out", {"drawn": ZEROS.half()}, "drawn must be float32"),
        ("noise_loss", {"pred": ZEROS.double()}, f"pred {KINDS}"),
        ("noise_loss", {"x0": ZEROS.double()}, f"x0 {KINDS}"),
        ("noise_loss", {"x0": torch.zeros(2, 3, 4)}, f"x0 {SAME}"),
        ("noise_loss", {"x0": None}, TOGETHER),
        ("noise_loss", {"level": None}, TOGETHER),
        ("noise_loss_backward", {"table": None}, TOGETHER),
        ("noise_loss", {"level": torch.tensor([0, 3])}, "level 3 is not in the table, which has 3 rows"),
        ("noise_loss_backward", {"level": torch.tensor([0, -1])}, "level -1 is not in the table, which has 3 rows"),
        ("noise_loss", {"level": torch.tensor([0])}, f"level must be int64 {EACH}"),
        ("noise_loss_backward", {"table": torch.zeros(3, 3)}, "table must be float32 [rows, 2] for this call"),
        ("noise_loss_backward", {"grad": ONES.double()}, f"grad must be float32 {EACH}"),
        ("guidance_rescale", {"uncond": torch.zeros(2, 3, 4)}, f"uncond {SAME}"),
        ("guidance_rescale", {"w": torch.zeros(3)}, f"w must be float32 {EACH}"),
        ("inner_products", {"uncond": torch.zeros(2, 3, 4)}, f"uncond {SAME}"),
        ("inner_products", {"out": ZEROS.double()}, f"out {KINDS}"),
        ("threshold", {"w_uncond": torch.ones(3)}, f"w_uncond must be float32 {EACH}"),
        ("threshold", {"quantile": 1.5}, "quantile must be in 0..1, got 1.5"),
        ("threshold", {"quantile": float("nan")}, "quantile must be in 0..1, got nan"),
        ("threshold", {"row": torch.tensor([0, 3])}, "row 3 is not in the table, which has 3 rows"),
    ],
)
def test_refusals(name: str, change: dict[str, Any], words: str) -> None:
    """The words are these and no more (no file, no backtrace), and nothing has been written."""
    for way in (name, "step_directly") if name == "step" else (name,):
        assert refused(way, **change) == words


def test_threshold_needs_a_clip() -> None:
    """A threshold without the bound to which it scales back is refused, not ignored."""
    plan = plan_of(NEUTRAL.keys() - {"clip"})
    words = "threshold needs the column clip"
    assert refused("step", table=table(plan), layout=plan.layout) == words


def test_slots_that_are_written_must_exist() -> None:
    """A row that writes a slot which history does not have is refused."""
    plan = plan_of({"cx", "slot"})
    change = {"table": table(plan), "layout": plan.layout, "row": torch.tensor([0, 1]), "threshold": None}
    words = "the table writes history slot 3, and history has 3 slots"
    assert refused("step", **change, history=torch.zeros(3, *SHAPE)) == words
    assert refused("step", **change, history=None) == "the table writes history slot 0, and history has 0 slots"


@pytest.mark.parametrize("slot", [0.5, -0.5, -2.0, torch.inf, -torch.inf, torch.nan])
def test_slots_are_whole(slot: float) -> None:
    """What is no slot and not -1 for none is refused; a table need not come from a plan."""
    plan = plan_of({"slot"})
    wrong = torch.full_like(table(plan), slot)
    change = {"table": wrong, "layout": plan.layout, "history": torch.zeros(4, *SHAPE), "threshold": None}
    assert refused("step", **change).startswith("the table writes history slot ")


def test_instruction_sets_that_do_not_exist() -> None:
    """The instruction set must be one that this machine has."""
    best = torch.ops.fastdiff.cpu_level()
    for level in (-1, 3):
        with pytest.raises(RuntimeError, match=rf"^cpu_level must be 0\.\.\d on this machine, got {level}$"):
            torch.ops.fastdiff.cpu_level(level)
    assert torch.ops.fastdiff.cpu_level() == best
