"""Measure on a GPU what the targets ask about, the most telling first, within a budget of time.

    python -m fastdiff.bench.gpu --out gpu.json --seconds 200

diffusers takes part where it can be imported: unpack its wheel and those it needs into a folder, and name that folder
in PYTHONPATH.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from fastdiff.bench.gpu.parts import parts
from fastdiff.bench.speed import report
from fastdiff.bench.speed.results import Results
from fastdiff.bench.speed.run import run
from fastdiff.files import check_folder


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write NAME.json, NAME.md and, where matplotlib is there, NAME.png; return how many results are wrong."""
    parser = argparse.ArgumentParser(prog="fastdiff.bench.gpu", description="Measure fastdiff on a GPU.")
    parser.add_argument("--out", type=Path, default=Path("bench/results/gpu.json"), help="JSON to write.")
    parser.add_argument("--seconds", type=float, default=240.0, help="After these no further entry is begun.")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit(
            "error: fastdiff.bench.gpu needs a CUDA device, and torch sees none; `fastdiff bench` measures the CPU"
        )
    check_folder(given.out.parent)
    chosen = parts(torch.device("cuda"), given.seconds)
    try:
        run(chosen, given.out, lambda entry: _say(report.line(entry)), given.seconds)
    except KeyboardInterrupt:
        _say("interrupted: gpu.sh does so when the time is up")
    finally:
        results = Results.load(given.out)
        for path in _rendered(results, given.out):
            _say(f"wrote    {path}")
        _say(report.targets(results))
    wrong = sum(len(entry.wrong) for entry in results.entries)
    _say(f"{len(results.entries)} entries, {wrong} wrong results, {len(results.unmeasured)} entries not measured")
    return min(wrong, 100)


def _rendered(results: Results, out: Path) -> list[Path]:
    drawn = _drawn(results, out)
    written = [out, report.render(results, out, drawn)]
    return [*written, drawn] if drawn else written


def _drawn(results: Results, out: Path) -> Path | None:
    """Return the picture; None where there is nothing to draw, or no matplotlib that can draw it."""
    if not results.entries:
        return None
    try:
        from fastdiff.bench.speed import picture

        return picture.render(results, out)
    except Exception as error:  # the table does not need it
        _say(f"no picture: {type(error).__name__}: {error}")
        return None


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
