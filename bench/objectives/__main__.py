"""`python -m fastdiff.bench.objectives`: train the runs of the tables, measure them, and write what was found.

    python -m fastdiff.bench.objectives                           # everything, into bench/results/
    python -m fastdiff.bench.objectives --tables latents          # one table
    python -m fastdiff.bench.objectives --train-only              # the runs alone
    python -m fastdiff.bench.objectives --render-only             # tables and figure from the numbers that are there

What is finished is kept: a run with its last checkpoint, a number that was measured of the same weights. An interrupted
run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import torch
import typer
from tqdm import tqdm

from fastdiff import checkpoint as checkpoints
from fastdiff.bench import machine
from fastdiff.bench.objectives import report
from fastdiff.bench.objectives.cells import TABLES, Cell
from fastdiff.bench.objectives.measure import MEASURES, digits
from fastdiff.bench.objectives.runs import trained
from fastdiff.errors import FastdiffError, lookup
from fastdiff.files import write_text

SIZES = (8, 32)


def main(
    out: Annotated[Path, typer.Option(help="folder of the results")] = Path("bench/results"),
    runs: Annotated[Path, typer.Option(help="folder of the training runs")] = Path("runs/objectives"),
    tables: Annotated[str, typer.Option(help=f"of {','.join(TABLES)}")] = ",".join(TABLES),
    train_only: Annotated[bool, typer.Option("--train-only", help="measure nothing")] = False,
    render_only: Annotated[bool, typer.Option("--render-only", help="train and measure nothing")] = False,
) -> None:
    """Train and measure what the tables compare."""
    path = out / report.JSON
    try:
        cells = [cell for name in tables.split(",") for cell in lookup("table", name, TABLES)()]
        if render_only:
            results = report.read(path)
        else:
            for run, seed in dict.fromkeys((run, cell.seed) for cell in cells for run in (*cell.needs, cell.run)):
                trained(runs, run, seed)
            if train_only:
                return
            results = measured(cells, runs, path)
    except (FastdiffError, OSError) as error:
        sys.exit(f"error: {error}")
    for written in report.render(results, out):
        print(written)


def measured(cells: list[Cell], runs: Path, path: Path) -> report.Results:
    """Measure what the results in `path` lack and return them; each finished cell is written at once."""
    results: report.Results = report.read(path) if path.exists() else {"cells": []}
    results["setup"] = {"machine": machine.describe(), "torch": torch.__version__}
    results["real"] = {str(size): digits(size).real() for size in SIZES}
    for cell in tqdm(cells, desc="objectives", unit="cell", disable=None):
        key = json.loads(json.dumps(asdict(cell)))
        weights = [_digest(trained(runs, run, cell.seed)) for run in (cell.run, *cell.needs)]
        others = [row for row in results["cells"] if not key.items() <= row.items()]
        if any(row["weights"] == weights for row in results["cells"] if row not in others):
            continue
        numbers = MEASURES[cell.measure](runs, cell.run, cell.seed, **cell.options)
        results["cells"] = [*others, {**key, "weights": weights, **numbers}]
        write_text(path, json.dumps(results, indent=1) + "\n")
    return results


def _digest(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / checkpoints.WEIGHTS).read_bytes()).hexdigest()


if __name__ == "__main__":
    typer.run(main)
