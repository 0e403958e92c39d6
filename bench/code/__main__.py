"""`python -m fastdiff.bench.code`: measure generated code and record it, or compare with the record."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fastdiff.bench.code import inspection, report
from fastdiff.bench.code.limits import misses, regressions
from fastdiff.bench.code.record import Record
from fastdiff.errors import FastdiffError, InputError

RECORD = Path(__file__).resolve().parents[1] / "results" / "code.json"
_BOTH = "triton,cuda"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 1 where a limit is missed or a number became worse, else 0."""
    given = _parser().parse_args(arguments)
    try:
        return _check(given) if given.check else _record(given)
    except FastdiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m fastdiff.bench.code",
        description="Compile the GPU kernels without a GPU, measure the machine code, and record it.",
        epilog="example: python -m fastdiff.bench.code --check --backends triton --targets sm_90 --cases ddpm",
    )
    parser.add_argument("--check", action="store_true", help="compare with the record instead of writing it")
    parser.add_argument(
        "--out", type=Path, default=RECORD, metavar="NAME.json", help="the record; a table stands beside it"
    )
    parser.add_argument("--backends", default=_BOTH, help="triton, cuda or both (default)")
    parser.add_argument("--targets", default="", help="as sm_90,gfx942 (default: all)")
    parser.add_argument("--cases", nargs="+", default=[""], metavar="TEXT", help="only cases whose name holds a text")
    return parser


def _record(given: argparse.Namespace) -> int:
    if given.out == RECORD and (given.targets or given.cases != [""] or given.backends != _BOTH):
        raise InputError("the record holds everything: give --check to compare a part, or --out to write it elsewhere")
    record = _inspect(given)
    record.save(given.out)
    given.out.with_suffix(".md").write_text(report.markdown(record))
    return _told([f"{entry.name}: {miss}" for entry in record.entries for miss in misses(entry)], "limits are missed")


def _check(given: argparse.Namespace) -> int:
    return _told(
        regressions(Record.load(given.out), _inspect(given)), "numbers are worse than the record or its limits"
    )


def _inspect(given: argparse.Namespace) -> Record:
    return inspection.inspect(
        given.backends.split(","), [name for name in given.targets.split(",") if name], given.cases
    )


def _told(lines: Sequence[str], what: str) -> int:
    print("\n".join([*lines, f"{len(lines)} {what}"]))
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
