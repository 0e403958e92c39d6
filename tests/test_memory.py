"""What the loop allocates, read from torch's allocator: its kernels', its own, and the network's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.guidance import APG
from tests.backends import needs_extension

pytestmark = needs_extension  # the claims are about kernels: plain torch makes temporaries

SCHEDULE = fd.schedules.linear(100)
SHAPE = (2, 3, 64, 64)
IMAGE = 4 * 2 * 3 * 64 * 64  # bytes of a float32 batch
STEPS = 4


def allocations(run: Callable[[], object]) -> list[float]:
    """Run; return what was allocated (and freed, negative) in order, in float32 batches of images."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return [event.nbytes() / IMAGE for event in sorted(events, key=lambda event: event.start_ns())]


def multistep() -> fd.Plan:
    columns = {"cx": 0.5, "po": 1.0, "ch0": [0.0, 0.5, 0.5, 0.5], "ch1": [0.0, 0.0, 0.2, 0.2], "slot": [0, 1, 0, 1]}
    return fd.Plan.build("multistep", [3.0, 2.0, 1.0, 0.0], columns)


def anchored() -> fd.Plan:
    return fd.Plan.build("anchored", [3.0, 2.0, 1.0, 0.0], {"cy": 0.5, "po": 1.0, "c0": 0.5, "dx": 0.5, "cz": 0.1})


def ddim(**options: Any) -> fd.Plan:
    return fd.samplers.ddim(SCHEDULE, steps=STEPS, **options)


CFG = {"guidance": 2.0, "uncond": {}}


@pytest.mark.parametrize(
    ("plan", "options", "kept", "out"),
    [
        (ddim(), {}, [1, 1], 1),  # x and the next input
        (ddim(eta=1.0), {}, [1, 1], 1),  # noise is drawn in registers
        (ddim(eta=1.0), CFG, [1, 2], 2),  # the input and the output of both branches
        (ddim(eta=1.0), {**CFG, "dtype": torch.bfloat16}, [1, 1], 1),
        (ddim(), {**CFG, "guidance_rescale": 0.7}, [1, 2], 2),
        (ddim(eta=1.0), {**CFG, "guidance": APG(2.0, norm=1.0)}, [1, 2], 2),
        (ddim(eta=1.0), {**CFG, "guidance": APG(2.0, momentum=-0.5)}, [1, 2, 1], 2),  # the running mean
        (ddim(), {"dynamic_threshold": 0.9}, [1, 1], 1),
        (ddim(), {"callback": lambda row, x, x0: None}, [1, 1, 1], 1),  # x0 for the callback
        (multistep(), {}, [1, 1, 2], 1),  # two slots of history
        (multistep(), CFG, [1, 2, 2], 2),
        (anchored(), {}, [1, 1, 1], 1),
        (fd.samplers.ddpm(SCHEDULE, steps=STEPS, variance="learned_range"), {}, [1, 1], 2),
    ],
    ids=[
        "eta 0",
        "noise",
        "guidance",
        "bf16",
        "rescale",
        "APG",
        "momentum",
        "threshold",
        "callback",
        "history",
        "history, guidance",
        "anchor",
        "variance",
    ],
)
def test_the_loop_allocates_its_buffers_and_no_more(
    plan: fd.Plan, options: dict[str, Any], kept: list[float], out: float
) -> None:
    """The state, the next input, anchor and history once; then nothing of image size but the network's output.

    One output is freed before the network makes the next, so the peak is the buffers and one output of the network.
    """

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x.new_empty(len(x), (2 if plan.learns_variance else 1) * x.shape[1], *x.shape[2:]).uniform_()

    changes = allocations(lambda: fd.sample(network, plan, SHAPE, **options))
    # Tables, times and what there is one of per sample are some hundred bytes here, of 98,304 an image.
    large = [change for change in changes if abs(change) > 0.02]
    assert large[: len(kept)] == kept
    assert large[len(kept) : -len(kept)] == [out, -out] * STEPS
    assert sorted(large[-len(kept) :]) == sorted(-size for size in kept)
    held = peak = 0.0
    for change in changes:
        held += change
        peak = max(peak, held)
    assert peak < sum(kept) + out + 0.02


def test_known_data_are_read_where_they_are() -> None:
    """Checking them makes temporaries; the rows, and what outlives the run, are as without them."""
    data = torch.zeros(SHAPE)
    options = {"x0_init": data, "known": data, "mask": data}
    changes = allocations(lambda: fd.sample(lambda x, t: x.new_empty(x.shape).uniform_(), ddim(), SHAPE, **options))
    large = [change for change in changes if abs(change) > 0.02]
    rows, kept = [1, -1] * STEPS, [1, 1]
    assert large[-len(rows) - 2 :] == [*rows, -1, -1]
    assert large[-len(rows) - 4 : -len(rows) - 2] == kept
