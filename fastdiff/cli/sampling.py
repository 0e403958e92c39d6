"""`fastdiff sample`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from fastdiff import checkpoint as checkpoints
from fastdiff import pictures, samplers
from fastdiff.checkpoint import Checkpoint
from fastdiff.cli import values
from fastdiff.errors import InputError, lookup
from fastdiff.guidance import Model, load_classifier
from fastdiff.ops import dispatch
from fastdiff.sample import sample as run_plan
from fastdiff.samplers import sigmas
from fastdiff.samplers import spacing as spacings

# The sampler of both least Frechet distances at its number of evaluations in bench/results/few_steps.json.
SAMPLER, STEPS = "dpmpp_3m_sde", 15
GUIDANCE = 1.5
SPACINGS = (*spacings.names(), *sigmas.names())


def sample(
    checkpoint: Annotated[
        str, typer.Option(help="Checkpoint folder, run folder, or the name of a shipped one.")
    ] = "digits",
    out: Annotated[Path, typer.Option(help="PNG to write.")] = Path("samples.png"),
    sampler: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(samplers.SAMPLERS)}; {SAMPLER}, or ddpm for a learned variance, if not given."),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            help="Steps; one network evaluation each, two for heun and its like. "
            f"{STEPS} if not given, or all levels where there are fewer."
        ),
    ] = None,
    eta: Annotated[str | None, typer.Option(help="Noise, for samplers that have an eta; DDIM's is 0..1.")] = None,
    spacing: Annotated[
        str | None, typer.Option(help=f"Which levels to visit: {', '.join(SPACINGS)}; the sampler's own if not given.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Another option of the sampler, as order=3; may be given several times.")
    ] = None,
    plan_only: Annotated[bool, typer.Option("--plan", help="Print the sampler's table and draw nothing.")] = False,
    guidance: Annotated[
        float | None, typer.Option(help=f"w of u + w (c - u): 1 is none. {GUIDANCE} if not given, 1 with --classifier.")
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Run of a classifier (fastdiff train --objective classifier) to guide by.")
    ] = None,
    omega: Annotated[float | None, typer.Option(help="Strength of the classifier: 0 is none, 1 if not given.")] = None,
    per_class: Annotated[int, typer.Option(help="Samples of each class: one row of the picture.")] = 10,
    count: Annotated[int, typer.Option(help="Samples in all, for a network without classes.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1 ...; auto is a GPU if there is one.")] = "auto",
    dtype: Annotated[str, typer.Option(help="What the network computes in: float32, bfloat16 or float16.")] = "float32",
    backend: Annotated[str, typer.Option(help="auto, or one that `fastdiff info` lists.")] = "auto",
) -> None:
    """Draw samples from a checkpoint and write them as a PNG."""
    picture = pictures.checked(out)
    place, model_dtype = values.device(device), lookup("dtype", dtype, values.DTYPES)
    loaded = checkpoints.load(checkpoint, place)
    loaded.model.to(model_dtype)
    model, known = _guided(loaded, classifier, omega)
    named = {"spacing": spacing, "eta": None if eta is None else values.parsed(eta)}
    options = {name: value for name, value in named.items() if value is not None} | values.options(option or [])
    sampler = sampler or ("ddpm" if loaded.learns_variance else SAMPLER)
    try:
        plan = loaded.plan(sampler, steps=min(STEPS, len(loaded.schedule)) if steps is None else steps, **options)
    except InputError:
        raise
    except (TypeError, ValueError) as error:
        raise InputError(f"an option of {sampler} has a value of the wrong kind: {error}") from None
    if plan_only:
        typer.echo(plan)
        return
    classes = len(known)
    w = guidance if guidance is not None else GUIDANCE if classifier is None else 1.0
    labels = torch.arange(classes, device=place).repeat_interleave(values.positive("per-class", per_class))
    number = len(labels) if classes else values.positive("count", count)

    started = time.perf_counter()
    x = run_plan(
        model,
        plan,
        (number, *loaded.shape),
        seed=seed,
        cond={"y": labels} if classes else None,
        guidance=w if classes else 1.0,
        decode=loaded.decode,
        dtype=model_dtype,
        backend=backend,
        progress=True,
    ).cpu()
    seconds = time.perf_counter() - started

    pictures.save(x, picture, columns=per_class if classes else max(1, round(number**0.5)))
    drawn_with = f"{plan.name}, {plan.nfe} evaluations" + (f", guidance {w:g}" if classes else "")
    drawn_with += f", omega {1.0 if omega is None else omega:g}" if classifier is not None else ""
    typer.echo(f"wrote    {picture.resolve()}")
    typer.echo(f"sampler  {drawn_with}")
    typer.echo(f"speed    {number / seconds:.1f} images/s ({number} in {seconds:.2f} s)")
    typer.echo(f"backend  {dispatch.resolve(backend, place)} on {place}")


def _guided(loaded: Checkpoint, classifier: str | None, omega: float | None) -> tuple[Model, tuple[str, ...]]:
    """Return a checkpoint's network, guided where a classifier's run is named, and the classes that it draws."""
    if classifier is None:
        if omega is not None:
            raise InputError("--omega is the strength of a classifier: name one with --classifier")
        return loaded.model, loaded.classes
    guide = load_classifier(classifier, next(loaded.model.parameters()).device)
    return guide.guide(loaded, 1.0 if omega is None else omega), guide.classes
