"""Runs and what is made of them: no time for a wrong result, files that hold the numbers, runs that are compared."""

from __future__ import annotations

import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.bench.speed import command, picture, report
from fastdiff.bench.speed.compare import compare
from fastdiff.bench.speed.results import Entry, Results, Spread, Timing
from fastdiff.bench.speed.run import QUICK, Settings, run
from fastdiff.bench.speed.step import StepWork
from fastdiff.bench.speed.work import WrongResult
from fastdiff.errors import FastdiffError, InputError
from fastdiff.ops import dispatch

BRIEF = replace(QUICK, cases=("ddim",), shapes=((2, 1, 4, 4),), dtypes=("float32",), rounds=2, seconds=0)


@pytest.fixture
def wrong_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make plain torch return a state that is a little off."""
    eager = StepWork.eager

    def off(work: StepWork) -> Any:
        job = eager(work)
        return replace(job, read=lambda found: {"x": 1.01 * found[0]})

    monkeypatch.setattr(StepWork, "eager", off)


def test_run_measures_every_combination(tmp_path: Path) -> None:
    """Cases, shapes, dtypes and threads; a case with a shape of its own comes once. Each entry is saved at once."""
    settings = replace(
        BRIEF,
        cases=("ddim", "normal", "call"),
        shapes=((1, 1, 4, 4), (2, 1, 4, 4)),
        dtypes=("float32", "bfloat16"),
        threads=(1, 2),
        peers=("fastdiff", "eager"),
    )
    saved: list[int] = []
    path = tmp_path / "speed.json"
    results = run([settings], path, lambda entry: saved.append(len(Results.load(path).entries)))
    assert saved == list(range(1, 2 * (4 + 4 + 2) + 1))
    assert len({entry.key for entry in results.entries}) == len(results.entries)
    for entry in results.entries:
        assert entry.timings.keys() == {"fastdiff", "eager"}
        for timing in entry.timings.values():
            assert timing.rounds == 2
            assert timing.ns.q1 <= timing.ns.median <= timing.ns.q3
        assert entry.timings["fastdiff"].ratio == Spread(1, 1, 1)
    assert Results.load(path) == results
    assert results.backend.split()[0] == dispatch.resolve("auto", torch.device("cpu"))
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("wrong_eager")
def test_wrong_result_has_no_time(tmp_path: Path) -> None:
    """What is wrong stands where the time would, in every file, and the command ends with an error."""
    lines: list[str] = []
    with pytest.raises(FastdiffError, match="1 results were wrong"):
        command.measure(BRIEF, tmp_path / "speed.json", lines.append)
    (entry,) = Results.load(tmp_path / "speed.json").entries
    assert "eager" not in entry.timings
    assert "fastdiff" in entry.timings
    assert entry.wrong["eager"].startswith("x is off by 0.01 of")
    assert "eager WRONG: x is off by" in lines[0]
    assert "**eager**, wrong result: x is off by" in (tmp_path / "speed.md").read_text()


@pytest.mark.parametrize(
    ("where", "error", "said"),
    [
        ("work.philox", WrongResult("the noise has other bits"), "the noise has other bits"),
        (
            "run.interleaved",
            RuntimeError("CUDA error: a launch failed\nand more"),
            "it failed: RuntimeError: CUDA error: a launch failed",
        ),
    ],
    ids=["while work is made", "while it is timed"],
)
def test_an_entry_that_fails_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception, said: str
) -> None:
    """The reason stands in it, and what comes behind it is measured."""
    failing = "fastdiff.bench.speed." + where.replace("work.", "noise_loss.")
    begun: list[str] = []

    def fail_first(original: Any, *arguments: Any) -> Any:
        begun.append("")
        if len(begun) == 1:
            raise error
        return original(*arguments)

    monkeypatch.setattr(failing, partial(fail_first, pkgutil.resolve_name(failing)))
    settings = replace(BRIEF, cases=("noise_loss",), dtypes=("float32", "bfloat16"), peers=("fastdiff", "eager"))
    path = tmp_path / "speed.json"
    failed, measured = run([settings], path, lambda entry: None).entries
    assert failed.wrong == {"every peer": said} and not failed.timings
    assert measured.timings.keys() == {"fastdiff", "eager"} and not measured.wrong
    assert f"**every peer**, wrong result: {said}" in report.markdown(Results.load(path), path, None)


def test_nothing_right_has_no_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no peer is right, nobody takes turns."""
    monkeypatch.setattr(dispatch, "backend", lambda *_: None)
    (entry,) = run([replace(BRIEF, peers=("fastdiff", "avx2"))], tmp_path / "speed.json", lambda entry: None).entries
    assert not entry.timings and entry.wrong.keys() == {"fastdiff", "avx2"}


