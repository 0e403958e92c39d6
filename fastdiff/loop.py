"""The sampling loop in parts: `Loop(...)` prepares on the host, `start` and `row` only launch work on the device.

Between two rows nothing waits for the device and, network apart, nothing is allocated: a step reads its row, seeds and
guidance scales from memory that was there before the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.errors import InputError, NonFiniteError
from fastdiff.ops import dispatch
from fastdiff.plan import FAST_NORMALS, Plan
from fastdiff.schedules import Array

Model = Callable[..., Tensor]
NoiseSource = Callable[[str, int, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Setup:
    """What shapes a loop and is no tensor: loops of equal setups launch the same steps.

    Attributes:
        plan: the sampler's table.
        shape: (B, ...) of the samples.
        device: where the loop runs, with its number.
        dtype: what the model reads.
        backend: a backend's name, not "auto".
        branches: 2 with guidance, else 1.
        guidance_rescale, dynamic_threshold, check_finite: as `fastdiff.sample` has them.
        normals: "exact" or "fast".
    """

    plan: Plan
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    backend: str
    branches: int = 1
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None
    check_finite: bool = True
    normals: str = "exact"

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of the state: float32, or float64 for a model that reads float64."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def layout(self) -> int:
        """The plan's layout, and whether its noise is the fast one."""
        fast = self.normals == "fast" and self.plan.draws_noise
        return self.plan.layout | (FAST_NORMALS if fast else 0)


@dataclass(frozen=True)
class Inputs:
    """The tensors that a loop reads and that may differ from run to run.

    Attributes:
        key: whose noise to draw, int64 [2, B].
        w: guidance scales [B], or None without guidance.
        condition: the model's keyword arguments, tensors with all branches.
        x_init: the start state, or None for noise.
    """

    key: Tensor
    w: Tensor | None
    condition: dict[str, Any]
    x_init: Tensor | None


class Loop:
    """One run of a plan: its buffers, and the work of its rows.

    `start` and `row` depend on nothing that the host holds but the number of the row, so that they can be recorded once
    and done again for other values in `inputs`.
    """

    def __init__(self, setup: Setup, inputs: Inputs, keeps_x0: bool = False) -> None:
        plan, (batch, *sample), place, dtype = setup.plan, setup.shape, setup.device, setup.state_dtype
        branches = setup.branches * batch
        self.setup, self.inputs, self.layout = setup, inputs, setup.layout
        self.ops = dispatch.backend(setup.backend, place, dtype)
        self.table = _tensor(plan.table, place, dtype)
        self.rows = _for_each_sample(torch.arange(len(plan), device=place), batch)
        self.times = _for_each_sample(_tensor(plan.t, place, dtype), branches)
        # The start is a step too: it scales the state and writes the first model input.
        scale = plan.init_scale if inputs.x_init is None else 1.0
        start = Plan.build("start", [0.0], {"cx": scale, "scale_in": plan.column("scale_in")[0]})
        self.start_table, self.start_layout = _tensor(start.table, place, dtype), start.layout
        self.first_row = torch.zeros_like(inputs.key[0])

        self.x = torch.empty(setup.shape, device=place, dtype=dtype)
        self.model_input = torch.empty((branches, *sample), device=place, dtype=setup.dtype)
        self.y = torch.empty_like(self.x) if plan.has_anchor else None
        self.history = self.x.new_empty((plan.history_slots, *setup.shape)) if plan.history_slots else None
        self.x0 = torch.empty_like(self.x) if keeps_x0 else None
        self.first_bad = torch.empty_like(self.first_row) if setup.check_finite else None

    def memory(self) -> list[Tensor]:
        """The tensors that the work of the rows reads and writes."""
        held = (*vars(self).values(), *vars(self.inputs).values(), *self.inputs.condition.values())
        return [*(value for value in held if isinstance(value, Tensor)), self.rows[0], self.times[0]]

    def start(self, noise: NoiseSource | None = None) -> None:
        """Write the start state and the first model input, and reset what rows add to."""
        x, key = self.x, self.inputs.key
        if self.inputs.x_init is not None:
            x.copy_(self.inputs.x_init)
        elif noise is not None:
            x.copy_(given(noise, "init", 0, x.shape))
        else:
            self.ops.normal_(x, key, self.first_row, noises.stream_number("init"))
        nothing = None, None, None  # no unconditional branch, no guidance, no noise
        self.ops.step(x, x, self.start_table, self.start_layout, self.first_row, *nothing, self.model_input)
        if self.y is not None:
            self.y.copy_(x)
        if self.history is not None:
            self.history.zero_()
        if self.first_bad is not None:
            self.first_bad.fill_(2 * len(self.setup.plan))

    def row(self, row: int, model: Model, z: Tensor | None = None) -> None:
        """Ask the model and do the step of a row; z replaces its noise."""
        setup, table, layout, w = self.setup, self.table, self.layout, self.inputs.w
        out = model(self.model_input, self.times[row], **self.inputs.condition)
        out, u, v = split(apart(out, self.model_input), self.x, setup.plan, setup.branches)
        rescale = limit = None
        if setup.guidance_rescale:
            rescale = self.ops.guidance_rescale(out, u, w, setup.guidance_rescale)
        if setup.dynamic_threshold is not None:
            quantile = setup.dynamic_threshold
            limit = self.ops.threshold(self.x, out, table, layout, self.rows[row], u, w, rescale, None, quantile)
        self.ops.step_directly(
            *(self.x, out, table, layout, self.rows[row], u, w, self.inputs.key, self.model_input, self.first_bad),
            *(v, rescale, limit, self.y, self.history, z, self.x0),
        )


