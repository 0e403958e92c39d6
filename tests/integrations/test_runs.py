"""What a scheduler knows is of a run, not of the scheduler: loops that share one do not disturb each other."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

import fastdiff.integrations.diffusers as ours
from tests.integrations.loops import network, normals

# One of each way to keep something from step to step: nothing, a multistep history, an anchor, both, and a counter.
NAMES = [
    "DDIMScheduler",
    "DPMSolverMultistepScheduler",
    "HeunDiscreteScheduler",
    "UniPCMultistepScheduler",
    "PNDMScheduler",
    "EulerAncestralDiscreteScheduler",
]


class Walk:
    """A loop that is done step by step, from a start and with noise of its own."""

    def __init__(self, scheduler: Any, steps: int | None, seed: int) -> None:
        if steps is not None:
            scheduler.set_timesteps(steps)
        self.scheduler, self.timesteps, self.done = scheduler, list(scheduler.timesteps), 0
        self.x = normals(seed) * float(scheduler.init_noise_sigma)
        self.generator = torch.Generator().manual_seed(seed)

    def step(self) -> None:
        t = self.timesteps[self.done]
        out = network(self.scheduler.scale_model_input(self.x, t), t)
        noise = {"generator": self.generator} if "Ancestral" in type(self.scheduler).__name__ else {}
        self.x = self.scheduler.step(out, t, self.x, **noise).prev_sample
        self.done += 1

    def finish(self) -> Tensor:
        while self.done < len(self.timesteps):
            self.step()
        return self.x


def alone(name: str, steps: int, seed: int) -> Tensor:
    return Walk(getattr(ours, name)(), steps, seed).finish()


@pytest.mark.parametrize("name", NAMES)
def test_interleaved_runs_are_those_of_two_schedulers(name: str) -> None:
    """Two loops of different lengths, in turns, with one scheduler; to the bit."""
    shared = getattr(ours, name)()
    first, second = Walk(shared, 7, 1), Walk(shared, 11, 2)
    while first.done < len(first.timesteps):
        second.step()
        first.step()
    assert torch.equal(first.x, alone(name, 7, 1))
    assert torch.equal(second.finish(), alone(name, 11, 2))


@pytest.mark.parametrize("name", NAMES)
def test_interleaved_loops_of_one_run(name: str) -> None:
    """Two loops over the timesteps of one call of set_timesteps: a loop is known by the state that it hands back."""
    shared = getattr(ours, name)()
    first, second = Walk(shared, 9, 1), Walk(shared, None, 2)
    for _ in range(len(first.timesteps)):
        first.step()
        second.step()
    assert torch.equal(first.x, alone(name, 9, 1))
    assert torch.equal(second.x, alone(name, 9, 2))


@pytest.mark.parametrize("name", NAMES)
def test_loops_in_turns_with_new_tensors(name: str) -> None:
    """Nor need the states be the same tensors, where loops keep their order, as the views of a panorama do.

    Around each of its views a panorama puts back the scheduler's attributes, as it had copied them.
    """
    shared = getattr(ours, name)()
    walks = [Walk(shared, 6, 1), Walk(shared, None, 2), Walk(shared, None, 3)]
    kept = [copy.deepcopy(vars(shared)) for _ in walks]
    for _ in range(len(walks[0].timesteps)):
        for k, walk in enumerate(walks):
            vars(shared).update(kept[k])
            walk.x = walk.x.clone()
            walk.step()
            kept[k] = vars(shared)
    for seed, walk in enumerate(walks, start=1):
        assert torch.equal(walk.x, alone(name, 6, seed))


@pytest.mark.parametrize("name", NAMES)
def test_threads_share_a_scheduler(name: str) -> None:
    """Each thread's loop waits for the other's at every step, so that they are in each other's way if they can be."""
    shared, barrier = getattr(ours, name)(), threading.Barrier(2, timeout=60)
    found: dict[int, Tensor] = {}

    def loop(seed: int) -> None:
        walk = Walk(shared, 8, seed)
        for _ in range(len(walk.timesteps)):
            barrier.wait()
            walk.step()
        assert shared.num_inference_steps == 8
        found[seed] = walk.x

    threads = [threading.Thread(target=loop, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(found[1], alone(name, 8, 1))
    assert torch.equal(found[2], alone(name, 8, 2))


def test_the_peer_does_disturb_itself() -> None:
    """What the tests above guard against is real: the same walk with diffusers' own class goes wrong."""
    shared = diffusers.DPMSolverMultistepScheduler()
    first, second = Walk(shared, 7, 1), Walk(shared, 11, 2)
    for _ in range(4):
        second.step()
        first.step()
    expected = Walk(diffusers.DPMSolverMultistepScheduler(), 7, 1)
    for _ in range(4):
        expected.step()
    assert not torch.allclose(first.x, expected.x, rtol=1e-2, atol=1e-2)


def test_attributes_show_the_run_of_the_last_step() -> None:
    shared = ours.EulerDiscreteScheduler()
    first, second = Walk(shared, 7, 1), Walk(shared, 11, 2)
    assert (shared.num_inference_steps, len(shared.timesteps), len(shared.sigmas)) == (11, 11, 12)
    first.step()
    assert (shared.num_inference_steps, len(shared.timesteps), len(shared.sigmas)) == (7, 7, 8)
    assert shared.step_index == 1
    second.step()
    second.step()
    assert (shared.num_inference_steps, shared.step_index) == (11, 2)


def test_a_thread_without_a_run_sees_the_last_one() -> None:
    scheduler, seen = ours.DDIMScheduler(), []
    scheduler.set_timesteps(13)
    thread = threading.Thread(target=lambda: seen.append(scheduler.num_inference_steps))
    thread.start()
    thread.join()
    assert seen == [13]


def test_a_failed_set_timesteps_leaves_the_run() -> None:
    scheduler = ours.DDIMScheduler()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match="1001"):
        scheduler.set_timesteps(1001)
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 5


def test_runs_are_freed_with_their_timesteps() -> None:
    """No run outlives the last of its timesteps that somebody holds, without the cyclic collector's help."""
    scheduler = ours.DPMSolverMultistepScheduler()
    walk = Walk(scheduler, 7, 1)
    walk.step()
    run = weakref.ref(scheduler._runs.shown[0])
    gc.disable()
    try:
        scheduler.set_timesteps(3)
        assert run() is not None  # the walk holds timesteps, and goes on
        del walk
        assert run() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda scheduler: pickle.loads(pickle.dumps(scheduler))])
