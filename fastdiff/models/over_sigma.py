"""Score networks that need not learn how the size of a score follows the noise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.models.mlp import MLP
from fastdiff.models.unet import UNet
from fastdiff.schedules import Schedule


class OverSigma(nn.Module):
    """`s(x, t) = f(x, t) / sigma_t` (Song & Ermon 2020, technique 3): f stays near 1 while scores grow as 1 / sigma.

    Takes what f takes. Between the levels of the schedule log sigma is linear in t, beyond them it stays; a learned
    variance, behind the score, is not divided.

    Attributes:
        network: f.
        config: its sizes.
        schedule: the noise levels, at times 0..T-1.
    """

    log_sigma: Tensor

    def __init__(self, network: UNet | MLP, schedule: Schedule) -> None:
        super().__init__()
        self.network, self.config, self.schedule = network, network.config, schedule
        # As bits, since a network that is moved to bfloat16 rounds every buffer of floats.
        bits = torch.from_numpy(schedule.sigma.copy()).log().float().view(torch.int32)
        self.register_buffer("log_sigma", bits, persistent=False)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        out = self.network(x, t, y)
        score, variance = out.split([x.shape[1], out.shape[1] - x.shape[1]], dim=1)
        score = (score / self.sigma(t).view(-1, *[1] * (x.ndim - 1))).to(out.dtype)
        return torch.cat([score, variance], dim=1) if self.config.learn_variance else score

    def sigma(self, t: Tensor) -> Tensor:
        """Return sigma at times t [B], float32 [B]."""
        levels, last = self.log_sigma.view(torch.float32), len(self.schedule) - 1
        place = t.float().clamp(0, last)
        below = place.long()
        return levels[below].lerp(levels[(below + 1).clamp(max=last)], place - below).exp()

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition with every label replaced by the null token."""
        return self.network.unconditional(cond)
