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
        results = run(chosen, given.out, lambda entry: _say(report.line(entry)), given.seconds)
    except KeyboardInterrupt:  # by gpu.sh, when its time is up
        results = Results.load(given.out)
    for path in _rendered(results, given.out):
        _say(f"wrote    {path}")
    _say(report.targets(results))
    wrong = sum(len(entry.wrong) for entry in results.entries)
    _say(f"{len(results.entries)} entries, {wrong} wrong results, {len(results.unmeasured)} entries not measured")
    return min(wrong, 100)


def _rendered(results: Results, out: Path) -> list[Path]:
    written = [out, report.render(results, out)]
    try:
        from fastdiff.bench.speed import picture
    except ImportError:
        return written
    return [*written, picture.render(results, out)]


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
