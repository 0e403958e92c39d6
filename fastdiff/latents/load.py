"""Autoencoders from disk. Nothing is ever downloaded or unpickled."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from fastdiff import checkpoint as checkpoints
from fastdiff.errors import CheckpointError, InputError
from fastdiff.latents.autoencoder import HOLDS, Autoencoder
from fastdiff.models import DiffusersAutoencoder, DiffusersAutoencoderConfig
from fastdiff.models.diffusers_autoencoder import autoencoder_kl


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
    try:
        config = json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / 'config.json'} cannot be read: {error}") from None
    if not isinstance(config, dict) or config.get("_class_name") != "AutoencoderKL":
        raise CheckpointError(f"{path / 'config.json'} does not describe an AutoencoderKL: give the folder of one")
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(f"{path} holds no safetensors file: save the AutoencoderKL as one")
    try:
        network, found = autoencoder_kl().from_pretrained(
            path, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} does not hold the weights that its config.json describes: {reason}") from None
    lacking = [*found["missing_keys"], *found["mismatched_keys"]]
    if lacking:
        raise CheckpointError(f"{path} does not hold the weights that its config.json describes: no {lacking[0]}")
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
