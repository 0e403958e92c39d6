"""`fastdiff eval`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fastdiff import checkpoint as checkpoints
from fastdiff import files
from fastdiff.cli import values
from fastdiff.errors import InputError
from fastdiff.likelihood.terms import VARIANCES


def evaluate(
    checkpoint: Annotated[
        str, typer.Argument(help="Checkpoint folder, run folder, or the name of a shipped one.")
    ] = "digits",
    bpd: Annotated[bool, typer.Option("--bpd", help="Likelihood, in bits/dim; for points in nats/dim.")] = False,
    method: Annotated[str, typer.Option(help="vlb: term by term; ode: of the probability-flow ODE.")] = "vlb",
    data: Annotated[str | None, typer.Option(help="As for `train`; what it was trained on if not given.")] = None,
    split: Annotated[str, typer.Option(help="held-out or train.")] = "held-out",
    count: Annotated[int | None, typer.Option(help="How many samples; all if not given.")] = None,
    variance: Annotated[str | None, typer.Option(help=f"Of vlb's steps: {', '.join(VARIANCES)}.")] = None,
    sampler: Annotated[str | None, typer.Option(help="For ode: whose first level is the noisy end, as ddim.")] = None,
    trace: Annotated[str | None, typer.Option(help="For ode: hutchinson or exact.")] = None,
    probes: Annotated[int | None, typer.Option(help="For ode: how many probes of the trace; 1 if not given.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto is a GPU if there is one.")] = "auto",
    batch: Annotated[int, typer.Option(help="Samples in one network evaluation.")] = 256,
    out: Annotated[Path | None, typer.Option(help="JSON to write.")] = None,
) -> None:
    """Measure how well a checkpoint predicts data."""
    from fastdiff.likelihood import evaluate as evaluation

    if not bpd:
        raise InputError("nothing to measure: ask for the likelihood with --bpd")
    if out is not None:
        if out.is_dir():
            raise InputError(f"{out} is a folder: choose another name")
        files.check_folder(out.parent)
    loaded = checkpoints.load(checkpoint, values.device(device))
    report = evaluation.likelihood(
        *(loaded, data),
        split=split,
        count=count,
        method=method,
        seed=seed,
        batch=batch,
        variance=variance,
        sampler=sampler,
        trace=trace,
        probes=probes,
    )
    report = {"checkpoint": checkpoint, **report}
    typer.echo("\n".join(evaluation.lines(report)))
    if out is not None:
        files.write_text(out, json.dumps(report, indent=1) + "\n")
        typer.echo(f"wrote    {out}")
