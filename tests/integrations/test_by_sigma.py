"""What holds for each scheduler that steps in sigma: the calls of `step`, what it returns and what it draws."""

from __future__ import annotations

import copy
import inspect
import tempfile
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastdiff as fd
import fastdiff.integrations.diffusers as ours
from fastdiff.errors import InputError
from tests.integrations.loops import SHAPE, TOLERANCE, error, network, normals, pair, states

FLOW = "FlowMatchEulerDiscreteScheduler"
DPM_SOLVERS = ["DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "EDMDPMSolverMultistepScheduler"]
# How each is made to draw noise, in its configuration and in its steps; those that cannot come after.
NOISY: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "EulerDiscreteScheduler": ({}, {"s_churn": 3.0, "s_noise": 1.1}),
    "EulerAncestralDiscreteScheduler": ({}, {}),
    "KDPM2AncestralDiscreteScheduler": ({}, {}),
    "EDMEulerScheduler": ({}, {"s_churn": 3.0, "s_noise": 1.1}),
    FLOW: ({"stochastic_sampling": True}, {}),
    **dict.fromkeys(DPM_SOLVERS, ({"algorithm_type": "sde-dpmsolver++"}, {})),
}
NAMES = [*NOISY, "HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "LMSDiscreteScheduler"]
# A schedule that is soon set up: some of the schedulers begin with all its levels.
SHORT = {"num_train_timesteps": 100}
TWO_STAGES = [name for name in NAMES if "Heun" in name or "KDPM2" in name]
NOT_BY_INDEX = [name for name in NOISY if "KDPM2" not in name and name not in DPM_SOLVERS]
# Diffusers turns tensors into arrays in a way of before numpy 2, and asks for `scale_model_input` to be called.
pytestmark = pytest.mark.filterwarnings("ignore:__array", "ignore:The `scale_model_input`")


def noisy(name: str) -> tuple[tuple[Any, Any], dict[str, Any]]:
    """Ours and theirs, made to draw noise where they can, and the options of their steps."""
    config, step = NOISY.get(name, ({}, {}))
    return pair(name, **config, **SHORT), step


def seeded(scheduler: Any, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The states of a loop; torch's own generator, from which older versions of diffusers draw, begins anew."""
    torch.manual_seed(8)
    return states(scheduler, *args, **kwargs)


def stepped(scheduler: Any, t: Any, dtype: torch.dtype = torch.float32, **step: Any) -> Any:
    return scheduler.step(normals(1).to(dtype), t, normals(0).to(dtype), **step)


@pytest.mark.parametrize("name", NAMES)
def test_signature_and_result(name: str) -> None:
    mine, theirs = pair(name, **SHORT)
    known, taken = (inspect.signature(scheduler.step).parameters for scheduler in (theirs, mine))
    assert {key: p.default for key, p in taken.items() if key != "seed"} == {k: p.default for k, p in known.items()}
    assert list(taken) == [*known, "seed"]
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(6)
    first, second, *_ = mine.timesteps
    torch.manual_seed(1)
    expected = stepped(theirs, first)
    torch.manual_seed(1)
    result = stepped(mine, first)
    assert type(result) is type(expected)
    for key, value in expected.items():
        assert error([result[key]], [value]) < TOLERANCE, key
    plain = stepped(mine, second, return_dict=False)
    assert isinstance(plain, tuple)
    assert len(plain) == len(expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_shows_between_scaling_and_stepping(name: str) -> None:
    both = pair(name, **SHORT)
    for scheduler in both:
        scheduler.set_timesteps(5)
    for t in both[0].timesteps:
        for scheduler in both:
            getattr(scheduler, "scale_model_input", lambda x, t: x)(normals(0), t)
        shown, expected = ((s.step_index, getattr(s, "state_in_first_order", None)) for s in both)
        assert shown == expected
        for scheduler in both:
            stepped(scheduler, t)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype_of_the_result(name: str, dtype: torch.dtype) -> None:
    (mine, theirs), step = noisy(name)
    found, expected = (seeded(scheduler, 6, dtype=dtype, **step) for scheduler in (mine, theirs))
    assert {state.dtype for state in found} == {dtype} == {state.dtype for state in expected}
    # The state is rounded to the dtype after each step, of diffusers' also within it.
    assert error(found, expected) < 100 * torch.finfo(dtype).eps
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(6)
    result, known = (stepped(scheduler, mine.timesteps[0], dtype) for scheduler in (mine, theirs))
    assert {key: value.dtype for key, value in result.items()} == {key: value.dtype for key, value in known.items()}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("draw", ["generator", "list", "global"])
def test_noise_and_the_generators_end(name: str, draw: str) -> None:
    """The same noise as diffusers', from each of its sources, which end in the same state."""
    (mine, theirs), step = noisy(name)
    ends, found = [], []
    for scheduler in (mine, theirs):
        one, another = (torch.Generator().manual_seed(seed) for seed in (3, 4))
        source = (
            {"generator": {"generator": one, "list": [one, another], "global": None}[draw]} if name in NOISY else {}
        )
        torch.manual_seed(5)
        found.append(states(scheduler, 7, **step, **source))
        ends.append([torch.get_rng_state(), one.get_state(), another.get_state()])
    assert error(*found) < TOLERANCE
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


@pytest.mark.parametrize("name", NOISY)
def test_own_noise(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a seed each sample has its own noise, `fd.noise.normal` of the row, whatever its batch."""
    (mine, theirs), step = noisy(name)
    module = inspect.getmodule(type(theirs))
    assert module is not None
    if not hasattr(module, "randn_tensor"):
        pytest.skip("this version of diffusers does not draw by randn_tensor")
    monkeypatch.setattr(
        module, "randn_tensor", lambda shape, **_: fd.noise.normal(shape, 9, step=theirs.step_index, stream="step")
    )
    found = states(mine, 7, **step, seed=9, generator=None)
    assert error(found, states(theirs, 7, **step)) < TOLERANCE
    mine.seed = 9
    assert error(states(mine, 7, **step, generator=None), found) == 0


@pytest.mark.parametrize("name", NAMES)
def test_beginning_in_the_middle(name: str) -> None:
    """By `set_begin_index`, by the tensor, and by its value."""
    (mine, theirs), step = noisy(name)
    expected = seeded(theirs, 10, first=4, **step)
    assert error(seeded(mine, 10, first=4, **step), expected) < TOLERANCE
    walks = [walk(mine, read, **step) for read in (lambda t: t, float, lambda t: t.clone(), lambda t: t.double())]
    assert all(error(found, walks[0]) == 0 for found in walks[1:])
    assert error(walks[0], walk(theirs, lambda t: t, **step)) < TOLERANCE


def walk(scheduler: Any, read: Callable[[Tensor], Any], **step: Any) -> list[Tensor]:
    """The states of a loop that begins in the middle by its first timestep, read in a way of its own."""
    scheduler.set_timesteps(10)
    torch.manual_seed(8)
    if "generator" in inspect.signature(scheduler.step).parameters:
        step["generator"] = torch.Generator().manual_seed(2)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    x, found = normals(0), []
    for t in scheduler.timesteps[4:]:
        x = scheduler.step(network(scaled(x, read(t)), t), read(t), x, **step).prev_sample
        found.append(x)
    return found


@pytest.mark.parametrize("name", TWO_STAGES)
def test_a_step_of_two_rows_is_begun_with_the_first(name: str) -> None:
    mine, _ = pair(name, **SHORT)
    with pytest.raises(InputError, match="begin with the first, at index 2"):
        states(mine, 10, first=3)


@pytest.mark.parametrize("name", NOT_BY_INDEX)
@pytest.mark.parametrize("index", [0, torch.tensor(0), torch.tensor(0, dtype=torch.int32)])
def test_an_index_is_no_timestep(name: str, index: int | Tensor) -> None:
    mine, theirs = pair(name, **SHORT)
    for scheduler in (mine, theirs):
        scheduler.set_timesteps(5)
        with pytest.raises(ValueError, match="index|indices"):
            stepped(scheduler, index)


@pytest.mark.parametrize("name", NAMES)
def test_configurations_go_both_ways(name: str) -> None:
    """Ours is made from diffusers' configuration and gives the same back, saved or not."""
    _, theirs = pair(name, **SHORT)
    mine = getattr(ours, name).from_config(theirs.config)
    assert dict(mine.config) == {**theirs.config, "_use_default_values": mine.config["_use_default_values"]}
    with tempfile.TemporaryDirectory() as folder:
        mine.save_pretrained(folder)
        again = getattr(diffusers, name).from_pretrained(folder)
    assert error(states(mine, 5), states(again, 5)) < TOLERANCE


@pytest.mark.parametrize("name", [name for name in NAMES if name not in DPM_SOLVERS])
def test_before_set_timesteps_and_copies(name: str) -> None:
    """A new scheduler has all training levels, and a copy has what was set."""
    mine, theirs = pair(name, **SHORT)
    assert torch.equal(mine.timesteps, theirs.timesteps)
    # Flow matching's has no level behind the last one then.
    found, expected = (
        stepped(scheduler, theirs.timesteps[-1 - (name == FLOW)].float()) for scheduler in (mine, theirs)
    )
    assert error([found.prev_sample], [expected.prev_sample]) < TOLERANCE
    mine.set_timesteps(5)
    other = copy.deepcopy(mine)
    assert torch.equal(other.timesteps, mine.timesteps)
    assert torch.equal(other.sigmas, mine.sigmas)
    assert error(states(other, 5), states(mine, 5)) == 0


@pytest.mark.parametrize("name", NAMES)
def test_the_plan_samples_alone(name: str) -> None:
    """The plan of a run, sampled without the scheduler, gives what the scheduler's loop gives."""
    (mine, _), step = noisy(name)
    expected = states(mine, 6, **step, seed=9, **({"generator": None} if name in NOISY else {}))
    found = fd.sample(
        lambda x, t: network(x, t[0]),
        mine.plan(**step),
        SHAPE,
        x_init=normals(0) * float(mine.init_noise_sigma),
        seed=9,
    )
    assert error([found], expected[-1:]) < 1e-5


class Reads(TorchDispatchMode):
    """Counts the ops for which the host would wait for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_in_a_step(name: str) -> None:
    (mine, _), step = noisy(name)
    mine.set_timesteps(5)
    times = {"per_token_timesteps": torch.full(SHAPE[:2], 700.0)} if name == FLOW else {}
    scaled = getattr(mine, "scale_model_input", lambda x, t: x)
    with Reads() as reads:
        for t in mine.timesteps:
            x = scaled(normals(0), t)
            mine.step(x, t, x, **step)
        if times:
            mine.step(x[..., 0], t, x[..., 0], **times)
    assert reads.count == 0
