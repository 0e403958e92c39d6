"""bench/code: what a kernel should do, what it must keep to, and what counts as worse."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from fastdiff.bench.code import work
from fastdiff.bench.code.limits import misses, regressions
from fastdiff.bench.code.measure import Measure
from fastdiff.bench.code.path import Tally
from fastdiff.bench.code.record import Entry, Record
from fastdiff.bench.code.report import markdown
from fastdiff.errors import InputError

DDIM = {"px", "po", "eo", "c0", "ce"}
MULTISTEP = {"px", "po", "cx", "c0", "ch0", "slot"}


def test_the_work_of_a_step_by_hand() -> None:
    # x in and out, an output in, a model input out; two terms in x0, one in eps, two in x'.
    assert work.step(DDIM, guided=False, network=2, normals="none") == work.Work(4 + 2, 4 + 2, fma=2)
    # Two outputs and two model inputs, and one fma of guidance.
    assert work.step(DDIM, guided=True, network=4, normals="none") == work.Work(4 + 8, 4 + 8, fma=3)
    # One slot of history is read, and one written; three terms in x'.
    assert work.step(MULTISTEP, guided=False, network=2, normals="none") == work.Work(10, 10, fma=1 + 2)


def test_the_work_of_normals_by_hand() -> None:
    # Of a pair: 8 of the logarithm, 3 and 3 of sine and cosine, 1 under the root, 2 of the root; and the term cz z.
    noisy = work.step({*DDIM, "cz"}, guided=False, network=2, normals="exact")
    assert noisy.fma == 2 + 1 + (8 + 3 + 3 + 1 + 2) / 2
    assert noisy.tally(8) == Tally(loads=2 + 1, stores=2 + 1, fma=24 + 68)
    assert work.step({*DDIM, "cz"}, guided=False, network=2, normals="fast").fma == 2 + 1 + 0.5


def test_the_work_of_the_other_ops_by_hand() -> None:
    assert work.q_sample(2).tally(8) == Tally(loads=1, stores=1, fma=68 + 8)
    assert work.noise_loss(4).tally(4) == Tally(loads=1, fma=34)
    assert work.noise_loss_backward(4).tally(4) == Tally(loads=1, stores=1, fma=34 + 5)  # a division takes five
    assert work.normal(2).tally(8) == Tally(stores=1, fma=68)
    assert work.guidance_rescale(2).tally(8).loads == 2
    assert work.inner_products(4).tally(8).loads == 2 + 2
    assert work.threshold(2).tally(8).loads == 2 + 2


GOOD = Measure(
    registers=40,
    local=0,
    shared=0,
    instructions=400,
    loads={"128": 3, "32": 7},
    stores={"128": 3},
    fma=92,
    special=4,
    wide_products=40,
    shared_accesses=0,
    shuffles=0,
    barriers=0,
    local_accesses=0,
    atomics=1,
    loops=0,
)
ENTRY = Entry(
    case="step, ddim eta 1, bf16, exact normals",
    backend="cuda",
    target="sm_90",
    kernel="step",
    dtype="bf16",
    normals="exact",
    elements=8,
    measure=GOOD,
    work=work.step({*DDIM, "cz"}, guided=False, network=2, normals="exact"),
)
RECORD = Record({"cuda": "13.0"}, (ENTRY,))


def changed(**numbers: Any) -> Entry:
    return replace(ENTRY, measure=replace(GOOD, **numbers))


def test_a_good_kernel_misses_nothing() -> None:
    assert misses(ENTRY) == []


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"registers": 49}, "49 registers, more than 48"),
        ({"local": 16}, "local memory"),
        ({"local_accesses": 1}, "local memory"),
        ({"loads": {"128": 4}}, "4 loads of 128 bits, 3 wanted"),
        ({"loads": {"64": 6}}, "0 loads of 128 bits, 3 wanted"),
        ({"loads": {"128": 3, "16": 1}}, "too narrow"),
        ({"stores": {"128": 2, "32": 4}}, "2 stores of 128 bits, 3 wanted"),
        ({"stores": {"128": 3, "32": 1}}, "too narrow"),
        ({"loops": 1}, "1 loops without accesses"),
        ({"fma": 93}, "93 fused multiply-adds, 92 named"),
        ({"fma": 91}, "91 fused multiply-adds, 92 named"),
        ({"shared_accesses": 2}, "2 accesses to shared memory"),
        ({"barriers": 1}, "1 barriers"),
        ({"wide_products": 30}, "leaves out a part of Philox"),
        ({"instructions": 465}, "58.1 instructions per element, more than 58"),
    ],
)
def test_each_limit_can_be_missed(numbers: dict[str, Any], words: str) -> None:
    assert any(words in miss for miss in misses(changed(**numbers)))


def test_instructions_are_limited_where_there_is_noise_and_bf16() -> None:
    many = changed(instructions=4000)
    assert misses(replace(many, dtype="fp32")) == []
    assert len(misses(replace(many, backend="triton"))) == 1
    assert any("more than 38" in miss for miss in misses(replace(ENTRY, normals="fast")))


def test_amd_has_more_registers() -> None:
    many = replace(changed(registers=128), backend="triton", target="gfx942")
    assert misses(many) == []
    assert misses(replace(many, target="sm_90")) == ["128 registers, more than 80"]
    assert misses(replace(many, measure=replace(GOOD, registers=129))) == ["129 registers, more than 128"]


def test_fast_normals_on_amd_may_take_more_multiply_adds() -> None:
    fast = replace(changed(fma=999), backend="triton", normals="fast")
    assert any("named" in miss for miss in misses(fast))
    assert not any("named" in miss for miss in misses(replace(fast, target="gfx942")))


def test_a_kernel_of_several_has_no_work_and_keeps_its_shared_memory() -> None:
    assert misses(replace(changed(shared_accesses=8, barriers=2, fma=0), work=None)) == []
    assert len(misses(replace(changed(local_accesses=2), work=None))) == 1


def test_a_sum_over_a_sample_may_use_shared_memory() -> None:
    summing = replace(ENTRY.work or work.Work(0, 0), reduces=True)
    assert misses(replace(changed(shared_accesses=8, barriers=2, stores={"128": 3, "32": 1}), work=summing)) == []


@pytest.mark.parametrize(
    "numbers",
    [
        {"instructions": 409},
        {"registers": 45},
        {"shared_accesses": 8, "barriers": 1},
        {"shared": 16},
        {"shuffles": 1},
        {"special": 5},
        {"loads": {"128": 3, "32": 8}},
    ],
)
def test_what_is_worse_by_more_than_the_slack_is_a_regression(numbers: dict[str, Any]) -> None:
    lines = regressions(RECORD, replace(RECORD, entries=(changed(**numbers),)))
    assert lines and all(line.startswith("cuda, sm_90: step, ddim eta 1") for line in lines)
    better = replace(RECORD, entries=(changed(**numbers),))
    assert regressions(better, RECORD) == []


def test_what_is_worse_within_the_slack_is_none() -> None:
    now = replace(RECORD, entries=(changed(instructions=408, registers=44),))
    assert regressions(RECORD, now) == []


def test_twice_the_elements_in_twice_the_instructions_is_no_regression() -> None:
    double = {
        name: {bits: 2 * n for bits, n in value.items()} if isinstance(value, dict) else 2 * value
        for name, value in asdict(GOOD).items()
        if name != "registers"
    }
    now = replace(ENTRY, elements=16, measure=Measure(registers=40, **double))
    assert regressions(RECORD, replace(RECORD, entries=(now,))) == []


def test_another_compiler_is_held_to_the_limits_only() -> None:
    assert regressions(RECORD, Record({"cuda": "13.1"}, (changed(instructions=460),))) == []
    (line,) = regressions(RECORD, Record({"cuda": "13.1"}, (changed(registers=49),)))
    assert line == f"{ENTRY.name}: 49 registers, more than 48"


def test_a_limit_that_the_record_misses_is_no_news() -> None:
    missed = replace(RECORD, entries=(changed(registers=50),))
    assert regressions(missed, replace(RECORD, entries=(changed(registers=50),))) == []
    (line,) = regressions(missed, replace(RECORD, entries=(changed(registers=55),)))
    assert "registers was 50 and is 55" in line


def test_a_new_case_must_be_recorded() -> None:
    now = replace(RECORD, entries=(ENTRY, replace(ENTRY, case="another")))
    assert regressions(RECORD, now) == ["cuda, sm_90: another: not in the record"]


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    record = replace(RECORD, entries=(ENTRY, replace(ENTRY, case="several", work=None)))
    record.save(tmp_path / "code.json")
    assert Record.load(tmp_path / "code.json") == record
    (tmp_path / "code.json").write_text('{"entries": [{}]}')
    with pytest.raises(InputError, match="holds no record"):
        Record.load(tmp_path / "code.json")


def test_the_table_shows_every_entry_and_what_it_misses() -> None:
    text = markdown(replace(RECORD, entries=(ENTRY, replace(changed(registers=50), case="worse"))))
    assert (
        "| step, ddim eta 1, bf16, exact normals | 40 | 50.0 | 8 | 3 x 128, 7 x 32 | 3 x 128 | 12 | 92 | 92 |" in text
    )
    assert "- cuda, sm_90: worse: 50 registers, more than 48" in text
