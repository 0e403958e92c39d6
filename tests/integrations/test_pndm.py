"""PNDM and PLMS against diffusers, every state of whole loops."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.errors import InputError
from tests.integrations.loops import TOLERANCE, error, network, normals, pair, states

NAME = "PNDMScheduler"
ALPHAS: list[dict[str, Any]] = [{}, {"set_alpha_to_one": True, "beta_start": 0.01}, {"steps_offset": 1}]


def by_name(scheduler: Any, steps: int) -> list[Tensor]:
    """The states of a loop that calls the two kinds of steps by their names, with the scheduler's arrays of times."""
    scheduler.set_timesteps(steps)
    x, found = normals(0), []
    for name in ("prk", "plms"):
        for t in getattr(scheduler, f"{name}_timesteps"):
            x = getattr(scheduler, f"step_{name}")(network(x, t), t, x).prev_sample
            found.append(x)
    return found


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_loops(prediction: str, skip: bool) -> None:
    """Every spacing, whether or not the steps divide T, with every way to end."""
    for spacing, alphas in product(["leading", "linspace", "trailing"], ALPHAS):
        config = {"prediction_type": prediction, "skip_prk_steps": skip, "timestep_spacing": spacing, **alphas}
        for steps in (5, 13, 50):
            mine, theirs = pair(NAME, **config)
            assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, (config, steps)


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_few_steps(steps: int) -> None:
    mine, theirs = pair(NAME, skip_prk_steps=True)
    assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("first", range(1, 19))
def test_beginning_in_the_middle(first: int, skip: bool) -> None:
    """Diffusers counts steps from where the loop begins, and takes each for the one of that number."""
    steps = 18 if skip else 10  # 19 timesteps
    mine, theirs = pair(NAME, skip_prk_steps=skip)
    found = states(mine, steps, first=first)
    assert len(found) == 19 - first
    assert error(found, states(theirs, steps, first=first)) < TOLERANCE


@pytest.mark.parametrize("skip", [True, False])
def test_steps_by_name(skip: bool) -> None:
    mine, theirs = pair(NAME, skip_prk_steps=skip, steps_offset=1)
    found = by_name(mine, 10)
    assert error(found, by_name(theirs, 10)) < TOLERANCE
    assert len(found) == len(mine.timesteps)


def test_steps_that_are_not_due() -> None:
    """A multistep step needs those of Runge-Kutta before it, which come at the beginning alone."""
    x = normals(0)
    mine, _ = pair(NAME)
    with pytest.raises(ValueError, match="set_timesteps"):
        mine.step_plms(x, 1, x)
    mine.set_timesteps(10)
    with pytest.raises(InputError, match="call step_prk"):
        mine.step_plms(x, mine.timesteps[0], x)
    skipping, _ = pair(NAME, skip_prk_steps=True)
    skipping.set_timesteps(10)
    with pytest.raises(InputError, match="call step_plms"):
        skipping.step_prk(x, skipping.timesteps[0], x)


def test_outputs_given_by_hand() -> None:
    """Outputs that are put in `ets` are combined as diffusers does, at any timestep."""
    x, out = normals(0), normals(1)
    found = []
    for scheduler in pair(NAME):
        scheduler.set_timesteps(50)
        scheduler.ets = [out + 0.2, out + 0.15, out + 0.1, out + 0.05]
        steps = scheduler.step_prk, scheduler.step_prk, scheduler.step_plms, scheduler.step_plms, scheduler.step
        found.append([step(out, t, x).prev_sample for step, t in zip(steps, (0, 1, 0, 1, 5), strict=True)])
    assert error(*found) == 0


def test_timesteps_that_were_not_set() -> None:
    """A loop may begin at any timestep, down to below 0."""
    x, out = normals(0), normals(1)
    for skip, t in product([True, False], [0, 3, 501]):
        mine, theirs = pair(NAME, skip_prk_steps=skip)
        for scheduler in (mine, theirs):
            scheduler.set_timesteps(10)
        found, expected = (scheduler.step(out, t, x).prev_sample for scheduler in (mine, theirs))
        assert error([found], [expected]) < TOLERANCE


def test_no_timesteps_before_they_are_set() -> None:
    mine, theirs = pair(NAME, trained_betas=[0.1, 0.3])
    assert torch.equal(mine.betas, theirs.betas)
    with pytest.raises(ValueError, match="set_timesteps"):
        mine.step(normals(0), 0, normals(0))
