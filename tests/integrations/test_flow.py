"""Flow matching's Euler method against diffusers, every state of whole loops."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.loops import error, network, normals, pair, states

NAME = "FlowMatchEulerDiscreteScheduler"
CONFIGS: list[dict[str, Any]] = [
    {},
    {"shift": 3.0},
    {"use_dynamic_shifting": True},
    {"use_dynamic_shifting": True, "time_shift_type": "linear"},
    {"shift": 2.0, "shift_terminal": 0.1},
    {"invert_sigmas": True},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
]
# Float32 on both sides, a dozen operations a step, none of which cancel; measured, the worst of all cases: 8e-7.
TOLERANCE = 1e-5
# What LTX's pipelines give: times of their own for tokens that are known, in part or in whole.
LIMITS = torch.tensor([[1000.0, 0.0, 200.0, 1000.0, 333.3, 1000.0], [1000.0, 0.0, 1000.0, 1000.0, 5.0, 700.0]])


def shift_of(config: dict[str, Any]) -> dict[str, float]:
    return {"mu": 0.8} if "use_dynamic_shifting" in config else {}


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_every_state(config: dict[str, Any], stochastic: bool) -> None:
    mine, theirs = pair(NAME, stochastic_sampling=stochastic, **config)
    for steps, first in [(2, 0), (5, 0), (13, 6), (50, 0)]:
        found = []
        for scheduler in (mine, theirs):
            torch.manual_seed(1)  # what older versions draw from
            found.append(states(scheduler, steps, first=first, timesteps_of=shift_of(config)))
        assert error(*found) < TOLERANCE, steps


def test_all_counts() -> None:
    for steps, shift in zip(range(1, 51, 2), cycle([1.0, 3.0, 12.0])):
        mine, theirs = pair(NAME, shift=shift)
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE


@pytest.mark.parametrize(
    "given",
    [
        {"sigmas": [1.0, 0.8, 0.5, 0.1]},
        {"timesteps": [1000.0, 700.0, 400.0, 50.0]},
        {"sigmas": [1.0, 0.8, 0.5, 0.1], "timesteps": [1000.0, 700.0, 400.0, 50.0]},
    ],
)
def test_own_levels(given: dict[str, Any]) -> None:
    mine, theirs = pair(NAME, shift=2.0)
    assert error(states(mine, None, timesteps_of=given), states(theirs, None, timesteps_of=given)) < TOLERANCE


def test_scaling_noise() -> None:
    """`scale_noise` and `set_shift` are diffusers' own, before a loop, within it and in training."""
    mine, theirs = pair(NAME)
    found = []
    for scheduler in (mine, theirs):
        scheduler.set_shift(3.0)
        scheduler.set_timesteps(8)
        x, z, t = normals(1), normals(2), scheduler.timesteps[3:4]
        noised = [scheduler.scale_noise(x, t, z)]
        scheduler.set_begin_index(2)
        noised.append(scheduler.scale_noise(x, t, z))
        x = scheduler.step(network(x, t[0]), scheduler.timesteps[2], x).prev_sample
        noised.append(scheduler.scale_noise(x, t, z))
        found.append(noised)
    assert error(*found) < TOLERANCE


# --- a time for each token


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens(stochastic: bool, dtype: torch.dtype) -> None:
    """Each token steps from its own time; the result is float32 whatever the network's dtype is."""
    for steps, shift in [(4, 1.0), (11, 3.0)]:
        found = []
        for scheduler in pair(NAME, stochastic_sampling=stochastic, shift=shift):
            torch.manual_seed(1)
            found.append(tokens(scheduler, steps, dtype))
        assert error(*found) < TOLERANCE
        assert {state.dtype for states_of in found for state in states_of} == {torch.float32}


def tokens(scheduler: Any, steps: int, dtype: torch.dtype = torch.float32, **step: Any) -> list[Tensor]:
    """The states of a loop over samples of six tokens of four channels."""
    scheduler.set_timesteps(steps)
    x, found = normals(0, (2, 6, 4)), []
    for t in scheduler.timesteps:
        out, times = -network(x, t).to(dtype), torch.minimum(t, LIMITS)
        x = scheduler.step(out, t, x, per_token_timesteps=times, **step, return_dict=False)[0]
        found.append(x)
    return found


def test_tokens_that_are_known_stay() -> None:
    mine, _ = pair(NAME)
    final = tokens(mine, 5)[-1]
    start = normals(0, (2, 6, 4))
    assert torch.equal(final[:, 1], start[:, 1])
    assert not torch.equal(final[:, 0], start[:, 0])


def test_own_noise_of_tokens() -> None:
    """With a seed the tokens' noise is that of their sample."""
    mine, _ = pair(NAME, stochastic_sampling=True)
    mine.set_timesteps(5)
    x, t = normals(0, (2, 6, 4)), mine.timesteps[0]
    out = network(x, t)
    each = mine.step(out, t, x, per_token_timesteps=t.expand(2, 6), seed=4).prev_sample
    assert error([each], [mine.step(out, t, x, seed=4).prev_sample]) < TOLERANCE
