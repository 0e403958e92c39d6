"""The loop on a device: it waits for nothing, takes no memory, launches one kernel a row, and has the CPU's bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.guidance import APG, CFGZero
from fastdiff.loop import Inputs, Loop, Setup
from fastdiff.ops import dispatch

pytestmark = pytest.mark.gpu

SCHEDULE = fd.schedules.linear(100)
SHAPE = (3, 4, 8, 8)
ROWS = 6
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=["triton", "cuda"])
def backend(request):
    """Each backend of kernels that this machine has."""
    reason = dispatch.missing()[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


def steps(**options: Any) -> fd.Plan:
    return fd.samplers.ddim(SCHEDULE, **{"steps": ROWS, "eta": 1.0, **options})


def anchored() -> fd.Plan:
    columns = {"cx": 0.5, "cy": 0.1, "po": 0.3, "ch0": 0.5, "ch1": 0.25, "dx": 0.5, "dz": 0.1}
    slots = [0, 1, 0, 1, -1, 0]
    return fd.Plan.build("anchored", range(ROWS), {**columns, "slot": slots})


PLANS = {
    "eta 0": steps(eta=0.0),
    "noise": steps(),
    "no clip": steps(clip=None),
    "history, anchor": anchored(),
    "variance": fd.samplers.ddpm(SCHEDULE, steps=ROWS, variance="learned_range"),
}
each_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def prepared(
    backend: str, plan: fd.Plan, dtype: torch.dtype, branches: int, **corrections: Any
) -> tuple[Loop, Callable[..., Tensor]]:
    """A loop before its start, and a model that launches nothing and allocates nothing."""
    place = torch.device("cuda", torch.cuda.current_device())
    setup = Setup(plan, SHAPE, place, dtype, backend, branches, **corrections)
    w = torch.full((ROWS, SHAPE[0]), 2.0, device=place) if branches == 2 else None
    channels = SHAPE[1] * (2 if plan.learns_variance else 1)
    out = torch.randn(branches * SHAPE[0], channels, *SHAPE[2:], device=place).to(dtype)
    return Loop(setup, Inputs(fd.noise.key(1, None, SHAPE[0], place), w, {})), lambda x, t: out[: len(x)]


def run(loop: Loop, model: Callable[..., Tensor]) -> None:
    for row in range(ROWS):
        loop.row(row, model)


@contextmanager
def nothing_waits() -> Iterator[None]:
    """torch raises where it waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_plan
