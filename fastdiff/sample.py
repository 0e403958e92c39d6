"""The sampling loop: network, step, network, step. It knows no sampler by name and never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff import guidance as guiding
from fastdiff import noise as noises
from fastdiff.errors import InputError, NonFiniteError
from fastdiff.guidance import Condition
from fastdiff.ops import dispatch
from fastdiff.plan import Plan
from fastdiff.schedules import Array

NoiseSource = Callable[[str, int, tuple[int, ...]], Tensor]
Callback = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def sample(
    model: Callable[..., Tensor],
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

    Returns:
        Samples of `shape`, float32 (float64 for dtype float64).

    Raises:
        InputError: shapes, conditions or names do not match.
        BackendError: the backend is not available.
        NonFiniteError: the start state, a model output or a state is not finite.
    """
    if len(shape) < 2 or min(shape) < 0:
        raise InputError(f"shape must be (batch, ...) with no negative size, got {tuple(shape)}")
    batch, place = int(shape[0]), _device(model, x_init, device)
    state_dtype = torch.promote_types(dtype, torch.float32)
    ops = dispatch.backend(backend, place, state_dtype)
    key = noises.key(seed, index, batch, place)
    w = guiding.scales(guidance, batch, place, state_dtype)
    _check_corrections(plan, w, guidance_rescale, dynamic_threshold)
    branches = 1 if w is None else 2
    condition = guiding.conditions(model, cond or {}, uncond, branches, batch)

    table, layout = _tensor(plan.table, place, state_dtype), plan.layout
    rows = torch.arange(len(plan), device=place)[:, None].expand(-1, batch).unbind()
    times = _tensor(plan.t, place, state_dtype)[:, None].expand(-1, branches * batch).unbind()
    x = torch.empty(tuple(shape), device=place, dtype=state_dtype)
    model_input = torch.empty((branches * batch, *shape[1:]), device=place, dtype=dtype)
    _start(x, model_input, plan, x_init, noise, ops, key)
    y = x.clone() if plan.has_anchor else None
    history = x.new_zeros((plan.history_slots, *x.shape)) if plan.history_slots else None
    x0 = torch.empty_like(x) if callback is not None else None
    first_bad = torch.full((batch,), 2 * len(plan), device=place) if check_finite else None

    for row in tqdm(range(len(plan)), desc="sample", unit="row", disable=None if progress else True):
        out = _apart(model(model_input, times[row], **condition), model_input)
        out, u, v = _split(out, x, plan, branches)
        rescale = ops.guidance_rescale(out, u, w, guidance_rescale) if guidance_rescale else None
        limit = None
        if dynamic_threshold is not None:
            limit = ops.threshold(x, out, table, layout, rows[row], u, w, rescale, dynamic_threshold)
        z = _given(noise, "step", row, x.shape).to(x) if noise is not None and plan.draws_noise else None
        ops.step_directly(
            *(x, out, table, layout, rows[row], u, w, key, model_input, first_bad),
            *(v, rescale, limit, y, history, z, x0),
        )
        del out, u, v, z  # or they would still take memory while the network makes the next ones
        if callback is not None and x0 is not None:
            callback(row, x, x0)

    if first_bad is not None:
        _raise_if_bad(first_bad, plan)
    return x


