"""Measure the scheduler's part of a pipeline's step: `python -m fastdiff.bench.pipelines`."""

from __future__ import annotations

from pathlib import Path

import diffusers
import torch
import typer

from fastdiff.bench import machine
from fastdiff.bench.pipelines import measure, report
from fastdiff.bench.pipelines.case import SCHEDULERS, SHAPES, Case

DTYPES = {"cpu": [torch.float32], "cuda": [torch.float32, torch.bfloat16]}


def main(out: Path = Path("bench/results"), device: str = "cpu", rounds: int = 15, threads: int = 1) -> None:
    """Write pipelines.json and pipelines.md into a folder, or pipelines-gpu of a GPU."""
    torch.set_num_threads(threads)
    place = torch.device(device)
    cells = []
    for scheduler in SCHEDULERS:
        for shape in SHAPES:
            for dtype in DTYPES[place.type]:
                case = Case(scheduler, shape, place, dtype)
                found = {
                    "scheduler": scheduler,
                    "shape": shape,
                    "dtype": str(dtype).removeprefix("torch."),
                    "error": measure.check(case),
                    "seconds": measure.seconds(case, rounds),
                    "reads": measure.reads(case),
                }
                cells.append(found)
                typer.echo(report.line(found))
    results = {
        "time": machine.now(),
        "machine": machine.describe(place),
        "device": device,
        "threads": threads,
        "diffusers": diffusers.__version__,
        "torch": torch.__version__,
        "rounds": rounds,
        "cells": cells,
    }
    for path in report.render(results, out):
        typer.echo(f"wrote {path}")


if __name__ == "__main__":
    typer.run(main)
