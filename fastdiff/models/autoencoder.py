"""Convolutional autoencoders: the blocks of the U-Net, without time and without a way around the latents.

As in Rombach et al. 2022 (appendix G), but without adversarial and perceptual losses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.models.posterior import Noise, Posterior
from fastdiff.models.unet import Attention, ConvSizes, Down, ResidualBlock, norm


@dataclass(frozen=True)
class ConvAutoencoderConfig(ConvSizes):
    """Sizes of a `ConvAutoencoder`.

    Attributes:
        latent_channels: channels of a latent.
        variational: the encoder gives a variance too.
    """

    latent_channels: int = 4
    variational: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.latent_channels < 1:
            raise InputError(f"latent_channels must be at least 1, got {self.latent_channels}")

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the latent of a sample of `shape`: each level but the first halves, rounding up."""
        factor = 2 ** (len(self.multipliers) - 1)
        return (self.latent_channels, *(-(-side // factor) for side in shape[1:]))


class ConvAutoencoder(nn.Module):
    """`model(x, noise=None) -> decoded, posterior`: x and decoded [B, channels, H, W] of any size.

    `noise` draws the latent from the posterior; None takes the mean. Parameters are drawn from `seed` alone.
    """

    def __init__(self, config: ConvAutoencoderConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.encoder, self.decoder = nn.Sequential(*_encoder(config)), nn.Sequential(*_decoder(config))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations

    def forward(self, x: Tensor, noise: Noise | None = None) -> tuple[Tensor, Posterior]:
        posterior = self.encode(x)
        decoded = self.decode(posterior.mean if noise is None else posterior.draw(noise))
        return decoded[:, :, : x.shape[2], : x.shape[3]], posterior

    def encode(self, x: Tensor) -> Posterior:
        """Return q(z | x), float32 [B, latent_channels, h, w]."""
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise InputError(f"x must be [B, {self.config.channels}, H, W], got {tuple(x.shape)}")
        out = self.encoder(x.contiguous(memory_format=torch.channels_last)).float().contiguous()
        return Posterior(*out.chunk(2, dim=1)) if self.config.variational else Posterior(out)

    def decode(self, z: Tensor) -> Tensor:
        """Return what latents [B, latent_channels, h, w] mean, [B, channels, factor h, factor w]."""
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise InputError(f"latents must be [B, {self.config.latent_channels}, h, w], got {tuple(z.shape)}")
        out: Tensor = self.decoder(z.contiguous(memory_format=torch.channels_last))
        return out.float().contiguous()


def _encoder(config: ConvAutoencoderConfig) -> Iterator[nn.Module]:
    channels = config.width * config.multipliers[0]
    yield nn.Conv2d(config.channels, channels, 3, padding=1)
    for level, multiplier in enumerate(config.multipliers):
        if level > 0:
            yield Down(channels)
        yield from _blocks(config, level, channels)
        channels = config.width * multiplier
    yield from _output(channels, config.latent_channels * (2 if config.variational else 1))


def _decoder(config: ConvAutoencoderConfig) -> Iterator[nn.Module]:
    channels = config.width * config.multipliers[-1]
    yield nn.Conv2d(config.latent_channels, channels, 3, padding=1)
    for level, multiplier in reversed(list(enumerate(config.multipliers))):
        yield from _blocks(config, level, channels)
        channels = config.width * multiplier
        if level > 0:
            yield nn.Upsample(scale_factor=2)
            yield nn.Conv2d(channels, channels, 3, padding=1)
    yield from _output(channels, config.channels)


def _blocks(config: ConvAutoencoderConfig, level: int, inputs: int) -> Iterator[nn.Module]:
    width = config.width * config.multipliers[level]
    for block in range(config.blocks):
        yield ResidualBlock(width if block else inputs, width, None, config.dropout)
        if config.attention[level]:
            yield Attention(width, config.head_width)


def _output(channels: int, outputs: int) -> Iterator[nn.Module]:
    yield norm(channels)
    yield nn.SiLU()
    yield nn.Conv2d(channels, outputs, 3, padding=1)
