"""The loop of a pipeline in one go: what the pipeline would have done step by step, done by `fastdiff.sample`.

The pipeline's own `__call__` runs as ever, with a stand-in for its network, which only notes what it is asked. The
first step of the scheduler is then the whole loop, and the pipeline is told that no step is left.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.errors import InputError
from fastdiff.plan import Plan
from fastdiff.sample import sample as run_plan
from fastdiff.schedules import frozen

if TYPE_CHECKING:
    from fastdiff.integrations.diffusers.adapter import Adapter, Noise, Place

# The loop of the pipeline that is being called in this context.
running: ContextVar[WholeLoop | None] = ContextVar("running", default=None)


class Network(nn.Module):
    """A network of diffusers as `fastdiff.sample` asks it, with what else it is given under the name `beside`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, t: Tensor, beside: Tensor | None = None, **condition: Any) -> Tensor:
        """Return the output for x [B, C, ...] at times t [B]; `beside` [B, D, ...] is put behind the channels of x."""
        given = x if beside is None else torch.cat([x, beside.to(x.dtype)], dim=1)
        out: Tensor = self.network(given, t, **condition, return_dict=False)[0]
        return out


class Question:
    """The stand-in of a network: it looks like it, notes what it is asked, and answers with zeros."""

    def __init__(self, network: nn.Module, loop: WholeLoop) -> None:
        self._network, self._loop = network, loop

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return type(self._network)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __call__(self, sample: Tensor, timestep: Any = None, return_dict: bool = True, **condition: Any) -> Any:
        self._loop.network, self._loop.given, self._loop.condition = self._network, sample, condition
        config: Any = self._network.config
        answer = sample.new_zeros((len(sample), config.out_channels, *sample.shape[2:]))
        return SimpleNamespace(sample=answer) if return_dict else (answer,)


