"""Steps can be differentiated as diffusers' can, through the sample and through the network."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff.integrations.diffusers as ours
from tests.integrations.loops import normals

NAMES = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LCMScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
]


def gradients(scheduler: Any, without: int = 0) -> tuple[Tensor, ...]:
    """Return those of the last state's square, by the start (or the state after `without` steps) and by a weight."""
    torch.manual_seed(1)
    scheduler.set_timesteps(5)
    weight, x = torch.tensor(0.7, requires_grad=True), normals(0) * float(scheduler.init_noise_sigma)
    start = x.requires_grad_(not without)
    for row, t in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(row >= without):
            out = torch.tanh(weight * scheduler.scale_model_input(x, t))
            x = scheduler.step(out, t, x, return_dict=False)[0]
        if row == without - 1:
            start = x = x.detach().requires_grad_()
    return torch.autograd.grad(x.square().sum(), (start, weight))


# diffusers' corrector of UniPC goes back to a state of its own, which is not the one that was detached.
@pytest.mark.parametrize(("name", "without"), [*((name, 0) for name in NAMES), *((name, 2) for name in NAMES[:-1])])
def test_gradients(name: str, without: int) -> None:
    """Also where the first steps need none, as when only the last ones are trained through."""
    expected = gradients(getattr(diffusers, name)(), without)
    for found, theirs in zip(gradients(getattr(ours, name)(), without), expected, strict=True):
        # diffusers' float32 against float64 here.
        torch.testing.assert_close(found, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
