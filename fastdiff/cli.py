"""The command line: `fastdiff train`, `sample`, `eval`, `export`, `bench`, `info`. A mistake costs one line."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch
import typer

from fastdiff import checkpoint as checkpoints
from fastdiff import files, pictures, samplers, system
from fastdiff.checkpoint import Checkpoint
from fastdiff.errors import FastdiffError, InputError, MissingDependencyError, lookup
from fastdiff.guidance import Model, load_classifier
from fastdiff.likelihood.terms import VARIANCES
from fastdiff.noise import PROBES
from fastdiff.ops import dispatch
from fastdiff.sample import sample as run_plan
from fastdiff.samplers import sigmas
from fastdiff.samplers import spacing as spacings
from fastdiff.train.config import TrainConfig
from fastdiff.train.objectives import OBJECTIVES
from fastdiff.train.objectives.weights import WEIGHTS
from fastdiff.train.times import TIMES

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="A fast diffusion sampler.")

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# The sampler of both least Frechet distances at its number of evaluations in bench/results/few_steps.json.
SAMPLER, STEPS = "dpmpp_3m_sde", 15
GUIDANCE = 1.5
SPACINGS = (*spacings.names(), *sigmas.names())
RUN = TrainConfig()  # the defaults of `train`
UsageError: Any = typer.BadParameter.__base__  # typer exports this subclass alone


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(str(int(number)) for number in numbers)


def main() -> None:
    """Run the command line; end with one line on any error that a user can act on, status 2 for wrong usage, else 1."""
    try:
        sys.exit(app(sys.argv[1:] or ["--help"], standalone_mode=False))
    except UsageError as error:
        _fail(f"{error.format_message().rstrip('.')}; see --help", status=2)
    except (FastdiffError, OSError) as error:
        _fail(str(error))
    except typer.Abort:
        _fail("stopped")
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail("not enough memory: ask for fewer samples, a smaller batch or fewer levels")


def _fail(message: str, status: int = 1) -> NoReturn:
    sys.stderr.write(f"error: {' '.join(message.split())}\n")
    sys.exit(status)


@app.command(epilog="Example: fastdiff sample --steps 10 --guidance 2 --out samples.png")
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
    place, model_dtype = _device(device), lookup("dtype", dtype, DTYPES)
    loaded = checkpoints.load(checkpoint, place)
    loaded.model.to(model_dtype)
    model, known = _guided(loaded, classifier, omega)
    named = {"spacing": spacing, "eta": None if eta is None else _value(eta)}
    options = {name: value for name, value in named.items() if value is not None} | _options(option or [])
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
    labels = torch.arange(classes, device=place).repeat_interleave(_positive("per-class", per_class))
    number = len(labels) if classes else _positive("count", count)

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
    drawn_with += f", omega {omega:g}" if omega is not None else ""
    typer.echo(f"wrote    {picture.resolve()}")
    typer.echo(f"sampler  {drawn_with}")
    typer.echo(f"speed    {number / seconds:.1f} images/s ({number} in {seconds:.2f} s)")
    typer.echo(f"backend  {dispatch.resolve(backend, place)} on {place}")


@app.command(epilog="Example: fastdiff train --data digits --out runs/digits")
def train(
    data: Annotated[str, typer.Option(help="digits, folder:PATH, hf:PATH, swiss_roll, moons, ...")] = RUN.data,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/digits"),
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    size: Annotated[int | None, typer.Option(help="Side of images read from disk, or of digits.")] = RUN.size,
    channels: Annotated[int | None, typer.Option(help="1 or 3, for images read from disk.")] = RUN.channels,
    objective: Annotated[str, typer.Option(help=f"{', '.join(OBJECTIVES)}.")] = RUN.objective,
    weighting: Annotated[str | None, typer.Option(help=f"gamma of l_gamma: {', '.join(WEIGHTS)}.")] = RUN.weighting,
    variance: Annotated[str | None, typer.Option(help=f"Of l_vlb's steps: {', '.join(VARIANCES)}.")] = RUN.variance,
    vlb_weight: Annotated[float | None, typer.Option(help="Factor of L_vlb in l_hybrid.")] = RUN.vlb_weight,
    latents: Annotated[
        str | None, typer.Option(help="Diffuse the latents of this autoencoder: its run, or diffusers:FOLDER.")
    ] = RUN.latents,
    latent_channels: Annotated[int, typer.Option(help="Channels of an autoencoder's latents.")] = RUN.latent_channels,
    kl_weight: Annotated[float, typer.Option(help="Weight of KL in vae.")] = RUN.kl_weight,
    corruption: Annotated[float, typer.Option(help="Noise that a denoising_autoencoder takes away.")] = RUN.corruption,
    probes: Annotated[str, typer.Option(help=f"Directions of sliced: {', '.join(PROBES)}.")] = RUN.probes,
    times: Annotated[str, typer.Option(help=f"How t is drawn: {', '.join(TIMES)}.")] = RUN.times,
    schedule: Annotated[str, typer.Option(help="Noise schedule.")] = RUN.schedule,
    levels: Annotated[int, typer.Option(help="Levels T of the schedule.")] = RUN.T,
    sigma_min: Annotated[float | None, typer.Option(help="Least sigma, as of geometric.")] = RUN.sigma_min,
    sigma_max: Annotated[float | None, typer.Option(help="Largest sigma, as of geometric.")] = RUN.sigma_max,
    prediction: Annotated[str, typer.Option(help="eps, x0, v, score or flow.")] = RUN.prediction,
    width: Annotated[int, typer.Option(help="Channels of the network's first level.")] = RUN.width,
    multipliers: Annotated[str, typer.Option(help="Channels of each level as multiples of --width.")] = _joined(
        RUN.multipliers
    ),
    blocks: Annotated[int, typer.Option(help="Residual blocks a level.")] = RUN.blocks,
    attention: Annotated[str, typer.Option(help="For each level, 1 if it attends.")] = _joined(RUN.attention),
    dropout: Annotated[float, typer.Option(help="Dropout in the network.")] = RUN.dropout,
    condition_dropout: Annotated[
        float, typer.Option(help="How often a label is dropped, for guidance.")
    ] = RUN.condition_dropout,
    steps: Annotated[int, typer.Option(help="Optimiser steps.")] = RUN.steps,
    batch: Annotated[int, typer.Option(help="Samples a step.")] = RUN.batch,
    lr: Annotated[float, typer.Option(help="Peak learning rate.")] = RUN.lr,
    warmup: Annotated[int, typer.Option(help="Steps of warm-up.")] = RUN.warmup,
    weight_decay: Annotated[float, typer.Option(help="AdamW's weight decay.")] = RUN.weight_decay,
    clip_norm: Annotated[float, typer.Option(help="Bound of the gradient's norm.")] = RUN.clip_norm,
    ema: Annotated[float, typer.Option(help="Decay of the averaged weights.")] = RUN.ema,
    precision: Annotated[str, typer.Option(help="fp32 or bf16.")] = RUN.precision,
    seed: Annotated[int, typer.Option(help="Seed of the whole run.")] = RUN.seed,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.")] = RUN.save_every,
    sample_every: Annotated[int, typer.Option(help="Steps between sample grids.")] = RUN.sample_every,
    workers: Annotated[int, typer.Option(help="Processes that read data.")] = RUN.workers,
    tracker: Annotated[str, typer.Option(help="none or tensorboard.")] = RUN.tracker,
) -> None:
    """Train a network; its checkpoints can be sampled, exported and resumed."""
    try:
        from fastdiff.train.trainer import train as run_training
    except ImportError as error:
        raise MissingDependencyError(f"training needs {error.name}: pip install 'fastdiff-sampler[train]'") from None
    config = TrainConfig(
        data=data,
        size=size,
        channels=channels,
        objective=objective,
        weighting=weighting,
        variance=variance,
        vlb_weight=vlb_weight,
        latents=latents,
        latent_channels=latent_channels,
        kl_weight=kl_weight,
        corruption=corruption,
        probes=probes,
        times=times,
        schedule=schedule,
        T=levels,
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        prediction=prediction,
        width=width,
        multipliers=_numbers("multipliers", multipliers),
        blocks=blocks,
        attention=tuple(bool(number) for number in _numbers("attention", attention)),
        dropout=dropout,
        condition_dropout=condition_dropout,
        steps=steps,
        batch=batch,
        lr=lr,
        warmup=warmup,
        weight_decay=weight_decay,
        clip_norm=clip_norm,
        ema=ema,
        precision=precision,
        seed=seed,
        save_every=save_every,
        sample_every=sample_every,
        workers=workers,
        tracker=tracker,
    )
    typer.echo(f"trained  {run_training(config, out, resume=resume)}")


@app.command("eval", epilog="Example: fastdiff eval runs/digits --bpd --count 32")
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
    loaded = checkpoints.load(checkpoint, _device(device))
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


@app.command(epilog="Example: fastdiff export runs/digits my-checkpoint")
def export(
    run: Annotated[str, typer.Argument(help="Run or checkpoint folder.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it is replaced.")],
    dtype: Annotated[
        str, typer.Option(help="What the weights are stored in: float32, bfloat16 or float16.")
    ] = "float32",
) -> None:
    """Copy a run's newest checkpoint without what only training needs."""
    stored_as = lookup("dtype", dtype, DTYPES)
    folder = checkpoints.find(run)
    training = checkpoints.read_config(folder).get("training")
    loaded = checkpoints.load(folder)
    loaded.model.to(stored_as)
    checkpoints.save(out, loaded, training)
    typer.echo(f"wrote    {out}")


