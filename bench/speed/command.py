"""What `fastdiff bench` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fastdiff.bench.speed import picture, report
from fastdiff.bench.speed.compare import compare
from fastdiff.bench.speed.results import Results
from fastdiff.bench.speed.run import QUICK, Settings, run
from fastdiff.bench.speed.work import CPU
from fastdiff.errors import FastdiffError, InputError
from fastdiff.files import check_folder


def settings(quick: bool, device: torch.device = CPU, **given: str | float | None) -> Settings:
    """Return QUICK or the default settings, with the attributes that were given in place of their own.

    A text is a list with commas between; None was not given. Raises InputError if a name is unknown or a number wrong.
    """
    changes = {name: _parsed(name, value) for name, value in given.items() if value is not None}
    return replace(QUICK if quick else Settings(), device=device, **changes)


def measure(chosen: Settings, out: Path, echo: Callable[[str], None]) -> list[Path]:
    """Measure, `echo` a line for each entry, and return the files written: `out` and, beside it, a table and a plot.

    Raises:
        InputError: `out` is no place for a JSON file.
        FastdiffError: a result was wrong; everything is measured and written nevertheless.
    """
    if out.suffix != ".json":
        raise InputError(f"the results are JSON, with a table and a plot beside it: give NAME.json, not {out}")
    check_folder(out.parent)
    results = run([chosen], out, lambda entry: echo(report.line(entry)))
    drawn = picture.render(results, out)
    written = [out, report.render(results, out, drawn), drawn]
    wrong = sum(len(entry.wrong) for entry in results.entries)
    if wrong:
        raise FastdiffError(f"{wrong} results were wrong and have no time: see the end of {written[1]}")
    return written


def compared(before: Path, after: Path) -> str:
    """Compare two files that `measure` wrote. Raises InputError if one is none, or they have nothing in common."""
    return compare(Results.load(before), Results.load(after))


def _parsed(name: str, value: str | float) -> Any:
    if not isinstance(value, str):
        return value
    parts = value.split(",")
    try:
        if name == "shapes":
            return tuple(tuple(int(size) for size in part.split("x")) for part in parts)
        return tuple(int(part) for part in parts) if name == "threads" else tuple(parts)
    except ValueError:
        example = "1x4x64x64,16x3x256x256" if name == "shapes" else "1,2"
        raise InputError(f"--{name} must be like {example}, got {value!r}") from None
