"""Autoencoders from disk. Nothing is ever downloaded or unpickled."""

from __future__ import annotations

from pathlib import Path

import torch

from fastdiff import checkpoint as checkpoints
from fastdiff.errors import CheckpointError, InputError
from fastdiff.latents.autoencoder import HOLDS, Autoencoder
from fastdiff.models import DiffusersAutoencoder, DiffusersAutoencoderConfig
from fastdiff.models.diffusers_folder import class_name, pretrained


def load(path: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Load an autoencoder: its checkpoint folder or run, or those of a diffusion network of its latents.

    Raises:
        CheckpointError: there is none, or it is truncated, foreign or of another version.
    """
    folder = checkpoints.find(path)
    if checkpoints.read_config(folder).get("latents"):
        held = checkpoints.load(folder, device).latents
        assert held is not None  # its config says so
        return held
    return checkpoints.read(folder, HOLDS, Autoencoder.from_config, device)


def from_diffusers(
    folder: str | Path, shape: tuple[int, ...] | None = None, device: torch.device | str = "cpu"
) -> Autoencoder:
    """Load an AutoencoderKL that diffusers saved in a local folder: config.json beside safetensors files.

    Scale and shift are its `scaling_factor` and `shift_factor`.

    Args:
        folder: the folder.
        shape: of the images, without the batch; None is the config's `sample_size`.
        device: where the network goes.

    Raises:
        CheckpointError: the folder does not hold one.
        InputError: the network does not take images of the shape, or there is none.
        MissingDependencyError: diffusers is not installed.
    """
    path = Path(folder)
    if class_name(path) != "AutoencoderKL":
        raise CheckpointError(f"{path / 'config.json'} does not describe an AutoencoderKL: give the folder of one")
    network = pretrained("AutoencoderKL", path)
    arguments = {name: value for name, value in network.config.items() if not name.startswith("_")}
    if arguments.get("latents_mean") is not None or arguments.get("latents_std") is not None:
        raise CheckpointError(f"{path} scales each channel of its latents by itself: only one factor for all is known")
    model = DiffusersAutoencoder(DiffusersAutoencoderConfig(arguments))
    model.network.load_state_dict(network.state_dict())
    if shape is None:
        size = arguments["sample_size"]
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2:
            raise InputError(f"{path / 'config.json'} does not say the size of images: give their shape")
        shape = (arguments["in_channels"], *sides)
    return Autoencoder(
        model=model.float().to(device).eval(),
        shape=shape,
        data="unknown",
        scale=arguments["scaling_factor"],
        shift=arguments["shift_factor"] or 0.0,
    )
