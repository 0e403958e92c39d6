"""Networks: `model(x, t, y=None) -> out`, built from a config that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastdiff.errors import InputError, lookup
from fastdiff.models.autoencoder import ConvAutoencoder, ConvAutoencoderConfig
from fastdiff.models.classifier import MLPClassifier, UNetClassifier
from fastdiff.models.diffusers_autoencoder import DiffusersAutoencoder, DiffusersAutoencoderConfig
from fastdiff.models.diffusers_denoisers import DiffusersDenoiser
from fastdiff.models.from_diffusers import from_diffusers
from fastdiff.models.gaussian_mixture import GaussianMixture
from fastdiff.models.mlp import MLP, MLPConfig
from fastdiff.models.over_sigma import OverSigma
from fastdiff.models.unet import UNet, UNetConfig
from fastdiff.schedules import from_config

__all__ = [
    "AUTOENCODERS",
    "CLASSIFIERS",
    "DENOISERS",
    "MLP",
    "ConvAutoencoder",
    "ConvAutoencoderConfig",
    "DiffusersAutoencoder",
    "DiffusersAutoencoderConfig",
    "DiffusersDenoiser",
    "GaussianMixture",
    "MLPClassifier",
    "MLPConfig",
    "Model",
    "OverSigma",
    "UNet",
    "UNetClassifier",
    "UNetConfig",
    "build",
    "check_fits",
    "check_kind",
    "describe",
    "from_diffusers",
]

AUTOENCODERS = (ConvAutoencoder, DiffusersAutoencoder)
CLASSIFIERS = (UNetClassifier, MLPClassifier)
DENOISERS = (UNet, MLP, OverSigma)
Model = UNet | MLP | OverSigma | UNetClassifier | MLPClassifier | ConvAutoencoder | DiffusersAutoencoder

_KINDS: dict[str, tuple[type[Any], type[Any]]] = {
    "unet": (UNetConfig, UNet),
    "mlp": (MLPConfig, MLP),
    "unet_classifier": (UNetConfig, UNetClassifier),
    "mlp_classifier": (MLPConfig, MLPClassifier),
    "conv_autoencoder": (ConvAutoencoderConfig, ConvAutoencoder),
    "diffusers_autoencoder": (DiffusersAutoencoderConfig, DiffusersAutoencoder),
}


def build(description: Mapping[str, Any], seed: int = 0) -> Model:
    """Build a network from `{"kind": ..., **config}`; with "over_sigma", a schedule's config, it is an `OverSigma`.

    Raises InputError for what no network knows.
    """
    arguments = dict(description)
    over_sigma = arguments.pop("over_sigma", None)
    config_type, model_type = lookup("network", str(arguments.pop("kind", "")), _KINDS)
    try:
        config = config_type(**arguments)
    except TypeError as error:
        raise InputError(f"network config: {error}") from None
    model: Model = model_type(config, seed)
    if over_sigma is None:
        return model
    if not isinstance(model, UNet | MLP):
        raise InputError("over_sigma is for a network whose output is a score: leave it out")
    return OverSigma(model, from_config(over_sigma))


def check_kind(model: object, kinds: tuple[type[Any], ...], name: str) -> None:
    """Raise InputError if a network is of none of the kinds."""
    if not isinstance(model, kinds):
        raise InputError(f"{type(model).__name__} is no {name}: give one of {', '.join(k.__name__ for k in kinds)}")


def check_fits(model: Model, shape: tuple[int, ...], classes: int) -> None:
    """Raise InputError if a network does not take samples of `shape` (without the batch) or has other classes."""
    if not (isinstance(shape, tuple) and shape and all(isinstance(side, int) and side > 0 for side in shape)):
        raise InputError(f"shape must be a tuple of positive whole numbers, got {shape}")
    config = model.config
    if not config.takes(shape):
        raise InputError(f"samples of shape {shape} do not fit the network {config}")
    known = getattr(config, "classes", 0)  # an autoencoder has none
    if classes != known:
        raise InputError(f"there are {classes} classes and the network knows {known}")


def describe(model: Model) -> dict[str, Any]:
    """Return what `build` makes the same architecture from."""
    if isinstance(model, OverSigma):
        return {**describe(model.network), "over_sigma": dict(model.schedule.config)}
    kind = next(kind for kind, (_, model_type) in _KINDS.items() if isinstance(model, model_type))
    return {"kind": kind, **asdict(model.config)}