def _device(model: object, x_init: Tensor | None, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if x_init is not None:
        return x_init.device
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    return torch.device("cpu") if parameter is None else parameter.device


def _check_corrections(plan: Plan, w: Tensor | None, rescale: float, quantile: float | None) -> None:
    if not 0.0 <= rescale <= 1.0:
        raise InputError(f"guidance_rescale must be in 0..1, got {rescale}")
    if rescale and w is None:
        raise InputError("guidance_rescale corrects guidance: give a guidance other than 1")
    if quantile is not None and not 0.0 <= quantile <= 1.0:
        raise InputError(f"dynamic_threshold must be a quantile in 0..1, got {quantile}")
    if quantile is not None and "clip" not in plan.columns:
        raise InputError(
            "dynamic_threshold scales x0 back to the plan's clip: give the sampler clip=1.0 or another bound"
        )


def _tensor(array: Array, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array.copy()).to(device=device, dtype=dtype)


def _start(
    x: Tensor,
    model_input: Tensor,
    plan: Plan,
    x_init: Tensor | None,
    noise: NoiseSource | None,
    ops: dispatch.Backend,
    key: Tensor,
) -> None:
    """Write the start state and the first model input."""
    zero = torch.zeros_like(key[0])
    if x_init is not None:
        _check_start(x_init, x)
        x.copy_(x_init)
    elif noise is not None:
        x.copy_(_given(noise, "init", 0, x.shape))
    else:
        ops.normal_(x, key, zero, noises.stream_number("init"))
    scale = 1.0 if x_init is not None else plan.init_scale
    # The start is a step too: it scales the state and writes the first model input.
    start = Plan.build("start", [0.0], {"cx": scale, "scale_in": plan.column("scale_in")[0]})
    table = _tensor(start.table, x.device, x.dtype)
    ops.step(x, x, table, start.layout, zero, None, None, None, model_input)


def _check_start(x_init: Tensor, x: Tensor) -> None:
    if x_init.shape != x.shape:
        raise InputError(f"x_init must have the shape of the samples, {tuple(x.shape)}, got {tuple(x_init.shape)}")
    if not bool(x_init.isfinite().all()):
        raise NonFiniteError("x_init holds NaN or infinity")


def _given(noise: NoiseSource, stream: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    z = noise(stream, draw, shape)
    if tuple(z.shape) != shape:
        raise InputError(f"noise({stream!r}, {draw}, ...) must return shape {shape}, got {tuple(z.shape)}")
    return z.resolve_neg()


def _apart(out: Tensor, model_input: Tensor) -> Tensor:
    """Return a network's output so that the step, which writes `model_input`, does not overwrite what it must read."""
    if out.untyped_storage().data_ptr() != model_input.untyped_storage().data_ptr():
        return out
    element_for_element = out.data_ptr() == model_input.data_ptr() and out.stride() == model_input.stride()
    return out if element_for_element else out.clone()


def _split(out: Tensor, x: Tensor, plan: Plan, branches: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Check what the model returned; return its conditional and unconditional branch and the learned variance.

    The variance channels of the unconditional branch, and of a plan that does not use them, are dropped.
    """
    if out.dtype not in (torch.float32, torch.bfloat16, torch.float16, x.dtype):
        raise InputError(f"the model returned {out.dtype}; a state of {x.dtype} takes float32, bfloat16 or float16")
    if out.is_neg():
        out = out.resolve_neg()
    batch, expected = len(x), (branches * len(x), *x.shape[1:])
    doubled = (expected[0], 2 * expected[1], *expected[2:])
    variance = None
    if tuple(out.shape) == doubled:
        out, variance = out.chunk(2, dim=1)
    elif plan.learns_variance or tuple(out.shape) != expected:
        wanted = doubled if plan.learns_variance else expected
        raise InputError(f"the model returned shape {tuple(out.shape)}, this plan needs {wanted}")
    used = variance[:batch] if variance is not None and plan.learns_variance else None
    return out[:batch], out[batch:] if branches == 2 else None, used


def _raise_if_bad(first_bad: Tensor, plan: Plan) -> None:
    code, sample = (int(value) for value in first_bad.min(dim=0)) if len(first_bad) else (2 * len(plan), 0)
    if code < 2 * len(plan):
        row, where = code // 2, "the state after" if code % 2 else "the model output at"
        raise NonFiniteError(
            f"NaN or infinity in {where} row {row} of {len(plan)} (t = {plan.t[row]:g}), sample {sample} of the batch"
        )
