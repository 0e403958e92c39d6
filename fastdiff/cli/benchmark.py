"""`fastdiff bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff.cli import values
from fastdiff.errors import MissingDependencyError


def bench(
    cases: Annotated[str | None, typer.Option(help="What to measure, with commas between; all if not given.")] = None,
    shapes: Annotated[str | None, typer.Option(help="1x4x64x64,16x3x256x256,...: batch first.")] = None,
    dtypes: Annotated[str | None, typer.Option(help="What the network computes in: float32, bfloat16.")] = None,
    threads: Annotated[str | None, typer.Option(help="Numbers of threads: 1,2.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto is a GPU if there is one.")] = "cpu",
    peers: Annotated[str | None, typer.Option(help="fastdiff,eager,compile,diffusers,...: who takes part.")] = None,
    rounds: Annotated[int | None, typer.Option(help="How often everyone is timed.")] = None,
    compile_seconds: Annotated[float | None, typer.Option(help="What torch.compile may take in all.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A small shape, few rounds, no torch.compile.")] = False,
    out: Annotated[Path, typer.Option(help="JSON to write; a table and a plot come beside it.")] = Path(
        "bench/results/speed.json"
    ),
    compare: Annotated[
        tuple[Path, Path] | None, typer.Option(help="Measure nothing; compare the JSON of two runs.")
    ] = None,
) -> None:
    """Measure speed beside plain torch, torch.compile and diffusers. A result is checked before it is timed."""
    try:
        from fastdiff.bench.speed import command
    except ImportError as error:
        raise MissingDependencyError(f"benchmarks need {error.name}: pip install 'fastdiff-sampler[bench]'") from None
    if compare is not None:
        typer.echo(command.compared(*compare))
        return
    given = {"cases": cases, "shapes": shapes, "dtypes": dtypes, "threads": threads, "peers": peers}
    chosen = command.settings(quick, values.device(device), rounds=rounds, compile_seconds=compile_seconds, **given)
    for path in command.measure(chosen, out, typer.echo):
        typer.echo(f"wrote    {path}")
