"""A whole loop: noise, and fifty times a small U-Net and a DDIM step, eta 0.

On a GPU fastdiff replays it as one CUDA graph. A diffusers pipeline calls network and scheduler in turn, the network
as it is or compiled by `torch.compile(mode="reduce-overhead")`; its start noise is there before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import fastdiff as fd
from fastdiff.bench.speed.samplers import SCHEDULE, STEPS, scheduler
from fastdiff.bench.speed.work import CPU, SEED, Job, Tensors, Work, philox

# Largest error after the loop, relative to the largest value: twice the worst measured.
# A GPU rounds a float32 network's products to TF32 at worst, finer than bf16, whose error with a float32 state is 7e-4.
# In bf16 diffusers keeps its state in it, too: 3.2e-2.
TOLERANCE = {torch.float32: 1.4e-3, torch.bfloat16: 6.4e-2}


class LoopWork(Work):
    """Samples of `shape` [B, C, H, W] from a U-Net whose parameters are of `dtype`."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU) -> None:
        self.shape, self.dtype, self.device = shape, dtype, device
        self.plan = fd.samplers.ddim(SCHEDULE, STEPS, clip=None)
        self.network = _network(shape[1]).to(device, dtype)
        self.start = self.plan.init_scale * philox(shape, "init", 0, device)
        self.elements, self.traffic = self.start.numel(), 0  # the network's traffic is nobody's concern here

    def jobs(self) -> Mapping[str, Callable[[], Job]]:
        """fastdiff, as one graph and as single calls, and diffusers."""
        graph: dict[str, bool] = {"graph": True} if self.device.type == "cuda" else {}
        return {
            "fastdiff": partial(self.fastdiff, **graph),
            **({"ungraphed": self.fastdiff} if graph else {}),
            "diffusers": self.diffusers,
        }

    def fastdiff(self, **options: Any) -> Job:
        """`fastdiff.sample`."""
        sample = partial(fd.sample, self.network, self.plan, self.shape, seed=SEED, **options)
        return self._job(partial(sample, device=self.device, dtype=self.dtype))

    def diffusers(self) -> Job:
        """A pipeline's loop; the scheduler is made and set before."""
        theirs = scheduler("DDIMScheduler", {"clip_sample": False})
        theirs.set_timesteps(STEPS, device=self.device)
        return self._job(partial(_pipeline, self.network, theirs, self.start.to(self.dtype)), of_network=True)

    def _job(self, call: partial[Any], of_network: bool = False) -> Job:
        tolerance = TOLERANCE[self.dtype]
        return Job(call, lambda x: {"x": x}, self._expected, tolerance=tolerance, of_network=of_network)

    def _expected(self, _: object) -> Tensors:
        network = _network(self.shape[1]).to(self.device, self.dtype).double()
        start = self.start.double()
        return {"x": fd.sample(network, self.plan, self.shape, x_init=start, dtype=torch.float64, backend="eager")}


def _network(channels: int) -> nn.Module:
    """Return a U-Net that is as good as trained: layers that start from 0 would make it a constant."""
    network = fd.models.UNet(fd.models.UNetConfig(channels=channels), seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02, generator=generator)
    return network.eval().requires_grad_(False)


def _pipeline(network: nn.Module, theirs: Any, x: Tensor) -> Tensor:
    for t in theirs.timesteps:
        out = network(x, t.float().expand(len(x)))
        x = theirs.step(out, t, x, return_dict=False)[0]
    return x