@app.command(epilog="Example: fastdiff bench --cases ddim,ddpm --shapes 16x3x64x64 --out speed.json")
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
    chosen = command.settings(quick, _device(device), rounds=rounds, compile_seconds=compile_seconds, **given)
    for path in command.measure(chosen, out, typer.echo):
        typer.echo(f"wrote    {path}")


@app.command(epilog="Example: fastdiff info")
def info() -> None:
    """Show versions, devices and backends, and why one is missing."""
    typer.echo(system.info())


def _guided(loaded: Checkpoint, classifier: str | None, omega: float | None) -> tuple[Model, tuple[str, ...]]:
    """Return a checkpoint's network, guided where a classifier's run is named, and the classes that it draws."""
    if classifier is None:
        if omega is not None:
            raise InputError("--omega is the strength of a classifier: name one with --classifier")
        return loaded.model, loaded.classes
    guide = load_classifier(classifier, next(loaded.model.parameters()).device)
    return guide.guide(loaded, 1.0 if omega is None else omega), guide.classes


def _device(name: str) -> torch.device:
    lookup("device", name.partition(":")[0], dict.fromkeys(("auto", "cpu", "cuda", "mps", "xpu")))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return device


def _options(texts: list[str]) -> dict[str, Any]:
    if not all("=" in text for text in texts):
        raise InputError(f"--option must be name=value, got {', '.join(texts)}")
    pairs = (text.partition("=") for text in texts)
    options = {name.strip().replace("-", "_"): _value(value) for name, _, value in pairs}
    for name in ("steps", "spacing", "eta"):
        if name in options:
            raise InputError(f"--option {name}: give it as --{name}")
    for name in ("name", "schedule"):
        if name in options:
            raise InputError(f"--option {name}: no sampler takes it from the command line")
    return options


def _value(text: str) -> Any:
    """Return what a text says: a number, a list, true, false or null, or else the text."""
    for read in (int, float, json.loads):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


def _positive(name: str, value: int) -> int:
    if value < 1:
        raise InputError(f"--{name} must be at least 1, got {value}")
    return value


def _numbers(name: str, text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name} must be whole numbers with commas between, got {text!r}") from None
