"""What holds for each of PNDM, iPNDM, DEIS, UniPC, SA-Solver and DPM-Solver: the calls of `step`, what it returns."""

from __future__ import annotations

import copy
import inspect
import tempfile
from typing import Any

import diffusers
import pytest
import torch

import fastdiff as fd
import fastdiff.integrations.diffusers as ours
from tests.integrations.loops import SHAPE, TOLERANCE, error, network, normals, pair, states

NAMES = [
    "PNDMScheduler",
    "IPNDMScheduler",
    "DEISMultistepScheduler",
    "UniPCMultistepScheduler",
    "SASolverScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
]
BY_SIGMA = NAMES[2:]
# Diffusers turns tensors into arrays in a way of before numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array")


def stepped(scheduler: Any, t: Any, *, dtype: torch.dtype = torch.float32, **step: Any) -> Any:
    return scheduler.step(normals(1).to(dtype), t, normals(0).to(dtype), **step)


@pytest.mark.parametrize("name", NAMES)
def test_signature_and_result(name: str) -> None:
    mine, theirs = pair(name)
    known = inspect.signature(theirs.step).parameters
    taken = inspect.signature(mine.step).parameters
    assert {key: p.default for key, p in taken.items() if key != "seed"} == {k: p.default for k, p in known.items()}
    assert list(taken) == [*known, "seed"]
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(6)
    first, second, *_ = mine.timesteps
    named = stepped(mine, first, seed=None)
    assert type(named) is type(stepped(theirs, first))
    assert named[0] is named.prev_sample
    plain = stepped(mine, second, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 1


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_of_the_result(name: str, dtype: torch.dtype) -> None:
    mine, theirs = pair(name)
    found, expected = (states(scheduler, 5, dtype=dtype) for scheduler in (mine, theirs))
    assert {state.dtype for state in found} == {dtype} == {state.dtype for state in expected}
    # The state is rounded to the dtype after each step, of diffusers' also within it.
    assert error(found, expected) < max(60 * torch.finfo(dtype).eps, TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_timesteps_by_value(name: str) -> None:
    """Timesteps may be numbers, or tensors of another dtype: what counts is the row that has the value."""
    mine, _ = pair(name)
    expected = states(mine, 6, generator=torch.Generator().manual_seed(1)) if "SA" in name else states(mine, 6)
    for read in (lambda t: t.item(), lambda t: t.double(), lambda t: t.clone()):
        mine.set_timesteps(6)
        step = {"generator": torch.Generator().manual_seed(1)} if "SA" in name else {}
        x = normals(0)
        for t in mine.timesteps:
            x = mine.step(network(x, t), read(t), x, **step).prev_sample
        assert torch.equal(x, expected[-1])


@pytest.mark.parametrize("name", BY_SIGMA)
def test_beginning_by_the_first_timestep(name: str) -> None:
    """A loop begins where its first timestep is, be it by the tensor or by its value, and warms up there."""
    mine, theirs = pair(name)
    found = []
    for scheduler, read in [(mine, lambda t: t), (mine, int), (theirs, lambda t: t)]:
        scheduler.set_timesteps(10)
        x, states_of, generator = normals(0), [], torch.Generator().manual_seed(2)
        step = {"generator": generator} if "SA" in name else {}
        x = scheduler.add_noise(x, normals(3), scheduler.timesteps[4:5])
        for t in scheduler.timesteps[4:]:
            x = scheduler.step(network(x, t), read(t), x, **step).prev_sample
            states_of.append(x)
        found.append(states_of)
    assert error(found[0], found[2]) < TOLERANCE
    assert error(found[1], found[0]) == 0


@pytest.mark.parametrize("name", BY_SIGMA)
def test_a_timestep_that_was_not_set_is_the_last(name: str) -> None:
    mine, theirs = pair(name)
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(7)
    step = {"generator": torch.Generator().manual_seed(1)} if "SA" in name else {}
    found = stepped(mine, 1, **step).prev_sample
    step = {"generator": torch.Generator().manual_seed(1)} if "SA" in name else {}
    assert error([found], [stepped(theirs, 1, **step).prev_sample]) < TOLERANCE


@pytest.mark.parametrize("name", [*BY_SIGMA, "PNDMScheduler"])
def test_steps_need_timesteps(name: str) -> None:
    mine, _ = pair(name)
    with pytest.raises(ValueError, match="set_timesteps"):
        stepped(mine, 999)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_go_both_ways(name: str) -> None:
    """Ours is made from diffusers' configuration and gives the same back, saved or not."""
    _, theirs = pair(name)
    mine = getattr(ours, name).from_config(theirs.config)
    assert dict(mine.config) == {**theirs.config, "_use_default_values": mine.config["_use_default_values"]}
    with tempfile.TemporaryDirectory() as folder:
        mine.save_pretrained(folder)
        again = getattr(diffusers, name).from_pretrained(folder)
    assert error(states(mine, 5), states(again, 5)) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_copies(name: str) -> None:
    mine, _ = pair(name)
    mine.set_timesteps(5)
    other = copy.deepcopy(mine)
    assert torch.equal(other.timesteps, mine.timesteps)
    assert error(states(other, 5), states(mine, 5)) == 0


@pytest.mark.parametrize("name", [name for name in NAMES if "SA" not in name])
def test_the_plan_samples_alone(name: str) -> None:
    """The plan of a run, sampled without the scheduler, gives what the scheduler's loop gives."""
    mine, _ = pair(name)
    expected = states(mine, 6)
    # `fd.sample` scales its noise by init_scale as pipelines do by init_noise_sigma.
    found = fd.sample(
        lambda x, t: network(x, t[0]), mine.plan(), SHAPE, noise=lambda stream, draw, shape: normals(0), backend="auto"
    )
    assert error([found], expected[-1:]) < 1e-5


@pytest.mark.parametrize("name", BY_SIGMA)
def test_levels_that_come_twice(name: str) -> None:
    """As many steps as the schedule has levels, one of which comes twice: diffusers divides by 0 from there on."""
    mine, theirs = pair(name, num_train_timesteps=25)
    found, expected = states(mine, 25), states(theirs, 25)
    finite = [k for k, state in enumerate(expected) if state.isfinite().all()]
    assert error([found[k] for k in finite], [expected[k] for k in finite]) < TOLERANCE
    assert len(finite) > 5
    assert all(state.isfinite().all() for state in found)


@pytest.mark.parametrize("name", BY_SIGMA)
@pytest.mark.parametrize("shape", [(4, 3, 8), (2, 6), (1, 3, 2, 4, 4)])
def test_shapes(name: str, shape: tuple[int, ...]) -> None:
    """States of any number of dimensions, thresholded in half precision too."""
    mine, _ = pair(name, thresholding=True, dynamic_thresholding_ratio=0.0)
    mine.set_timesteps(6)
    x = normals(0, shape).half()
    for t in mine.timesteps:
        x = mine.step(0.5 * x, t, x).prev_sample
    assert x.dtype == torch.float16
    assert x.shape == shape
    assert x.isfinite().all()
