"""The U-Net of DDPM (Ho et al. 2020, appendix B) with the changes that became usual since (Dhariwal & Nichol 2021):
scale-shift time embedding, attention heads of a fixed width, zero-initialised outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastdiff.errors import InputError
from fastdiff.models.embedding import Conditioning

MAX_GROUPS = 32


@dataclass(frozen=True)
class ConvSizes:
    """Sizes that convolutional networks of several levels share.

    Attributes:
        channels: image channels.
        width: channels of the first level.
        multipliers: channels of each level as multiples of `width`; each further level halves the resolution.
        blocks: residual blocks a level.
        attention: for each level, whether its blocks attend.
        head_width: channels of an attention head; a level with fewer has a single head.
        dropout: probability inside residual blocks.
    """

    channels: int = 3
    width: int = 64
    multipliers: tuple[int, ...] = (1, 2)
    blocks: int = 2
    attention: tuple[bool, ...] = (False, True)
    head_width: int = 64
    dropout: float = 0.0

    def __post_init__(self) -> None:
        for name in ("multipliers", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.multipliers) != len(self.attention) or not self.multipliers:
            raise InputError(
                f"multipliers and attention must have one entry a level, got {self.multipliers} and {self.attention}"
            )
        if min(self.channels, self.width, self.blocks, self.head_width, *self.multipliers) < 1:
            raise InputError(f"the sizes of a network must be positive, got {self}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), got {self.dropout}")

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Return whether samples of a shape, without the batch, fit."""
        return len(shape) == 3 and shape[0] == self.channels


@dataclass(frozen=True)
class UNetConfig(ConvSizes):
    """Sizes of a `UNet`, whose width is even and whose middle always attends.

    Attributes:
        classes: number of classes; 0 for an unconditional network.
        learn_variance: give a second set of output channels, the v of Nichol & Dhariwal 2021.
    """

    classes: int = 0
    learn_variance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classes < 0:
            raise InputError(f"classes must be 0 or more, got {self.classes}")


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, convolution, twice; an embedding, if there is one, scales and shifts the second norm."""

    def __init__(self, inputs: int, outputs: int, embedding: int | None, dropout: float) -> None:
        super().__init__()
        self.norm1 = norm(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.scale_shift = None if embedding is None else nn.Linear(embedding, 2 * outputs)
        self.norm2 = norm(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = _zeroed(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.norm2(self.conv1(F.silu(self.norm1(x))))
        if self.scale_shift is not None:
            scale, shift = self.scale_shift(embedding)[:, :, None, None].chunk(2, dim=1)
            h = torch.addcmul(shift, h, 1 + scale)
        out: Tensor = self.skip(x) + self.conv2(self.dropout(F.silu(h)))
        return out


class Attention(nn.Module):
    """Self-attention over the pixels, with a residual connection."""

    def __init__(self, channels: int, head_width: int) -> None:
        super().__init__()
        self.heads = max(1, channels // head_width)
        if channels % self.heads:
            raise InputError(f"{channels} channels do not split into {self.heads} attention heads")
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(pixels).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        change: Tensor = self.out(attended)
        return x + change.transpose(1, 2).reshape(x.shape)


class Down(nn.Module):
    """Halve the resolution, rounding up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        out: Tensor = self.conv(x)
        return out


class Up(nn.Module):
    """Raise the resolution to a given size."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        out: Tensor = self.conv(F.interpolate(x, size=size, mode="nearest"))
        return out


class Stage(nn.Module):
    """A residual block and, where the level attends, attention."""

    def __init__(self, inputs: int, outputs: int, attend: bool, embedding: int, config: UNetConfig) -> None:
        super().__init__()
        self.residual = ResidualBlock(inputs, outputs, embedding, config.dropout)
        self.attention = Attention(outputs, config.head_width) if attend else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        x = self.residual(x, embedding)
        return x if self.attention is None else self.attention(x)


class Encoder(nn.Module):
    """The way down of a U-Net: features of images [B, channels, H, W] of any size at falling resolutions.

    Attributes:
        widths: channels of each feature.
    """

    def __init__(self, config: UNetConfig, classes: int) -> None:
        super().__init__()
        self.config = config
        self.conditioning = Conditioning(config.width, classes)
        self.conv_in = nn.Conv2d(config.channels, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        self.widths = [config.width]
        for level, multiplier in enumerate(config.multipliers):
            if level > 0:
                self.down.append(Down(self.widths[-1]))
                self.widths.append(self.widths[-1])
            for _ in range(config.blocks):
                width = config.width * multiplier
                self.down.append(Stage(self.widths[-1], width, config.attention[level], 4 * config.width, config))
                self.widths.append(width)

    def features(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Return the features, finest first, and the embedding of t and y."""
        if x.ndim != 4 or x.shape[1] != self.config.channels:
            raise InputError(f"x must be [B, {self.config.channels}, H, W], got {tuple(x.shape)}")
        if t.shape != x.shape[:1]:
            raise InputError(f"t must be [{len(x)}], one time a sample, got {tuple(t.shape)}")
        embedding = self.conditioning(t, y)
        found = [self.conv_in(x.contiguous(memory_format=torch.channels_last))]
        for stage in self.down:
            found.append(stage(found[-1], embedding))
        return found, embedding


class UNet(Encoder):
    """`model(x, t, y=None) -> out`: x [B, channels, H, W] of any size, t [B], y int64 [B] in 0..classes (last is null).

    Parameters are drawn from `seed` alone, so that two networks of one config and seed are equal. Inside, tensors are
    channels_last; x and out are contiguous NCHW.
    """

    def __init__(self, config: UNetConfig, seed: int = 0) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            super().__init__(config, config.classes)
            self._build_rest(config)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing from torch's annotations

    def _build_rest(self, config: UNetConfig) -> None:
        embedding = 4 * config.width
        skips, channels = self.widths.copy(), self.widths[-1]
        self.middle = nn.ModuleList(
            [
                Stage(channels, channels, True, embedding, config),
                Stage(channels, channels, False, embedding, config),
            ]
        )

        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(config.multipliers))):
            width = config.width * multiplier
            for _ in range(config.blocks + 1):
                self.up.append(Stage(channels + skips.pop(), width, config.attention[level], embedding, config))
                channels = width
            if level > 0:
                self.up.append(Up(channels))

        self.norm_out = norm(channels)
        outputs = config.channels * (2 if config.learn_variance else 1)
        self.conv_out = _zeroed(nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        skips, embedding = self.features(x, t, y)
        h = skips[-1]
        for stage in self.middle:
            h = stage(h, embedding)
        for stage in self.up:
            if isinstance(stage, Up):
                h = stage(h, skips[-1].shape[2:])
            else:
                h = stage(torch.cat([h, skips.pop()], dim=1), embedding)
        out: Tensor = self.conv_out(F.silu(self.norm_out(h)))
        return out.contiguous()

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition with every label replaced by the null token."""
        return self.conditioning.unconditional(cond)


def norm(channels: int) -> nn.GroupNorm:
    """Return the group normalisation of a number of channels: up to 32 groups, of two channels or more if possible."""
    # A group of one channel would forget that channel's mean, and a group of one value everything.
    most = min(MAX_GROUPS, max(1, channels // 2))
    groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
    return nn.GroupNorm(groups, channels)


def _zeroed(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer
