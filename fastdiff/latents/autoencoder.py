"""A trained autoencoder with what its use needs to know."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff import models
from fastdiff import noise as noises
from fastdiff.errors import InputError, number
from fastdiff.models import ConvAutoencoder, DiffusersAutoencoder

HOLDS = "autoencoder"  # what a config says that it holds
STREAM = "latent"
CHUNK, CHUNK_VALUES = 64, 2**22  # most samples, and most values of theirs, that are decoded at once


@dataclass(frozen=True)
class Autoencoder:
    """A trained autoencoder. Its latents are `scale (z - shift)`, with mean 0 and variance 1 over the training data.

    Rombach et al. 2022, section 4.3.2 and appendix G, scale so; the shift is Esser et al.'s (2024) of latents that are
    not centred.

    Attributes:
        model: the network, in evaluation mode.
        shape: shape of one sample, without the batch.
        data: name of the training data.
        scale, shift: of the latents.

    Raises:
        InputError: the network is no autoencoder or does not take the shape, or scale and shift are out of range.
    """

    model: models.Model
    shape: tuple[int, ...]
    data: str
    scale: float = 1.0
    shift: float = 0.0

    def __post_init__(self) -> None:
        models.check_kind(self.model, models.AUTOENCODERS, "autoencoder")
        models.check_fits(self.model, self.shape, classes=0)
        number("scale", self.scale, 0, above=True)
        number("shift", self.shift)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], model: models.Model) -> Autoencoder:
        """Return the autoencoder that `config` (see there) and a network describe."""
        return cls(model, tuple(config["shape"]), config["data"], config["scale"], config["shift"])

    def config(self) -> dict[str, Any]:
        """Return what `config.json` says of it, JSON-ready."""
        return {
            "holds": HOLDS,
            "shape": list(self.shape),
            "data": self.data,
            "scale": self.scale,
            "shift": self.shift,
        }

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """The shape of one latent, without the batch."""
        return self._network.config.latent_shape(self.shape)

    @property
    def digest(self) -> str:
        """SHA-256 of config and weights, in hex: two autoencoders of one digest give the same latents."""
        found = hashlib.sha256(json.dumps([models.describe(self.model), self.config()], sort_keys=True).encode())
        for name, value in sorted(self.model.state_dict().items()):
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return found.hexdigest()

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        *,
        seed: int | Sequence[int] | Tensor = 0,
        index: int | Sequence[int] | Tensor | None = None,
        step: int | Sequence[int] | Tensor = 0,
        sample: bool = True,
    ) -> Tensor:
        """Return latents of samples.

        Args:
            x: [B, *shape], images in [-1, 1].
            seed, index, step: whose noise to draw latents with; see `fastdiff.noise.normal`, stream "latent".
            sample: draw from the posterior; False is its mean, as always for an autoencoder without variance.

        Returns:
            float32 [B, *latent_shape].

        Raises:
            InputError: x has another shape, or holds no floats.
        """
        if tuple(x.shape[1:]) != self.shape or not x.is_floating_point():
            raise InputError(
                f"x must be floats [B, {', '.join(map(str, self.shape))}] in [-1, 1], got {x.dtype} {tuple(x.shape)}"
            )

        def noise(shape: torch.Size) -> Tensor:
            return noises.normal(shape, seed, index, step, STREAM, x.device)

        posterior = self._network.encode(x.float())
        return ((posterior.draw(noise) if sample else posterior.mean) - self.shift) * self.scale

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Return what latents [B, *latent_shape] mean, float32 [B, *shape]. Raises InputError for another shape."""
        if tuple(z.shape[1:]) != self.latent_shape:
            raise InputError(f"latents must be [B, {', '.join(map(str, self.latent_shape))}], got {tuple(z.shape)}")
        height, width = self.shape[1:]
        chunk = min(CHUNK, max(1, CHUNK_VALUES // math.prod(self.shape)))
        parts = [self._network.decode(part.float() / self.scale + self.shift) for part in torch.split(z, chunk)]
        return torch.cat(parts)[:, :, :height, :width]

    @torch.no_grad()
    def standardised(self, batches: Iterable[Tensor]) -> Autoencoder:
        """Return it with the scale and shift that give the latents of these samples mean 0 and variance 1.

        The variance of drawn latents is that of the posteriors' means, and the mean of their variances.

        Args:
            batches: samples, each [B, *shape].
        """
        found = [self._network.encode(batch) for batch in batches]
        means = torch.cat([posterior.mean for posterior in found]).double()
        within = torch.cat([posterior.variance for posterior in found]).double().mean()
        deviation = (means.var(correction=0) + within).sqrt()
        return replace(self, scale=float(1 / deviation), shift=float(means.mean()))

    @property
    def _network(self) -> ConvAutoencoder | DiffusersAutoencoder:
        assert isinstance(self.model, ConvAutoencoder | DiffusersAutoencoder)  # __post_init__ says so
        return self.model
