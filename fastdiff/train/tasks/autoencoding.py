"""Autoencoders of images, whose latents diffusion can work on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff import pictures
from fastdiff.errors import InputError
from fastdiff.latents.autoencoder import CHUNK, Autoencoder
from fastdiff.models import Model
from fastdiff.train import data as datasets
from fastdiff.train.config import TrainConfig
from fastdiff.train.data import Data
from fastdiff.train.objectives import OBJECTIVES
from fastdiff.train.tasks.diffusion import schedule_of

SHOWN = 16  # images in a picture
MEASURED = 2000  # images that say how large latents are


class Autoencoding:
    """A network that puts images into few numbers and gets them back; see `Task`."""

    levels = 1  # there is no t

    def __init__(self, config: TrainConfig, data: Data) -> None:
        if len(data.shape) != 3:
            raise InputError(f"{data.name} has no images: an autoencoder needs data that have")
        self.config, self.data = config, data
        self.loss = OBJECTIVES[config.objective].make(config, schedule_of(config), data)
        self.description: Mapping[str, Any] = {
            "kind": "conv_autoencoder",
            "channels": data.shape[0],
            "latent_channels": config.latent_channels,
            "variational": config.objective == "vae",
            "width": config.width,
            "multipliers": config.multipliers,
            "blocks": config.blocks,
            "attention": config.attention,
            "dropout": config.dropout,
        }

    def saved(self, model: Model) -> Autoencoder:
        """See `Task`. Scale and shift are measured on the training data."""
        return self._plain(model).standardised(self._some(MEASURED, next(model.parameters()).device))

    def check_same_run(self, earlier: Mapping[str, Any]) -> None:
        """See `Task`: the settings say all."""

    def draw(self, model: Model, file: Path) -> None:
        """See `Task`: originals above what becomes of them."""
        autoencoder = self._plain(model)
        x = torch.cat(list(self._some(SHOWN, next(model.parameters()).device)))
        pictures.save(torch.cat([x, autoencoder.decode(autoencoder.encode(x, sample=False))]), file, columns=len(x))

    def _plain(self, model: Model) -> Autoencoder:
        return Autoencoder(model, self.data.shape, self.data.name)

    def _some(self, count: int, device: torch.device) -> Iterator[Tensor]:
        """Yield up to `count` of the training images, from all of their parts, in batches."""
        chosen = datasets.spread(len(self.data), count)
        size = min(CHUNK, self.config.batch)
        for start in range(0, len(chosen), size):
            yield torch.stack([self.data.dataset[i][0] for i in chosen[start : start + size]]).to(device)
