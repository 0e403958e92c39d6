"""The training runs that the tables compare: one network and budget, but for what a run's name says."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from fastdiff import checkpoint as checkpoints
from fastdiff.train import TrainConfig
from fastdiff.train.trainer import train

BASE = TrainConfig(data="digits", width=32, steps=2000, save_every=250, sample_every=2000)
AUTOENCODER = TrainConfig(
    data="digits",
    size=32,
    objective="vae",
    width=16,
    multipliers=(1, 2, 4),
    attention=(False, False, False),
    latent_channels=2,
    kl_weight=1e-3,
    steps=600,
    batch=32,
    lr=2e-3,
    warmup=100,
    ema=0.99,
    sample_every=600,
)
SEEDS = (0, 1)  # of initialisation, batches, times and noise
# What a pixel network of 32 x 32 can do in the time that the latent one takes, its autoencoder included.
STEPS_OF_EQUAL_TIME = 300


def runs(folder: Path) -> Mapping[str, TrainConfig]:
    """Return the settings of each run, by name; seed 0. Latents are those of the run "vae" in `folder`."""
    eps, v = replace(BASE, prediction="eps"), replace(BASE, prediction="v")
    large = replace(v, size=32, multipliers=(1, 2, 2), attention=(False, False, True))
    return {
        "simple": eps,
        "hybrid": replace(eps, objective="l_hybrid"),
        "vlb": replace(eps, objective="l_vlb", variance="learned_range", times="importance"),
        "min-snr": replace(v, objective="l_gamma", weighting="min_snr"),
        "flow": replace(BASE, schedule="flow", prediction="flow"),
        # Ends and number of sigmas by Song & Ermon 2020, techniques 1 and 2.
        "ncsn": replace(BASE, schedule="geometric", prediction="score", T=32, sigma_min=0.01, sigma_max=10.0),
        "classifier": replace(BASE, objective="classifier"),
        "vae": AUTOENCODER,
        "latent": replace(v, size=32, latents=str(place(folder, "vae", 0))),
        "pixel": replace(large, steps=STEPS_OF_EQUAL_TIME, warmup=100),
    }


def place(folder: Path, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return folder / f"{name}-{seed}"


def trained(folder: Path, name: str, seed: int) -> Path:
    """Return a run's last checkpoint: train, go on where the run was interrupted, or keep what is finished.

    On one thread of the CPU, so that the weights are a function of the settings.

    Raises:
        InputError: the run that is there has other settings.
    """
    out, config = place(folder, name, seed), replace(runs(folder)[name], seed=seed)
    newest = checkpoints.newest_step(out)
    if newest is not None and newest.name == checkpoints.STEP_FOLDER.format(config.steps):
        config.check_same_run(checkpoints.read_config(newest)["training"])
        return newest
    with one_thread():
        return train(config, out, resume=newest is not None)


@contextmanager
def one_thread() -> Iterator[None]:
    """Train on one thread of the CPU: sums depend on how many there are."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
