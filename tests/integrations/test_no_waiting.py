"""A step reads no tensor's value on the host, for which it would have to wait for the device."""

from __future__ import annotations

from typing import Any

import diffusers
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff.integrations.diffusers as ours
from tests.integrations.loops import network, normals

# A Brownian tree is searched on the host, by the times that it is asked for.
SEARCHES = {"DPMSolverSDEScheduler"}


class Reads(TorchDispatchMode):
    """The ops that give the host a value, by name, noted while `watching`."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.watching = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        reads = func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        if self.watching and reads:
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))


def reads(scheduler: Any) -> list[str]:
    """Run a loop; return what its steps but the first read. The first makes the plan."""
    scheduler.set_timesteps(6)
    x = normals(0) * float(scheduler.init_noise_sigma)
    generator = {"generator": torch.Generator().manual_seed(1)}
    with Reads() as found:
        for row, t in enumerate(scheduler.timesteps):
            found.watching = row > 0
            scaled = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            found.watching = False
            out = network(scaled, t)
            found.watching = row > 0
            taken = {} if type(scheduler).__name__ in NO_GENERATOR else generator
            x = scheduler.step(out, t, x, return_dict=False, **taken)[0]
    return found.found


NO_GENERATOR = {
    "DDIMInverseScheduler",
    "DEISMultistepScheduler",
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "IPNDMScheduler",
    "KDPM2DiscreteScheduler",
    "LMSDiscreteScheduler",
    "PNDMScheduler",
    "UniPCMultistepScheduler",
}


@pytest.mark.parametrize("name", sorted(set(ours.__all__) - SEARCHES))
def test_no_step_reads_a_value(name: str) -> None:
    assert reads(getattr(ours, name)()) == []


def test_the_peer_reads_values() -> None:
    """What the test looks for is found where it is."""
    assert len(reads(diffusers.DDIMScheduler())) >= 5
