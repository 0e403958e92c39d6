"""DPM++ SDE against diffusers, every state of whole loops, those between two stages too."""

from __future__ import annotations

import copy
import inspect
from itertools import cycle
from typing import Any

import pytest
import torch

import fastdiff as fd
import fastdiff.integrations.diffusers as ours
from fastdiff.errors import InputError
from tests.integrations.loops import SHAPE, TOLERANCE, error, in_float64, network, normals, pair, states

pytest.importorskip("torchsde")
NAME = "DPMSolverSDEScheduler"
LEVELS: list[dict[str, Any]] = [
    *(
        {"timestep_spacing": name, "steps_offset": int(name == "leading")}
        for name in ("linspace", "leading", "trailing")
    ),
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"beta_schedule": "scaled_linear"},
]
# With a schedule that is soon set up: the scheduler begins with all its levels.
SEEDED = {"noise_sampler_seed": 5, "num_train_timesteps": 100}
# Diffusers turns tensors into arrays in a way of before numpy 2, and asks torchsde for increments that rounding lets
# begin and end outside of its motion.
pytestmark = pytest.mark.filterwarnings("ignore:__array", "ignore:Should have t")


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_state(kind: str, dtype: torch.dtype) -> None:
    """Diffusers' own noise, the increments of its Brownian motion."""
    loops = cycle([(5, 0), (8, 6), (13, 0), (1, 0), (2, 0)])
    for level, (steps, first) in zip(LEVELS, loops, strict=False):
        made = in_float64 if dtype == torch.float64 else lambda scheduler: scheduler
        found, expected = (
            states(made(scheduler), steps, first=first, dtype=dtype, s_noise=0.9)
            for scheduler in pair(NAME, prediction_type=kind, **level, **SEEDED)
        )
        # Diffusers rounds some of its coefficients to float32 in float64 too.
        assert error(found, expected) < TOLERANCE, (level, steps)


@pytest.mark.parametrize("steps", [9, 25, 50])
def test_counts(steps: int) -> None:
    mine, theirs = pair(NAME, **SEEDED, use_karras_sigmas=True)
    assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE


def test_signature_and_result() -> None:
    mine, theirs = pair(NAME, **SEEDED)
    known, taken = (inspect.signature(scheduler.step).parameters for scheduler in (theirs, mine))
    assert {key: p.default for key, p in taken.items() if key != "seed"} == {k: p.default for k, p in known.items()}
    assert list(taken) == [*known, "seed"]
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(4)
    for t in mine.timesteps:
        assert mine.state_in_first_order == theirs.state_in_first_order
        scaled = [scheduler.scale_model_input(normals(0), t) for scheduler in (mine, theirs)]
        assert error(scaled[:1], scaled[1:]) < TOLERANCE
        found, expected = (scheduler.step(normals(1), t, normals(0)) for scheduler in (mine, theirs))
        assert type(found) is type(expected)
        for key, value in expected.items():
            assert error([found[key]], [value]) < TOLERANCE, key
    mine.set_timesteps(4)
    plain = mine.step(normals(1), mine.timesteps[0], normals(0), return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 2


@pytest.mark.parametrize("steps", [1, 5])
def test_noise_of_torch(steps: int) -> None:
    """Without a seed the motion takes its own from torch's generator, once, at the first step."""
    found, ends = [], []
    for scheduler in pair(NAME):
        torch.manual_seed(8)
        found.append(states(scheduler, steps))
        ends.append(torch.get_rng_state())
    assert error(*found) < TOLERANCE
    assert torch.equal(*ends)


def test_a_seed_for_each_sample() -> None:
    """Each sample then has a motion of its own, whatever its batch."""
    mine, theirs = pair(NAME, noise_sampler_seed=[3, 4])
    assert error(states(mine, 5), states(theirs, 5)) < TOLERANCE


def test_a_noise_sampler_of_ones_own() -> None:
    found = []
    for scheduler in pair(NAME):
        scheduler.set_timesteps(4)
        scheduler.noise_sampler = lambda start, end: torch.full(SHAPE, float(start - end))
        x = normals(0)
        for t in scheduler.timesteps:
            x = scheduler.step(network(x, t), t, x).prev_sample
        found.append(x)
    assert error(found[:1], found[1:]) < TOLERANCE


def test_own_noise() -> None:
    """With a seed the draws of both rows of a step are one Brownian motion, and the plan samples alone."""
    mine, _ = pair(NAME)
    found = states(mine, 6, seed=9)
    start = normals(0) * float(mine.init_noise_sigma)
    alone = fd.sample(lambda x, t: network(x, t[0]), mine.plan(), SHAPE, x_init=start, seed=9)
    # `fd.sample` scales what the network is given within the step, in another order of rounding.
    assert error([alone], found[-1:]) < 1e-5
    mine.seed = 9
    assert error(states(mine, 6), found) == 0
    plan, s = mine.plan(s_noise=0.9), mine.plan().sigma
    # What both rows add: the step's noise of DDPM, s'^2 (1 - s'^2 / s^2).
    added = plan.column("dz")[0] ** 2 + plan.column("cz")[1] ** 2
    assert added == pytest.approx(0.9**2 * s[2] ** 2 * (1 - (s[2] / s[0]) ** 2), rel=1e-6)
    assert mine.plan(s_noise=0.9, one_path=False).column("cz")[1] ** 2 == pytest.approx(added, rel=1e-12)


@pytest.mark.parametrize(
    ("state", "output"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("float32", "float16")]
)
def test_dtype_of_the_result(state: str, output: str) -> None:
    """That of state and output together; the motion has the state's."""
    found: list[list[torch.Tensor]] = []
    for scheduler in pair(NAME, **SEEDED):
        scheduler.set_timesteps(5)
        x, found = normals(0).to(getattr(torch, state)), [*found, []]
        for t in scheduler.timesteps[:2]:
            found[-1] += scheduler.step(normals(1).to(getattr(torch, output)), t, x, return_dict=False)
    assert [x.dtype for x in found[0]] == [x.dtype for x in found[1]]
    # Diffusers rounds within the step too.
    assert error(*found) < 20 * torch.finfo(getattr(torch, output)).eps


def test_copies_and_configurations() -> None:
    mine, theirs = pair(NAME, **SEEDED)
    again = getattr(ours, NAME).from_config(theirs.config)
    assert dict(again.config) == {**theirs.config, "_use_default_values": again.config["_use_default_values"]}
    mine.set_timesteps(5)
    other = copy.deepcopy(mine)
    assert error(states(other, 5), states(mine, 5)) == 0
    assert error(states(again, 5), states(mine, 5)) == 0


def test_a_step_of_two_rows_is_begun_with_the_first() -> None:
    mine, _ = pair(NAME)
    with pytest.raises(InputError, match="begin with the first, at index 2"):
        states(mine, 10, first=3)


def test_loops_that_share_a_scheduler() -> None:
    """Each has a motion of its own."""
    mine, _ = pair(NAME, **SEEDED)
    expected = [states(mine, steps)[-1] for steps in (3, 5)]
    loops = []
    for steps in (3, 5):
        mine.set_timesteps(steps)
        loops.append((mine.timesteps, normals(0) * float(mine.init_noise_sigma)))
    found = []
    for turn in range(9):
        for k, (timesteps, x) in enumerate(loops):
            if turn < len(timesteps):
                t = timesteps[turn]
                loops[k] = timesteps, mine.step(network(mine.scale_model_input(x, t), t), t, x).prev_sample
    found = [x for _, x in loops]
    assert error(found, expected) == 0