class Ended:
    """The stand-in of a scheduler whose loop is over: what the pipeline puts back then gets no noise."""

    def __init__(self, scheduler: Adapter) -> None:
        self._scheduler = scheduler

    def __getattr__(self, name: str) -> Any:
        return getattr(self._scheduler, name)

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the samples as they are."""
        return original_samples


class Known(NamedTuple):
    """Clean data that the result is to keep where the mask is 1, and the noise that they have in every row."""

    known: Tensor
    mask: Tensor
    known_noise: Tensor


@dataclasses.dataclass
class WholeLoop:
    """A loop to be run at the first step.

    Attributes:
        ask: makes of a network what `fastdiff.sample` calls.
        guidance: w, where the network is asked for both branches; 1 for none.
        conditional_first: whether the pipeline puts the conditional branch before the other one.
        doubled: whether its samples too stand twice in its batch.
        guidance_rescale, graph, progress: as `fastdiff.sample` has them.
        known: what is known of the result.
        done: whether the loop was run.
    """

    ask: Callable[[nn.Module], Network]
    guidance: float = 1.0
    conditional_first: bool = False
    doubled: bool = False
    guidance_rescale: float = 0.0
    graph: bool = False
    progress: bool = False
    known: Known | None = None
    done: bool = False
    network: nn.Module | None = dataclasses.field(default=None, init=False)
    given: Tensor | None = dataclasses.field(default=None, init=False)
    condition: Mapping[str, Any] = dataclasses.field(default_factory=dict, init=False)

    def run(self, scheduler: Adapter, place: Place, x: Tensor, noise: Noise, options: dict[str, Any]) -> Tensor:
        """Return the last state of the loop that begins at a place with x, as `Adapter._step` is given it."""
        assert self.network is not None  # the pipeline asked it before the step
        self.done = True
        plan = self._plan(scheduler, place, options, x.device)
        start = x.chunk(2)[0] if self.doubled else x
        cond, uncond = self._conditions(start)
        seed = scheduler.seed if noise.seed is None and noise.generator is None else noise.seed
        drawn = seed is None and plan.draws_noise
        result = run_plan(
            *(self.ask(self.network), plan, start.shape),
            x_init=start,
            seed=0 if seed is None else seed,
            noise=_draws(scheduler, plan, place, x, noise) if drawn else None,
            cond=cond,
            uncond=uncond,
            guidance=self.guidance,
            guidance_rescale=self.guidance_rescale,
            **self.known._asdict() if self.known else {},
            dtype=start.dtype,
            graph=self.graph,
            progress=self.progress and not self.graph,
            check_finite=False,
        ).to(x.dtype)
        return torch.cat([result, result]) if self.doubled else result

    def _plan(self, scheduler: Adapter, place: Place, options: dict[str, Any], device: torch.device) -> Plan:
        """Return the plan of the rows from a place on, with the pipeline's own times."""
        run, row = place
        if scheduler.config.get("thresholding") and scheduler.config.sample_max_value > 1:
            raise InputError("loop=True has no largest bound of dynamic thresholding: use accelerate(pipe) alone")
        plan = scheduler._table(run, row, options, device, torch.float32).plan  # kept for later calls
        if self.doubled and "scale_in" in plan.columns:
            name = type(scheduler).__name__
            raise InputError(f"diffusers' DiT pipeline steps from {name}'s scaled state: use accelerate(pipe) alone")
        alpha, sigma = plan.alpha, plan.sigma
        if self.known is not None and scheduler._at_any_time:
            # Its rows need not lead to the level of the next one, at which the pipeline puts what is known.
            alpha_bar = scheduler.alphas_cumprod.double().numpy(force=True)[np.array(run.times[row + 1 :], dtype=int)]
            alpha = frozen([alpha[0], *np.sqrt(alpha_bar), 1.0])
            sigma = frozen([sigma[0], *np.sqrt(1 - alpha_bar), 0.0])
        return dataclasses.replace(plan, t=frozen(run.times[row:]), alpha=alpha, sigma=sigma)

    def _conditions(self, start: Tensor) -> tuple[dict[str, Any], dict[str, Any] | None]:
        """Return the network's keyword arguments of the conditional and of the other branch, None without one."""
        assert self.given is not None
        condition = {name: value for name, value in self.condition.items() if value is not None}
        if self.given.shape[1] > start.shape[1]:
            condition["beside"] = self.given[:, start.shape[1] :]
        if len(self.given) == len(start):
            return condition, None
        halves = (0, 1) if self.conditional_first else (1, 0)
        joined = {name: _reordered(value, len(self.given), halves) for name, value in condition.items()}
        cond, uncond = ({name: _half(value, k) for name, value in joined.items()} for k in (0, 1))
        return cond, uncond


def _reordered(value: Any, batch: int, halves: tuple[int, int]) -> Any:
    """Return a value whose tensors of the batch, also those in containers, have its halves in another order."""
    if isinstance(value, Tensor) and value.ndim and len(value) == batch:
        parts = value.chunk(2)
        return torch.cat([parts[half] for half in halves])
    if isinstance(value, dict):
        return {name: _reordered(inner, batch, halves) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_reordered(inner, batch, halves) for inner in value)
    return value


def _half(value: Any, which: int) -> Any:
    """Return one branch's part of a tensor; containers go to both branches as they are, with the whole batch."""
    return value.chunk(2)[which] if isinstance(value, Tensor) else value


def _draws(
    scheduler: Adapter, plan: Plan, place: Place, x: Tensor, noise: Noise
) -> Callable[[str, int, tuple[int, ...]], Tensor]:
    """Return the noise that diffusers would draw, as `fastdiff.sample` asks for it: of as many samples as wanted."""
    adds = (plan.column("cz") != 0) | (plan.column("dz") != 0)
    nothing = torch.zeros_like(x)

    def draw(stream: str, row: int, shape: tuple[int, ...]) -> Tensor:
        at = place._replace(row=place.row + row)
        draws = adds[row] or (noise.spare and scheduler._always_draws(at.row, at.run))
        return (scheduler._draw(noise, x, at) if draws else nothing)[: shape[0]]

    return draw