@pytest.mark.parametrize(("dtype", "branches"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_waits_for_nothing_and_takes_no_memory(backend, plan, dtype, branches):
    """Start and rows, once the kernels are compiled."""
    loop, model = prepared(backend, plan, dtype, branches)
    loop.start()
    run(loop, model)
    with nothing_waits():
        loop.start()
        before = torch.cuda.memory_stats()["allocation.all.allocated"]
        run(loop, model)
        after = torch.cuda.memory_stats()["allocation.all.allocated"]
    assert after == before


@pytest.mark.parametrize(
    "corrections",
    [
        {"guidance_rescale": 0.7},
        {"dynamic_threshold": 0.9},
        {"rule": APG(1.0, norm=1.0, momentum=-0.5)},
        {"rule": CFGZero(1.0)},
        {"alone": frozenset({0, 3})},
    ],
    ids=["rescale", "threshold", "APG", "CFG-Zero*", "interval"],
)
def test_corrections_wait_for_nothing(backend, corrections):
    """They take memory for a few numbers of each sample, and give it back."""
    loop, model = prepared(backend, PLANS["noise"], torch.bfloat16, 2, **corrections)
    loop.start()
    run(loop, model)
    with nothing_waits():
        loop.start()
        before = torch.cuda.memory_allocated()
        run(loop, model)
        after = torch.cuda.memory_allocated()
    assert after == before


def test_a_loop_that_waits_is_seen(backend):
    """The check above can fail."""
    loop, _ = prepared(backend, PLANS["noise"], torch.float32, 1)
    loop.start()
    with nothing_waits(), pytest.raises(RuntimeError, match="synchronizing"):
        loop.row(0, lambda x, t: x * t[0].item())


def kernels(work: Callable[[], None]) -> list[str]:
    """Names of what runs on the device."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        torch.cuda.synchronize()
    on_device = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    return [name for name in on_device if not name.startswith("Activity Buffer")]  # the profiler's own


@each_plan
@pytest.mark.parametrize(("dtype", "branches"), [(torch.float32, 1), (torch.bfloat16, 2)])
def test_one_kernel_a_row(backend, plan, dtype, branches):
    """Nothing else runs on the device where the model does nothing."""
    x = torch.zeros(8, device="cuda")
    if not kernels(lambda: x.fill_(1.0)):
        pytest.skip("torch's profiler sees no kernels on this machine")
    loop, model = prepared(backend, plan, dtype, branches)
    loop.start()
    run(loop, model)
    names = kernels(lambda: run(loop, model))
    assert len(names) == ROWS and len(set(names)) == 1, names


def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Each op rounds once, on every device to the same bits."""
    return x * torch.where(t > 40, y, -0.5 * y).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def with_variance(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    out = model(x, t, y)
    return torch.cat([out, -out], dim=1)


@each_plan
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [SHAPE, (5, 3, 5, 7), (2, 1)], ids=str)
def test_has_the_bits_of_the_cpu(backend, plan, dtype, shape):
    """A whole loop, guided, from the first noise to the last state."""
    network = with_variance if plan.learns_variance else model
    batch = shape[0]
    y = torch.linspace(0.3, 0.9, batch)
    options = {"seed": range(7, 7 + batch), "dtype": dtype, "guidance": torch.linspace(0.0, 3.0, batch)}
    on_gpu, on_cpu = (
        fd.sample(
            *(network, plan, shape),
            **options,
            cond={"y": y.to(device)},
            uncond={"y": y.flip(0).to(device)},
            device=device,
            backend=name,
        )
        for device, name in (("cuda", backend), ("cpu", "auto"))
    )
    assert torch.equal(on_gpu.cpu(), on_cpu)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_model_that_returns_its_input(backend, dtype):
    """Guided, each element of both branches is read before the next input is written in its place."""
    y = torch.zeros(SHAPE[0])

    def draw(model: Callable[..., Tensor], device: str, name: str) -> Tensor:
        branches = {"cond": {"y": y.to(device)}, "uncond": {"y": y.to(device)}, "guidance": 3.0}
        return fd.sample(model, PLANS["noise"], SHAPE, **branches, dtype=dtype, device=device, backend=name).cpu()

    found = draw(lambda x, t, y: x, "cuda", backend)
    assert torch.equal(found, draw(lambda x, t, y: x.clone(), "cuda", backend))
    assert torch.equal(found, draw(lambda x, t, y: x.clone(), "cpu", "auto"))


def test_names_what_is_not_finite(backend):
    """By row and sample, read once at the end."""

    def breaking(x: Tensor, t: Tensor) -> Tensor:
        return (
            torch.where((t < 50) & (torch.arange(len(x), device=x.device) == 2), torch.inf, 1.0).view(-1, 1, 1, 1) * x
        )

    with pytest.raises(fd.NonFiniteError, match=r"the model output at row 2 of 6 \(t = 48\), sample 2 of the batch"):
        fd.sample(breaking, PLANS["noise"], SHAPE, device="cuda", backend=backend)


def test_a_model_on_another_device(backend):
    """Both sides are named."""
    with pytest.raises(fd.InputError, match="the model returned a tensor on cpu, and the state is on cuda:0"):
        fd.sample(lambda x, t: x.cpu(), PLANS["noise"], SHAPE, device="cuda", backend=backend)
