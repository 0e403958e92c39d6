"""The sampling loop: network, step, network, step. It knows no sampler by name and never waits for the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastdiff import noise as noises
from fastdiff.errors import InputError, NonFiniteError
from fastdiff.ops import dispatch
from fastdiff.ops.reference import NoiseKey
from fastdiff.plan import Plan

Condition = Mapping[str, Any]
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
    step = dispatch.backend(backend, place).step
    state_dtype = torch.promote_types(dtype, torch.float32)
    key = NoiseKey(noises.seeds(seed, batch, place), noises.samples(index, batch, place))

    x = _start(tuple(shape), x_init, noise, key, backend).to(device=place, dtype=state_dtype)
    if x_init is None:
        x *= plan.init_scale
    w = _guidance(guidance, batch, x)
    branches = 1 if w is None else 2
    condition = _conditions(model, cond or {}, uncond, branches, batch)

    table = torch.from_numpy(plan.table.copy()).to(device=place, dtype=state_dtype)
    times = torch.from_numpy(plan.t.copy()).to(device=place, dtype=state_dtype)
    rows = torch.arange(len(plan), device=place)
    model_input = torch.empty((branches, *x.shape), device=place, dtype=dtype)
    model_input.copy_(x * float(plan.column("scale_in")[0]))
    y = x.clone() if plan.has_anchor else None
    history = x.new_zeros((plan.history_slots, *x.shape)) if plan.history_slots else None
    x0 = torch.empty_like(x) if callback is not None else None
    first_bad = torch.full((batch,), 2 * len(plan), device=place) if check_finite else None

    for row in tqdm(range(len(plan)), desc="sample", unit="row", disable=None if progress else True):
        out = model(model_input.flatten(0, 1), times[row].expand(branches * batch), **condition)
        out, variance = _split_variance(out, x, branches, plan)
        outs = out.view(branches, *x.shape)
        step(
            x,
            outs[0],
            table,
            plan.columns,
            rows[row].expand(batch),
            uncond=outs[1] if branches == 2 else None,
            w=w,
            variance=variance,
            y=y,
            history=history,
            stores=plan.stores,
            key=key,
            z=_given(noise, "step", row, tuple(shape)).to(x) if noise is not None and plan.draws_noise else None,
            model_input=model_input[0],
            x0_out=x0,
            first_bad=first_bad,
        )
        if branches == 2:
            model_input[1].copy_(model_input[0])
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


def _start(
    shape: tuple[int, ...],
    x_init: Tensor | None,
    noise: NoiseSource | None,
    key: NoiseKey,
    backend: str,
) -> Tensor:
    """Return the start state, or the noise that is scaled to one; it is the caller's to overwrite."""
    if x_init is not None:
        if tuple(x_init.shape) != shape:
            raise InputError(f"x_init must have the shape of the samples, {shape}, got {tuple(x_init.shape)}")
        if not bool(x_init.isfinite().all()):
            raise NonFiniteError("x_init holds NaN or infinity")
        return x_init.clone(memory_format=torch.contiguous_format)
    if noise is not None:
        return _given(noise, "init", 0, shape).clone()
    return noises.normal(shape, *key, device=key.seed.device, backend=backend)


def _given(noise: NoiseSource, stream: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    z = noise(stream, draw, shape)
    if tuple(z.shape) != shape:
        raise InputError(f"noise({stream!r}, {draw}, ...) must return shape {shape}, got {tuple(z.shape)}")
    return z


def _guidance(guidance: float | Tensor, batch: int, x: Tensor) -> Tensor | None:
    """Return w for each sample [B], or None where the unconditional branch is not needed."""
    if not isinstance(guidance, Tensor):
        return None if guidance == 1.0 else x.new_full((batch,), guidance)
    if guidance.shape not in ((), (batch,)):
        raise InputError(f"guidance must be a number or have shape ({batch},), got {tuple(guidance.shape)}")
    return guidance.to(x).expand(batch)


def _conditions(model: object, cond: Condition, uncond: Condition | None, branches: int, batch: int) -> dict[str, Any]:
    """Return the model's keyword arguments, with the unconditional branch behind the conditional one."""
    for name, value in {**cond, **(uncond or {})}.items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != batch):
            raise InputError(f"condition {name!r} must have the batch of {batch} first, got shape {tuple(value.shape)}")
    if branches == 1:
        return dict(cond)
    if uncond is None:
        if not hasattr(model, "unconditional"):
            raise InputError("guidance needs `uncond`, or a model with a method `unconditional(cond)`")
        uncond = model.unconditional(cond)
    if set(cond) != set(uncond):
        raise InputError(f"cond and uncond must have the same names, got {sorted(cond)} and {sorted(uncond)}")
    return {name: _join(name, value, uncond[name]) for name, value in cond.items()}


def _join(name: str, value: Any, other: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != other.shape:
        raise InputError(f"condition {name!r} differs in shape: {tuple(value.shape)} and {tuple(other.shape)}")
    return torch.cat([value, other])


def _split_variance(out: Tensor, x: Tensor, branches: int, plan: Plan) -> tuple[Tensor, Tensor | None]:
    """Check the model's output and split off the learned variance of the conditional branch, if there is one."""
    expected = (branches * len(x), *x.shape[1:])
    if tuple(out.shape) == expected and not plan.learns_variance:
        return out, None
    doubled = (expected[0], 2 * expected[1], *expected[2:])
    if tuple(out.shape) != doubled:
        wanted = doubled if plan.learns_variance else expected
        raise InputError(f"the model returned shape {tuple(out.shape)}, this plan needs {wanted}")
    out, variance = out.chunk(2, dim=1)
    return out, variance[: len(x)].to(x.dtype) if plan.learns_variance else None


def _raise_if_bad(first_bad: Tensor, plan: Plan) -> None:
    code, sample = (int(value) for value in first_bad.min(dim=0)) if len(first_bad) else (2 * len(plan), 0)
    if code < 2 * len(plan):
        row, where = code // 2, "the state after" if code % 2 else "the model output at"
        raise NonFiniteError(
            f"NaN or infinity in {where} row {row} of {len(plan)} (t = {plan.t[row]:g}), sample {sample} of the batch"
        )