def test_a_file_is_of_this_run_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is interrupted in its first entry leaves nothing of the run before."""
    path = tmp_path / "speed.json"
    REPORTED.save(path)

    def interrupt(*_: object) -> Entry:
        raise KeyboardInterrupt

    monkeypatch.setattr("fastdiff.bench.speed.run.measure", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run([BRIEF], path, lambda entry: None)
    assert Results.load(path).entries == []


def test_run_without_fastdiff_has_no_ratios(tmp_path: Path) -> None:
    """Peers can be measured by themselves."""
    results = run([replace(BRIEF, peers=("eager", "limit"))], tmp_path / "speed.json", lambda entry: None)
    assert [timing.ratio for timing in results.entries[0].timings.values()] == [None, None]
    assert "eager" in report.line(results.entries[0])
    assert "eager" in report.render(results, tmp_path / "speed.json", None).read_text()


def test_settings_from_the_command_line() -> None:
    """What is given replaces the default, or what --quick has."""
    given = command.settings(False, rounds=None, shapes="1x2x3x4,5x6x7x8", threads="1,2", cases="ddim,call")
    assert given == Settings(shapes=((1, 2, 3, 4), (5, 6, 7, 8)), threads=(1, 2), cases=("ddim", "call"))
    assert command.settings(True, rounds=3, peers=None) == replace(QUICK, rounds=3)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cases": "ddmi"}, "unknown case 'ddmi': did you mean"),
        ({"dtypes": "float64"}, "unknown dtype 'float64'"),
        ({"peers": "fastdiff,me"}, "unknown peer 'me'"),
        ({"shapes": "1x4x64"}, "shapes must have four sizes"),
        ({"shapes": "4x4xx4"}, "--shapes must be like 1x4x64x64"),
        ({"threads": "one"}, "--threads must be like 1,2"),
        ({"threads": "0"}, "at least 1"),
        ({"shapes": "1x4x0x4"}, "at least 1"),
    ],
)
def test_wrong_settings(options: Mapping[str, str], said: str) -> None:
    """A mistake is named before anything is measured."""
    with pytest.raises(InputError, match=said):
        command.settings(False, **options)


def test_out_must_be_json(tmp_path: Path) -> None:
    """The table and the plot take its name with their own endings."""
    with pytest.raises(InputError, match="give NAME.json"):
        command.measure(BRIEF, tmp_path / "speed.md", print)


# --- reports


def an_entry(case: str, *, shape: tuple[int, ...] = (1, 4, 64, 64), threads: int = 1, **ns: float) -> Entry:
    """Return an entry with a time for each peer, whose quartiles are 1 % off."""
    timings = {
        peer: Timing(around(time), around(time / ns["fastdiff"]) if "fastdiff" in ns else None, rounds=9)
        for peer, time in ns.items()
    }
    elements = torch.Size(shape).numel()
    return Entry(case, shape, "float32", threads, elements, 12 * elements, timings, {}, {})


def around(value: float) -> Spread:
    return Spread(0.99 * value, value, 1.01 * value)


def a_run(*entries: Entry) -> Results:
    machine = {"cpu": "abacus", "cores": 2, "memory": "1 KiB", "instruction set": "beads", "system": "wood"}
    return Results("2026-01-01T00:00:00+00:00", machine, {"torch": "2.10"}, "cpu (AVX-512)", list(entries))


REPORTED = a_run(
    an_entry("ddim", fastdiff=16384.0, eager=163840.0, limit=14745.6),
    an_entry("ddim-cfg", fastdiff=10_000.0, diffusers=299_000.0),
    an_entry("ddpm", fastdiff=100_000.0, compile=7e6, **{"compile-fallback": 650_000.0}),
    an_entry("ddpm", fastdiff=50_000.0, threads=2, diffusers=1e6),
    replace(an_entry("normal", fastdiff=16384 * 0.44, eager=16384 * 3.0), missing={"avx2": "no such processor"}),
    an_entry("call", fastdiff=2500.0, shape=(1, 1, 4, 4)),
)


@pytest.mark.parametrize(
    "line",
    [
        "| DDIM, eta 0, guidance, 1x4x64x64: against diffusers | >= 30x | 29.9x, **missed** |  |",
        "| steps with noise: against torch.compile | >= 60x | 70x, met |  |",
        "| steps with noise: against torch.compile, fallback_random | >= 7x | 6.5x, **missed** |  |",
        "| steps with noise on 2 threads: against diffusers | >= 20x | 20x, met |  |",
        "| normals: against torch.randn | >= 7x | 6.82x, **missed** |  |",
        "| a normal | <= 0.45 ns | 0.44 ns, met |  |",
        "| a call on 16 elements | <= 3000 ns | 2.5e+03 ns, met |  |",
        "## 1 thread",
        "## 2 threads",
        "| ddim | 1x4x64x64 | float32 | 16.4 us | 1 | 12 | 10 (9.9-10.1) |  |  |  | 0.9 (0.891-0.909) |",
        "- **avx2**, not measured: no such processor (1: normal 1x4x64x64 float32 1)",
    ],
)
def test_markdown_holds_the_numbers(line: str) -> None:
    """Targets with the worst entry of each, times, ratios with quartiles, and reasons."""
    assert line in report.markdown(REPORTED, Path("speed.json"), Path("speed.png")).splitlines()


def test_targets_that_were_not_measured_are_left_out() -> None:
    """The limit's target is for large inputs, and there are none."""
    assert "share of the memory" not in report.markdown(REPORTED, Path("speed.json"), Path("speed.png"))


