"""Autoencoders from disk. Nothing is ever downloaded or unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastdiff import checkpoint as checkpoints
from fastdiff.errors import CheckpointError
from fastdiff.latents.autoencoder import HOLDS, Autoencoder
from fastdiff.models import DiffusersAutoencoder, DiffusersAutoencoderConfig
from fastdiff.models.diffusers_autoencoder import autoencoder_kl


def load(path: str | Path, device: torch.device | str = "cpu") -> Autoencoder:
    """Load an autoencoder: a checkpoint folder, or a run's folder (its newest checkpoint).

    Raises:
        CheckpointError: there is none, or it is truncated, foreign or of another version.
    """
    return checkpoints.read(checkpoints.find(path), HOLDS, Autoencoder.from_config, device)


def from_diffusers(
    folder: str | Path, shape: tuple[int, ...] | None = None, device: torch.device | str = "cpu"
) -> Autoencoder:
    """Load an AutoencoderKL that diffusers saved in a local folder: config.json beside safetensors files.

    Scale and shift are its `scaling_factor` and `shift_factor`.

    Args:
        folder: the folder.
        shape: of the images, without the batch; None is the square of the config's `sample_size`.
        device: where the network goes.

    Raises:
        CheckpointError: the folder does not hold one.
        InputError: the network does not take images of the shape.
        MissingDependencyError: diffusers is not installed.
    """
    path = Path(folder)
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(f"{path / 'config.json'} does not describe an AutoencoderKL: give the folder of one")
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{path} holds no safetensors file: save the AutoencoderKL as one")
    try:
        network = autoencoder_kl().from_pretrained(path, use_safetensors=True, local_files_only=True)
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not hold the weights that its config.json describes: {reason}") from None
    arguments = {name: value for name, value in network.config.items() if not name.startswith("_")}
    model = DiffusersAutoencoder(DiffusersAutoencoderConfig(arguments))
    model.network.load_state_dict(network.state_dict())
    side = arguments["sample_size"]
    return Autoencoder(
        model=model.float().to(device).eval(),
        shape=(arguments["in_channels"], side, side) if shape is None else shape,
        data="unknown",
        scale=arguments["scaling_factor"],
        shift=arguments["shift_factor"] or 0.0,
    )
