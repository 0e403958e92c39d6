"""Sampling: network, step, network, step. It knows no sampler by name and never waits for the device between rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff import graph as graphs
from fastdiff import guidance as guiding
from fastdiff import noise as noises
from fastdiff.errors import BackendError, InputError, NonFiniteError, lookup
from fastdiff.guidance import Condition
from fastdiff.loop import Inputs, Loop, Model, NoiseSource, Setup, given, raise_if_bad
from fastdiff.ops import dispatch, schema
from fastdiff.plan import Plan

Callback = Callable[[int, Tensor, Tensor], None]

_NORMALS = {"exact": "the bits of docs/noise.md", "fast": "the hardware's log, sine and cosine"}


@torch.no_grad()
def sample(
    model: Model,
    plan: Plan,
    shape: Sequence[int],
    *,
    seed: int | Sequence[int] | Tensor = 0,
    index: int | Sequence[int] | Tensor | None = None,
    cond: Condition | None = None,
    uncond: Condition | None = None,
    guidance: float | Tensor = 1.0,
    guidance_rescale: float = 0.0,
    dynamic_threshold: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    x_init: Tensor | None = None,
    noise: NoiseSource | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    check_finite: bool = True,
    normals: str = "exact",
    graph: bool = False,
) -> Tensor:
    """Run a plan from noise (or from `x_init`) to data.

    Args:
        model: `model(x, t, **cond) -> out`; x [B, ...] in `dtype`, t [B] from the plan in the dtype of the state, out
            of the shape of x (twice the channels where the network learns its variance).
        plan: the sampler's table.
        shape: (B, ...) of the samples.
        seed: one seed for all samples or one each, 0..2^64-1.
        index: global index of each sample; None is 0..B-1. A sample depends on its own seed and index alone.
        cond: keyword arguments of the model; tensors have the batch first.
        uncond: the same for the unconditional branch; None asks the model for `model.unconditional(cond)`.
        guidance: w of `u + w (c - u)` (Ho & Salimans 2022: w = 1 + omega), a number or [B]. The number 1 evaluates
            the conditional branch alone.
        guidance_rescale: phi in 0..1, how far the guided output is scaled to the standard deviation of the conditional
            one (Lin et al. 2024, eq. 15 and 16); it needs guidance. 0 leaves it alone.
        dynamic_threshold: quantile in 0..1 of a sample's |x0|; where it exceeds the plan's clip, x0 is cut there and
            scaled back to the clip (Saharia et al. 2022, sec. 2.3). It needs a plan that clips. None only clips.
        device: None is that of x_init, or of the model's parameters, or the CPU.
        dtype: what the model reads. The state is float32, or float64 if this is float64.
        backend: "auto" or a backend's name; see `fastdiff.info`.
        x_init: start state [B, ...] instead of noise.
        noise: callable (stream, draw, shape) -> z that replaces the built-in noise; stream is "init" or "step" and
            draw is the row.
        progress: show a bar with rows per second where the output is a terminal.
        callback: called after each row with (row, x, x0); clone what you keep.
        check_finite: raise where NaN or infinity appeared, naming the row. Checked on the device, read once at the end.
        normals: "exact", or "fast" on the backends triton and cuda: the noise of the steps (not the first state) by the
            hardware's log, sine and cosine. It is as good, and not the same bits as anywhere else.
        graph: capture the whole loop as one CUDA graph, and from then on replay it; see `fastdiff.graph`.

    Returns:
        Samples of `shape`, float32 (float64 for dtype float64).

    Raises:
        InputError: shapes, conditions or names do not match, or the model cannot be captured.
        BackendError: the backend is not available, or has no fast normals or no graphs.
        NonFiniteError: the start state, a model output or a state is not finite.
    """
    if len(shape) < 2 or min(shape) < 0:
        raise InputError(f"shape must be (batch, ...) with no negative size, got {tuple(shape)}")
    place = _numbered(_device(model, x_init, device))
    batch, state_dtype = int(shape[0]), torch.promote_types(dtype, torch.float32)
    key = noises.key(seed, index, batch, place)
    w = guiding.scales(guidance, batch, place, state_dtype)
    branches = 1 if w is None else 2
    setup = Setup(
        *(plan, tuple(shape), place, dtype, dispatch.resolve(backend, place, state_dtype), branches),
        *(guidance_rescale, dynamic_threshold, check_finite, normals),
    )
    _check(setup)
    condition = guiding.conditions(model, cond or {}, uncond, branches, batch)
    if x_init is not None:
        _check_start(x_init, setup.shape)
    inputs = Inputs(key, w, condition, x_init)
    if graph:
        _check_unobserved(noise, progress, callback)
        x, first_bad = graphs.run(model, setup, inputs)
    else:
        loop = Loop(setup, inputs, keeps_x0=callback is not None)
        _run(loop, model, noise, progress, callback)
        x, first_bad = loop.x, loop.first_bad
    if first_bad is not None:
        raise_if_bad(first_bad, plan)
    return x


def _run(loop: Loop, model: Model, noise: NoiseSource | None, progress: bool, callback: Callback | None) -> None:
    plan = loop.setup.plan
    loop.start(noise)
    for row in tqdm(range(len(plan)), desc="sample", unit="row", disable=None if progress else True):
        z = given(noise, "step", row, loop.x.shape).to(loop.x) if noise is not None and plan.draws_noise else None
        loop.row(row, model, z)
        del z  # or it would still take memory while the network makes the next output
        if callback is not None and loop.x0 is not None:
            callback(row, loop.x, loop.x0)


def _device(model: object, x_init: Tensor | None, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if x_init is not None:
        return x_init.device
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _numbered(device: torch.device) -> torch.device:
    """Return a device with its number, which a name may leave out and a tensor knows."""
    try:
        return torch.empty(0, device=device).device
    except (AssertionError, RuntimeError) as error:
        raise BackendError(f"device {device} cannot be used: {str(error).splitlines()[0]}") from None


def _check(setup: Setup) -> None:
    rescale, quantile = setup.guidance_rescale, setup.dynamic_threshold
    if not 0.0 <= rescale <= 1.0:
        raise InputError(f"guidance_rescale must be in 0..1, got {rescale}")
    if rescale and setup.branches == 1:
        raise InputError("guidance_rescale corrects guidance: give a guidance other than 1")
    if quantile is not None and not 0.0 <= quantile <= 1.0:
        raise InputError(f"dynamic_threshold must be a quantile in 0..1, got {quantile}")
    if quantile is not None and "clip" not in setup.plan.columns:
        raise InputError(
            "dynamic_threshold scales x0 back to the plan's clip: give the sampler clip=1.0 or another bound"
        )
    lookup("normals", setup.normals, _NORMALS)
    if setup.normals == "fast" and setup.backend not in schema.GPU_BACKENDS:
        there = " and ".join(schema.GPU_BACKENDS)
        raise BackendError(f"backend {setup.backend!r} has no fast normals, {there} have: use normals='exact'")


def _check_start(x_init: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x_init.shape) != shape:
        raise InputError(f"x_init must have the shape of the samples, {shape}, got {tuple(x_init.shape)}")
    if not bool(x_init.isfinite().all()):
        raise NonFiniteError("x_init holds NaN or infinity")


def _check_unobserved(noise: NoiseSource | None, progress: bool, callback: Callback | None) -> None:
    for name, used in (("callback", callback is not None), ("noise", noise is not None), ("progress", progress)):
        if used:
            raise InputError(f"graph=True replays the whole loop at once, with no row to stop at: leave {name} out")
