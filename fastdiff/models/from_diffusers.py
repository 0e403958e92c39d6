"""Denoising networks of the library diffusers, from a local folder or as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastdiff.errors import CheckpointError, InputError
from fastdiff.models.diffusers_denoisers import WRAPPERS, DiffusersDenoiser, wrapped
from fastdiff.models.diffusers_folder import class_name, pretrained

PARTS = ("unet", "transformer")  # the folders of a pipeline that hold its denoiser


def from_diffusers(
    network: str | Path | nn.Module,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    variant: str | None = None,
) -> DiffusersDenoiser:
    """Return a denoising network of diffusers as `model(x, t, **cond) -> out`, for `fastdiff.sample`.

    UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, Transformer2DModel with patches, PixArtTransformer2DModel,
    SD3Transformer2DModel and FluxTransformer2DModel are known. Nothing is downloaded or unpickled.

    Args:
        network: one of these, which stays in its mode; or a local folder with its config.json and safetensors files, or
            a pipeline's folder with such a folder `unet` or `transformer`, whose network is put in evaluation mode.
        device: where a network from a folder goes; None is the CPU.
        dtype: its dtype; None is float32, whatever the files hold.
        variant: of its files, as "fp16" in `diffusion_pytorch_model.fp16.safetensors`.

    Returns:
        The network; `DiffusersDenoiser` says what conditions it takes.

    Raises:
        CheckpointError: there is no such folder, or it does not hold the network that its config.json describes.
        InputError: the network is of another class, or one that is given as it is shall change device or dtype.
        MissingDependencyError: diffusers is not installed.
    """
    if isinstance(network, nn.Module):
        if (device, dtype, variant) != (None, None, None):
            raise InputError("device, dtype and variant are for folders: move the network before it is given")
        return wrapped(network)
    folder = _folder(Path(network))
    name = class_name(folder)
    if name not in WRAPPERS:
        raise InputError(f"{folder} holds {name or 'nothing'!r}, no known denoiser: known are {', '.join(WRAPPERS)}")
    options: dict[str, Any] = {"torch_dtype": dtype, "variant": variant}
    chosen = {option: value for option, value in options.items() if value is not None}
    return wrapped(pretrained(name, folder, **chosen).to(device or "cpu"))


def _folder(path: Path) -> Path:
    """Return the folder that holds the network: the path, or its part that does."""
    if not path.is_dir():
        raise CheckpointError(f"{path} is no local folder, and nothing is downloaded: give the folder of a network")
    if (path / "config.json").is_file():
        return path
    for part in PARTS:
        if (path / part / "config.json").is_file():
            return path / part
    raise CheckpointError(f"{path} holds no config.json, nor do its folders {' and '.join(PARTS)}: give a network's")
