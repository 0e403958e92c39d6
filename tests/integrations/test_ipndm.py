"""iPNDM against diffusers, every state of whole loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.integrations.loops import TOLERANCE, error, network, normals, pair, states

NAME = "IPNDMScheduler"


@pytest.mark.parametrize(
    ("steps", "first"), [(2, 0), (2, 1), (3, 0), (4, 0), (5, 0), (5, 3), (13, 0), (13, 6), (50, 0), (50, 49)]
)
def test_loops(steps: int, first: int) -> None:
    mine, theirs = pair(NAME)
    assert error(states(mine, steps, first=first), states(theirs, steps, first=first)) < TOLERANCE


def test_one_step() -> None:
    """From pure noise diffusers takes 0 for x0, so that a single step ends in 0."""
    for scheduler in pair(NAME):
        assert states(scheduler, 1)[0].abs().max() == 0


@pytest.mark.parametrize("noisiest", [0.999, 0.5])
def test_trained_betas(noisiest: float) -> None:
    """The levels may be given, from the noisiest to the one to land on."""
    mine, theirs = pair(NAME, trained_betas=torch.linspace(noisiest, 0.01, 8).tolist())
    found = states(mine, 7)
    assert error(found, states(theirs, 7)) < TOLERANCE
    assert len(found) == 7
    assert torch.equal(mine.betas, theirs.betas)


def twice(scheduler: Any) -> list[Tensor]:
    """The states of a loop, and of another that begins without new timesteps."""
    found = states(scheduler, 6)
    scheduler._step_index = None
    x = found[-1]
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
        found.append(x)
    return found


def test_a_second_loop_goes_on() -> None:
    """Without `set_timesteps` between them, as in diffusers, a loop goes on with the eps of the one before it."""
    mine, theirs = pair(NAME)
    assert error(twice(mine), twice(theirs)) < TOLERANCE
    assert error(states(mine, 6), states(theirs, 6)) < TOLERANCE


def test_eps_given_by_hand() -> None:
    x, out = normals(0), normals(1)
    found = []
    for scheduler in pair(NAME):
        scheduler.set_timesteps(10)
        scheduler.ets = [out + 0.2, out + 0.15, out + 0.1, out + 0.05]
        found.append([scheduler.step(out, t, x).prev_sample for t in scheduler.timesteps[5:7]])
    assert error(*found) == 0


def test_loops_side_by_side() -> None:
    """A loop that ends leaves another that is under way its own eps."""
    mine, _ = pair(NAME)
    expected = states(mine, 5)
    mine.set_timesteps(5)
    first, second = normals(0), normals(0)
    for row, t in enumerate(mine.timesteps):
        first = mine.step(network(first, t), t, first).prev_sample
        if row:
            before = mine.timesteps[row - 1]
            second = mine.step(network(second, before), before, second).prev_sample
    t = mine.timesteps[-1]
    second = mine.step(network(second, t), t, second).prev_sample
    assert error([first, second], [expected[-1]] * 2) == 0