def raise_if_bad(first_bad: Tensor, plan: Plan) -> None:
    """Read what the steps noted, which waits for them. Raises NonFiniteError with the row, time and sample."""
    codes = first_bad.tolist()
    code = min(codes, default=2 * len(plan))
    if code < 2 * len(plan):
        row, where = code // 2, "the state after" if code % 2 else "the model output at"
        raise NonFiniteError(
            f"NaN or infinity in {where} row {row} of {len(plan)} (t = {plan.t[row]:g}), "
            f"sample {codes.index(code)} of the batch"
        )


def given(noise: NoiseSource, stream: str, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Return the noise of a callable. Raises InputError if it has another shape."""
    z = noise(stream, draw, shape)
    if tuple(z.shape) != shape:
        raise InputError(f"noise({stream!r}, {draw}, ...) must return shape {shape}, got {tuple(z.shape)}")
    return z.resolve_neg()


def apart(out: Tensor, model_input: Tensor) -> Tensor:
    """Return a network's output so that the step, which writes `model_input`, does not overwrite what it must read."""
    if out.untyped_storage().data_ptr() != model_input.untyped_storage().data_ptr():
        return out
    element_for_element = out.data_ptr() == model_input.data_ptr() and out.stride() == model_input.stride()
    return out if element_for_element else out.clone()


def split(out: Tensor, x: Tensor, plan: Plan, branches: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Check what the model returned; return its conditional and unconditional branch and the learned variance.

    The variance channels of the unconditional branch, and of a plan that does not use them, are dropped.
    """
    if out.device != x.device:
        raise InputError(f"the model returned a tensor on {out.device}, and the state is on {x.device}")
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
    variance = variance if plan.learns_variance else None
    if branches == 1:
        return out, None, variance
    return out[:batch], out[batch:], None if variance is None else variance[:batch]


def _tensor(array: Array, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array.copy()).to(device=device, dtype=dtype)


def _for_each_sample(values: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Return each row's value as one per sample [batch].

    All begin at a multiple of 16 bytes, so that every row looks alike to a kernel that is compiled for its arguments.
    """
    unit = 16 // values.element_size()
    padded = (batch + unit - 1) // unit * unit
    return values[:, None].repeat(1, padded)[:, :batch].unbind()
