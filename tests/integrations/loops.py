"""What the tests of schedulers share: the same loop with diffusers' scheduler and with ours."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

import fastdiff.integrations.diffusers as ours

SHAPE = (2, 3, 4, 4)
# Float32 on both sides: diffusers rounds its coefficients, of which there are some ten a step, to 24 bits.
TOLERANCE = 1e-4


def network(x: Tensor, t: Tensor | float) -> Tensor:
    """A fixed nonlinear network whose channels mix, and in which the time counts."""
    return 1.2 * torch.tanh(0.9 * x + 0.3 * x.roll(1, dims=1) - 0.5 * float(t) / 1000 + 0.2)


def normals(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(name: str, **config: Any) -> tuple[Any, Any]:
    """Return our scheduler and diffusers', of one name and configuration."""
    return getattr(ours, name)(**config), getattr(diffusers, name)(**config)


def states(
    scheduler: Any,
    steps: int | None,
    model: Callable[[Tensor, Tensor | float], Tensor] = network,
    first: int = 0,
    timesteps_of: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    **step: Any,
) -> list[Tensor]:
    """Return the state after each step of a loop as pipelines have it; noise comes from one generator.

    `first` begins in the middle, as image-to-image pipelines do; `timesteps_of` is given to `set_timesteps`.
    """
    scheduler.set_timesteps(steps, **(timesteps_of or {}))
    generator, found = torch.Generator().manual_seed(7), []
    timesteps = scheduler.timesteps[first:]
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step = {"generator": generator, **step}
    x = normals(0).to(dtype) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    for t in timesteps:
        out = model(scaled(x, t), t)
        x = scheduler.step(out, t, x, **step, return_dict=False)[0]
        found.append(x)
    return found


def in_float64(scheduler: Any) -> Any:
    """Return a scheduler that finds its coefficients in float64, for states in float64."""
    set_timesteps = scheduler.set_timesteps

    def begin(*args: Any, **kwargs: Any) -> None:
        set_timesteps(*args, **kwargs)
        scheduler.sigmas = scheduler.sigmas.double()

    scheduler.set_timesteps = begin
    return scheduler


def error(got: list[Tensor], expected: list[Tensor]) -> float:
    """Return the largest deviation of any state, relative to the largest value of its own."""
    assert len(got) == len(expected)
    return max(
        float((a.double() - b.double()).abs().max() / b.double().abs().max())
        for a, b in zip(got, expected, strict=True)
    )


def with_exact_levels(scheduler: Any) -> Any:
    """Return a scheduler of levels by timestep that finds its coefficients in float64, for states in float64."""
    for name in ("alphas_cumprod", "final_alpha_cumprod", "initial_alpha_cumprod", "one"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


def drawn(scheduler: Any, steps: int | None, generators: int = 1, **kwargs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """Return the states of a loop, and how its generators end: one for the batch, or one for each sample."""
    made = [torch.Generator().manual_seed(5 + k) for k in range(generators)]
    found = states(scheduler, steps, generator=made if generators > 1 else made[0], **kwargs)
    return found, [generator.get_state() for generator in made]


def draw_alike(one: tuple[list[Tensor], list[Tensor]], other: tuple[list[Tensor], list[Tensor]]) -> bool:
    """Return whether two loops that were `drawn` have the same states, and their generators end alike."""
    ends = zip(one[1], other[1], strict=True)
    return error(one[0], other[0]) < TOLERANCE and all(torch.equal(a, b) for a, b in ends)
