"""Networks: `model(x, t, y=None) -> out`, built from a config that a checkpoint can hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastdiff.errors import InputError, lookup
from fastdiff.models.gaussian_mixture import GaussianMixture
from fastdiff.models.mlp import MLP, MLPConfig
from fastdiff.models.unet import UNet, UNetConfig

__all__ = ["MLP", "GaussianMixture", "MLPConfig", "Model", "UNet", "UNetConfig", "build", "check_fits", "describe"]

Model = UNet | MLP

_KINDS: dict[str, tuple[type[Any], type[Any]]] = {"unet": (UNetConfig, UNet), "mlp": (MLPConfig, MLP)}


def build(description: Mapping[str, Any], seed: int = 0) -> Model:
    """Build a network from `{"kind": "unet" or "mlp", **config}`. Raises InputError for what no network knows."""
    arguments = dict(description)
    config_type, model_type = lookup("network", str(arguments.pop("kind", "")), _KINDS)
    try:
        config = config_type(**arguments)
    except TypeError as error:
        raise InputError(f"network config: {error}") from None
    model: Model = model_type(config, seed)
    return model


def check_fits(model: Model, shape: tuple[int, ...], classes: int) -> None:
    """Raise InputError if a network does not take samples of `shape` (without the batch) or has other classes."""
    config = model.config
    if not config.takes(shape):
        raise InputError(f"samples of shape {shape} do not fit the network {config}")
    if classes != config.classes:
        raise InputError(f"there are {classes} classes and the network knows {config.classes}")


def describe(model: Model) -> dict[str, Any]:
    """Return what `build` makes the same architecture from."""
    kind = next(kind for kind, (_, model_type) in _KINDS.items() if isinstance(model, model_type))
    return {"kind": kind, **asdict(model.config)}
