"""The table of `pipelines.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastdiff.bench.pipelines.case import STEPS, WAYS
from fastdiff.files import write_text

NAME = {"cpu": "pipelines", "cuda": "pipelines-gpu"}


def render(results: Mapping[str, Any], out: Path) -> list[Path]:
    """Write the numbers and their table into a folder and return their paths."""
    name = NAME[results["device"].partition(":")[0]]
    texts = {out / f"{name}.json": json.dumps(results, indent=1), out / f"{name}.md": markdown(results)}
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def markdown(results: Mapping[str, Any]) -> str:
    """Return the document."""
    machine = ", ".join(f"{name}: {value}" for name, value in results["machine"].items())
    on_gpu = results["device"] != "cpu"
    lines = [
        "# The scheduler's part of a pipeline's step",
        "",
        f"`python -m fastdiff.bench.pipelines --device {results['device']}`, {results['time']}.",
        f"Machine: {machine}.",
        f"diffusers {results['diffusers']}, torch {results['torch']}, {results['threads']} thread(s).",
        "",
        f"Stable Diffusion's pipeline, {STEPS} steps with guidance, around a network that costs nothing:",
        "what is left is the scaling and doubling of the input, the guidance and the step.",
        "`accelerate`: the scheduler replaced; `loop`: the whole loop in one go.",
        "Times are medians; in brackets how many times less than diffusers.",
        "Each way's latents were compared with diffusers' before; the largest relative error is in the last column.",
        "",
    ]
    heads = ["scheduler", "shape", "dtype", *(f"{way}, host us" for way in WAYS)]
    heads += [f"{way}, device us" for way in WAYS] if on_gpu else []
    heads += [f"{way}, {'waits' if on_gpu else 'values read'}" for way in WAYS] + ["error"]
    rows = [_row(cell, on_gpu) for cell in results["cells"]]
    return "\n".join([*lines, *_table(heads, rows), ""])


def line(cell: Mapping[str, Any]) -> str:
    """Return a cell as a line of progress."""
    times = ", ".join(f"{way} {cell['seconds'][way]['host'] * 1e6:.0f} us" for way in WAYS)
    return f"{cell['scheduler']} {cell['shape']} {cell['dtype']}: {times}"


def _row(cell: Mapping[str, Any], on_gpu: bool) -> list[str]:
    row = [cell["scheduler"], "x".join(map(str, cell["shape"])), cell["dtype"]]
    for clock in ("host", "device") if on_gpu else ("host",):
        first = cell["seconds"][WAYS[0]][clock]
        for way in WAYS:
            taken = cell["seconds"][way][clock]
            row.append(f"{taken * 1e6:.0f}" + (f" ({first / taken:.1f} x)" if way != WAYS[0] else ""))
    return [*row, *(f"{cell['reads'][way]:.2g}" for way in WAYS), f"{cell['error']:.0e}"]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