def test_render_writes_beside_the_json(tmp_path: Path) -> None:
    """The table and the plot, whatever was measured."""
    for name, shown in (("all", REPORTED), ("one", a_run(REPORTED.entries[-1]))):
        drawn = picture.render(shown, tmp_path / f"{name}.json")
        table = report.render(shown, tmp_path / f"{name}.json", drawn)
        assert [table, drawn] == [tmp_path / f"{name}.md", tmp_path / f"{name}.png"]
        assert drawn.stat().st_size > 0
        assert f"({drawn.name})" in table.read_text()
        assert drawn.name not in report.markdown(shown, tmp_path / f"{name}.json", None)


@pytest.mark.parametrize("ns", [0.4567, 45.67, 4567.0, 4.567e6, 4.567e9])
def test_durations_have_three_digits(ns: float) -> None:
    """And a unit that keeps them short."""
    number, unit = report.duration(ns).split()
    assert float(number) * {"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9}[unit] == pytest.approx(ns, rel=5e-3)
    assert len(number) <= 5


def test_files_without_results_are_refused(tmp_path: Path) -> None:
    """Missing, not JSON, or of another kind."""
    path = tmp_path / "speed.json"
    for content in (None, "{", "[]", '{"entries": [{}]}'):
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match="holds no results of fastdiff bench"):
            Results.load(path)


# --- comparisons


@pytest.mark.parametrize(
    ("ours", "others", "ending"),
    [
        (1000.0, 5000.0, "others x 1.000"),
        (1015.0, 5000.0, "others x 1.000"),
        (1100.0, 5000.0, "others x 1.000  slower"),
        (900.0, 5000.0, "others x 1.000  faster"),
        (1100.0, 5500.0, "others x 1.100"),
        (1000.0, 5500.0, "others x 1.100  faster"),
    ],
)
def test_compare_marks_what_spread_and_machine_do_not_explain(ours: float, others: float, ending: str) -> None:
    """1.5 % is within quartiles of 1 % on both sides; what slows everyone down by 10 % is the machine."""
    before = a_run(an_entry("ddim", fastdiff=1000.0, eager=5000.0, avx2=1.0, triton=1.0))
    after = a_run(an_entry("ddim", fastdiff=ours, eager=others, avx2=9.0, triton=9.0), an_entry("ddpm", fastdiff=1.0))
    (line,) = compare(before, after).splitlines()
    assert line.startswith("ddim 1x4x64x64 float32 1 ")
    assert f"x {ours / 1000:.3f} (" in line
    assert line.endswith(ending)


def test_compare_needs_something_in_common() -> None:
    """Another number of threads is another entry, and one without fastdiff has nothing to compare."""
    one = a_run(an_entry("ddim", fastdiff=1.0), an_entry("ddpm", eager=1.0))
    other = a_run(an_entry("ddim", fastdiff=1.0, threads=2), an_entry("ddpm", fastdiff=1.0))
    with pytest.raises(InputError, match="nothing to compare"):
        compare(one, other)
