"""What the tests of the Triton kernels share: the tensors of a call on a device, and in any layout of their memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.ops.cpu import Call


def moved(call: Call, device: torch.device) -> Call:
    """The same call on copies of its tensors, on the device."""
    return {name: value.to(device, copy=True) if isinstance(value, Tensor) else value for name, value in call.items()}


def _gaps_between_samples(image: Tensor) -> Tensor:
    return torch.stack([image, image], dim=1)[:, 0]


def _channels_last(image: Tensor) -> Tensor:
    return image.movedim(1, -1).contiguous().movedim(-1, 1)


def _misaligned(image: Tensor) -> Tensor:
    return torch.cat([image.new_zeros(1), image.flatten()])[1:].view_as(image)


def _gaps_between_elements(image: Tensor) -> Tensor:
    return torch.stack([image, image], dim=-1)[..., 0]


# Each makes a copy of an image tensor whose elements lie otherwise.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "gaps between samples": _gaps_between_samples,
    "channels last": _channels_last,
    "misaligned": _misaligned,
    "gaps between elements": _gaps_between_elements,
}
