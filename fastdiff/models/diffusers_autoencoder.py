"""Autoencoders of the library diffusers, such as those of Stable Diffusion, as networks of this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.models.diffusers_folder import diffusers_class
from fastdiff.models.posterior import Noise, Posterior


@dataclass(frozen=True)
class DiffusersAutoencoderConfig:
    """What a `DiffusersAutoencoder` is built from.

    Attributes:
        arguments: those of `diffusers.AutoencoderKL`.
    """

    arguments: Mapping[str, Any] = field(default_factory=dict)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether samples of a shape, without the batch, fit."""
        return (
            len(shape) == 3
            and shape[0] == self.arguments["in_channels"] == self.arguments["out_channels"]
            and not any(side % self._factor for side in shape[1:])
        )

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latent of a sample of `shape`."""
        return (self.arguments["latent_channels"], *(side // self._factor for side in shape[1:]))

    @property
    def _factor(self) -> int:
        factor: int = 2 ** (len(self.arguments["block_out_channels"]) - 1)
        return factor


class DiffusersAutoencoder(nn.Module):
    """`diffusers.AutoencoderKL` with the calls of `ConvAutoencoder`.

    Raises:
        MissingDependencyError: diffusers is not installed.
        InputError: it does not know an argument.
    """

    def __init__(self, config: DiffusersAutoencoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                self.network = diffusers_class("AutoencoderKL")(**config.arguments)
            except TypeError as error:
                raise InputError(f"diffusers.AutoencoderKL: {error}") from None

    def forward(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Posterior]:
        posterior = self.encode(x)
        return self.decode(posterior.mean if noise is None else posterior.draw(noise)), posterior

    def encode(self, x: Tensor) -> Posterior:
        """Return q(z | x), float32 [B, latent_channels, h, w]."""
        latent = self.network.encode(x).latent_dist
        return Posterior(latent.mean.float(), latent.logvar.float())

    def decode(self, z: Tensor) -> Tensor:
        """Return what latents mean, [B, channels, H, W]."""
        decoded: Tensor = self.network.decode(z).sample
        return decoded.float()
