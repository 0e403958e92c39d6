"""Objectives of autoencoders: `model(x, noise=None) -> decoded, posterior` of `fastdiff.models.ConvAutoencoder`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.latents.autoencoder import STREAM as LATENT
from fastdiff.models.posterior import kl_to_standard_normal
from fastdiff.train.batch import STREAM, Batch
from fastdiff.train.objectives.loss import Loss


def autoencoder() -> Loss:
    """Return `mean (D(E(x)) - x)^2`, over the values of a sample."""
    return denoising_autoencoder(0.0)


def denoising_autoencoder(corruption: float) -> Loss:
    """Return `mean (D(E(x + corruption eps)) - x)^2`, over the values of a sample (Vincent et al. 2010).

    Args:
        corruption: standard deviation of the noise that is added to x, >= 0.
    """

    def loss(model: Any, batch: Batch) -> Tensor:
        x = batch.x0
        given = x + corruption * _noise(batch, x.shape, STREAM) if corruption else x
        decoded, _ = model(given)
        return _squared_error(decoded, x) / x[0].numel()

    return loss


def vae(kl_weight: float) -> Loss:
    """Return `(|x - D(z)|^2 / 2 + kl_weight KL) / dims`, z drawn from the posterior (Kingma & Welling 2013, eq. 7).

    Its minimum is that of -ELBO for a decoder N(D(z), kl_weight I): this is kl_weight / dims times the -ELBO in nats,
    but for the constant `dims log(2 pi kl_weight) / 2`. KL is that of the posterior to N(0, I).

    Args:
        kl_weight: >= 0; the variance of the decoder.
    """

    def loss(model: Any, batch: Batch) -> Tensor:
        x = batch.x0
        decoded, posterior = model(x, lambda shape: _noise(batch, shape, LATENT))
        of_sample = _squared_error(decoded, x) / 2 + kl_weight * kl_to_standard_normal(*posterior)
        return of_sample / x[0].numel()

    return loss


def _squared_error(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).sum(dim=1)


def _noise(batch: Batch, shape: torch.Size, stream: str) -> Tensor:
    return noises.normal(shape, batch.seed, batch.index, batch.step, stream, batch.x0.device)
