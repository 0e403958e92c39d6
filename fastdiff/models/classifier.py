"""Classifiers of noised samples, p(class | x_t): the sizes and parts of the diffusion networks, with a class as output.

Dhariwal & Nichol 2021, section 4.3, take the way down of their U-Net too.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.models.mlp import MLPConfig, ResidualMLP, head
from fastdiff.models.unet import Encoder, UNetConfig


class UNetClassifier(Encoder):
    """`model(x, t) -> logits` [B, classes]: x [B, channels, H, W] of any size, t [B].

    The means over the pixels of the coarsest features of a U-Net. Parameters are drawn from `seed` alone.

    Raises:
        InputError: there are fewer than two classes, or the config is of a network that learns a variance.
    """

    def __init__(self, config: UNetConfig, seed: int = 0) -> None:
        _check(config)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, classes=0)
            self.output = head(self.widths[-1], config.classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        features, _ = self.features(x, t)
        logits: Tensor = self.output(features[-1].mean(dim=(2, 3)))
        return logits


class MLPClassifier(ResidualMLP):
    """`model(x, t) -> logits` [B, classes]: x [B, dimensions], t [B].

    Parameters are drawn from `seed` alone.

    Raises:
        InputError: there are fewer than two classes, or the config is of a network that learns a variance.
    """

    def __init__(self, config: MLPConfig, seed: int = 0) -> None:
        _check(config)
        super().__init__(config, classes=0, outputs=config.classes, seed=seed)


def _check(config: UNetConfig | MLPConfig) -> None:
    if config.classes < 2:
        raise InputError(f"a classifier needs at least two classes, got {config.classes}: use data that has them")
    if config.learn_variance:
        raise InputError("a classifier has no variance to learn: leave learn_variance out")