def test_copies(name: str, copied: Any) -> None:
    """A copy has the configuration and the run, and a life of its own."""
    scheduler = getattr(ours, name)()
    scheduler.set_timesteps(6)
    twin = copied(scheduler)
    assert twin.config == scheduler.config and torch.equal(twin.timesteps, scheduler.timesteps)
    scheduler.set_timesteps(4)
    assert torch.equal(Walk(twin, None, 3).finish(), alone(name, 6, 3))


@pytest.mark.parametrize("name", NAMES)
def test_values_in_place_of_the_timesteps(name: str) -> None:
    """Timesteps that are numbers, or tensors of their own, ask for the same rows."""
    expected = alone(name, 10, 4)
    for convert in (float, torch.Tensor.clone):
        walk = Walk(getattr(ours, name)(), 10, 4)
        walk.timesteps = [convert(t) for t in walk.timesteps]
        assert torch.equal(walk.finish(), expected)


def test_a_row_may_be_done_again() -> None:
    """Loops that go back, as those of resampling do, begin anew where they stand."""
    scheduler = ours.DDIMScheduler()
    walk = Walk(scheduler, 5, 1)
    walk.step()
    once = walk.x
    walk.done, walk.x = 0, normals(1)
    walk.step()
    assert torch.equal(walk.x, once)


def test_levels_that_a_user_changes_count() -> None:
    """Tables of rows are kept from run to run, but not those of other levels."""
    scheduler = ours.DDIMScheduler()
    before = Walk(scheduler, 5, 1).finish()
    scheduler.alphas_cumprod = scheduler.alphas_cumprod**1.5
    other = diffusers.DDIMScheduler()
    other.alphas_cumprod = other.alphas_cumprod**1.5
    after = Walk(scheduler, 5, 1).finish()
    assert not torch.equal(after, before)
    # Float32 on both sides.
    torch.testing.assert_close(after, Walk(other, 5, 1).finish(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_in_float64(name: str) -> None:
    """A network may answer in a higher precision than its input's; the state stays float32."""
    found = []
    for library in (ours, diffusers):
        scheduler = getattr(library, name)()
        scheduler.set_timesteps(4)
        t, x = scheduler.timesteps[0], normals(1)
        out = network(scheduler.scale_model_input(x, t), t).double()
        torch.manual_seed(1)
        found.append(scheduler.step(out, t, x).prev_sample)
    # Float32 against diffusers' float64.
    torch.testing.assert_close(found[0].double(), found[1].double(), rtol=1e-4, atol=1e-4)
