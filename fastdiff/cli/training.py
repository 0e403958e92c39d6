"""`fastdiff train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff import prediction as predictions
from fastdiff.cli import values
from fastdiff.errors import MissingDependencyError
from fastdiff.likelihood.terms import VARIANCES
from fastdiff.noise import PROBES
from fastdiff.train.config import TrainConfig
from fastdiff.train.objectives import OBJECTIVES
from fastdiff.train.objectives.weights import WEIGHTS
from fastdiff.train.times import TIMES

RUN = TrainConfig()  # the defaults


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
    prediction: Annotated[str, typer.Option(help=f"{', '.join(predictions.names())}.")] = RUN.prediction,
    width: Annotated[int, typer.Option(help="Channels of the network's first level.")] = RUN.width,
    multipliers: Annotated[str, typer.Option(help="Channels of each level as multiples of --width.")] = values.joined(
        RUN.multipliers
    ),
    blocks: Annotated[int, typer.Option(help="Residual blocks a level.")] = RUN.blocks,
    attention: Annotated[str, typer.Option(help="For each level, 1 if it attends.")] = values.joined(RUN.attention),
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
    """Train a network; a run can be resumed, and a diffusion network sampled and exported."""
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
        multipliers=values.numbers("multipliers", multipliers),
        blocks=blocks,
        attention=tuple(bool(number) for number in values.numbers("attention", attention)),
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
