"""The sampling loop in parts: `Loop(...)` prepares on the host, `start` and `row` only launch work on the device.

Between two rows nothing waits for the device and, network apart, nothing of the samples' size is allocated: a step
reads its row, seeds and guidance scales from memory that was there before the first one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastdiff import conditioning
from fastdiff import noise as noises
from fastdiff.conditioning import Images
from fastdiff.errors import BackendError, InputError, NonFiniteError, lookup
from fastdiff.guidance.branches import Model, part
from fastdiff.guidance.networks import both_branches
from fastdiff.guidance.rules import CFG, UNGUIDED
from fastdiff.ops import dispatch, schema
from fastdiff.plan import FAST_NORMALS, Plan
from fastdiff.schedules import Array

NoiseSource = Callable[[str, int, tuple[int, ...]], Tensor]

_NORMALS = {"exact": "the bits of docs/noise.md", "fast": "the hardware's log, sine and cosine"}


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
        rule: how the branches are combined, without the scale.
        alone: the rows that evaluate one branch alone.
        guidance_rescale, dynamic_threshold, check_finite: as `fastdiff.sample` has them.
        normals: "exact" or "fast".

    Raises:
        InputError: a correction is out of range or has nothing to correct, or normals has an unknown name.
        BackendError: the backend has no fast normals.
    """

    plan: Plan
    shape: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype
    backend: str
    branches: int = 1
    rule: CFG = UNGUIDED
    alone: frozenset[int] = frozenset()
    guidance_rescale: float = 0.0
    dynamic_threshold: float | None = None
    check_finite: bool = True
    normals: str = "exact"

    def __post_init__(self) -> None:
        phi, quantile = self.guidance_rescale, self.dynamic_threshold
        if not 0.0 <= phi <= 1.0:
            raise InputError(f"guidance_rescale must be in 0..1, got {phi}")
        if phi and (self.branches == 1 or type(self.rule) is not CFG):
            raise InputError("guidance_rescale corrects a plain w or CFG: give a guidance other than 1 in some row")
        if quantile is not None and not 0.0 <= quantile <= 1.0:
            raise InputError(f"dynamic_threshold must be a quantile in 0..1, got {quantile}")
        if quantile is not None and "clip" not in self.plan.columns:
            raise InputError(
                "dynamic_threshold scales x0 back to the plan's clip: give the sampler clip=1.0 or another bound"
            )
        lookup("normals", self.normals, _NORMALS)
        if self.normals == "fast" and self.backend not in schema.GPU_BACKENDS:
            there = " and ".join(schema.GPU_BACKENDS)
            raise BackendError(f"backend {self.backend!r} has no fast normals, {there} have: use normals='exact'")

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
        w: guidance scales [rows, B], or None without guidance.
        condition: the model's keyword arguments, tensors with all branches.
        images: start state and data, as `conditioning.checked` returns them.
    """

    key: Tensor
    w: Tensor | None
    condition: dict[str, Any]
    images: Images = field(default_factory=Images)

    def buffers(self, setup: Setup) -> Inputs:
        """Return memory for inputs of this kind: x_init, as the other images, where the state is and in its dtype."""
        key, condition = _dense_like(self.key), {name: _dense_like(value) for name, value in self.condition.items()}
        w = None if self.w is None else for_each_sample(self.w, len(self.w[0]))
        image = key.new_empty(setup.shape, dtype=setup.state_dtype)
        images = Images(*(None if given is None else torch.empty_like(image) for given in self.images))
        return Inputs(key, w, condition, images)

    def fill(self, inputs: Inputs) -> None:
        """Copy other inputs of this kind into these."""
        for buffer, value in zip(self.tensors(), inputs.tensors(), strict=True):
            buffer.copy_(value)

    def tensors(self) -> list[Tensor]:
        """Return all tensors, in an order that inputs of one kind share."""
        held = (self.key, self.w, *(self.condition[name] for name in sorted(self.condition)), *self.images)
        return [value for value in held if isinstance(value, Tensor)]


class Question(NamedTuple):
    """What the network is given for one branch or for both."""

    x: Tensor
    condition: dict[str, Any]


class Loop:
    """One run of a plan: its buffers, and the work of its rows.

    `start` and `row` depend on nothing that the host holds but the number of the row, so that they can be recorded once
    and done again for other values in `inputs`.
    """

    def __init__(self, setup: Setup, inputs: Inputs, keeps_x0: bool = False) -> None:
        plan, (batch, *sample), place, dtype = setup.plan, setup.shape, setup.device, setup.state_dtype
        total = setup.branches * batch
        self.setup, self.inputs, self.layout = setup, inputs, setup.layout
        self.ops = dispatch.backend(setup.backend, place, dtype)
        self.table = _tensor(plan.table, place, dtype)
        self.branches = [1 if row in setup.alone else setup.branches for row in range(len(plan))]
        self.rows = for_each_sample(torch.arange(len(plan), device=place)[:, None], batch).unbind()
        self.t = _tensor(plan.t, place, dtype)
        times = for_each_sample(self.t[:, None], total).unbind()
        self.times = [time[: count * batch] for time, count in zip(times, self.branches, strict=True)]
        self.w = [None] * len(plan) if inputs.w is None else inputs.w.unbind()
        # The start is a step too: it scales the state and writes the first model input.
        start = conditioning.start(plan, inputs.images)
        self.start_table, self.start_layout = _tensor(start.table, place, dtype), start.layout
        self.first_row = torch.zeros_like(inputs.key[0])

        self.x = torch.empty(setup.shape, device=place, dtype=dtype)
        self.model_input = torch.empty((total, *sample), device=place, dtype=setup.dtype)
        self.questions = {
            count: Question(self.model_input[: count * batch], part(inputs.condition, slice(count * batch)))
            for count in {1, setup.branches}
        }
        self.y = torch.empty_like(self.x) if plan.has_anchor else None
        self.history = self.x.new_empty((plan.history_slots, *setup.shape)) if plan.history_slots else None
        self.mean = torch.empty_like(self.x) if setup.rule.momentum else None
        self.x0 = torch.empty_like(self.x) if keeps_x0 else None
        # Where known data keep their noise, their state is made before each step.
        self.known = inputs.images.known if inputs.images.known_noise is None else torch.empty_like(self.x)
        levels = np.stack([plan.alpha[1:], plan.sigma[1:]], axis=1)
        self.known_levels = _tensor(levels, place, dtype)
        self.first_bad = torch.empty_like(self.first_row) if setup.check_finite else None

    def memory(self) -> list[Tensor]:
        """The tensors that the work of the rows reads and writes."""
        held = (value for value in vars(self).values() if isinstance(value, Tensor))
        return [*held, *self.inputs.tensors(), self.rows[0], self.times[0]]

    def start(self, noise: NoiseSource | None = None) -> None:
        """Write the start state and the first model input, and reset what rows add to."""
        x, key, images = self.x, self.inputs.key, self.inputs.images
        if images.x_init is not None:
            x.copy_(images.x_init)
        elif noise is not None:
            x.copy_(given(noise, "init", 0, x.shape))
        else:
            self.ops.normal_(x, key, self.first_row, noises.stream_number("init"))
        unguided, uncorrected = (None, None, None), (None, None, None, None)
        self.ops.step(
            *(x, x, self.start_table, self.start_layout, self.first_row, *unguided, self.model_input),
            *(*uncorrected, images.x0_init),
        )
        if self.y is not None:
            self.y.copy_(x)
        for sums in (self.history, self.mean):
            if sums is not None:
                sums.zero_()
        if self.first_bad is not None:
            self.first_bad.fill_(2 * len(self.setup.plan))

    def row(self, row: int, model: Model, z: Tensor | None = None) -> None:
        """Ask the model and do the step of a row; z replaces its noise."""
        following = self.branches[min(row + 1, len(self.branches) - 1)]
        branches = self.branches[row], following
        self.advance(model, self.rows[row], self.times[row], self.w[row], branches, z)

    def advance(
        self,
        model: Model,
        row: Tensor,
        t: Tensor,
        w: Tensor | None,
        branches: tuple[int, int],
        z: Tensor | None = None,
    ) -> None:
        """Ask the model and do the step of each sample's own row.

        Args:
            model: the network.
            row, w: row and guidance scale of each sample, [B].
            t: what the network is given, [branches * B].
            branches: how many branches it is asked for, now and the next time.
            z: noise to use instead.
        """
        setup, table, layout, images = self.setup, self.table, self.layout, self.inputs.images
        question, following = self.questions[branches[0]], self.questions[branches[1]].x
        asked = both_branches(model) if branches[0] == 2 else model
        out = asked(question.x, t, **question.condition)
        out, u, v = split(apart(out, self.model_input), self.x, setup.plan, branches[0])
        w_uncond = rescale = limit = None
        if u is not None and w is not None:
            u, w, w_uncond = setup.rule.combine(out, u, w, row, self.ops, self.mean)
            if setup.guidance_rescale:
                rescale = self.ops.guidance_rescale(out, u, w, setup.guidance_rescale)
        else:
            w = None
        if setup.dynamic_threshold is not None:
            quantile = setup.dynamic_threshold
            limit = self.ops.threshold(self.x, out, table, layout, row, u, w, rescale, w_uncond, quantile)
        if images.known is not None and images.known_noise is not None:
            noise = None, None, noises.stream_number("q_sample"), images.known_noise
            self.ops.q_sample_out(images.known, row, self.known_levels, *noise, self.known, None)
        self.ops.step_directly(
            *(self.x, out, table, layout, row, u, w, self.inputs.key, following, self.first_bad),
            *(v, rescale, limit, self.y, self.history, z, self.x0, w_uncond, self.known, images.mask),
        )


def raise_if_bad(first_bad: Tensor, plan: Plan, who: str = "") -> None:
    """Read what the steps noted, which waits for them. Raises NonFiniteError with the row, time and sample (or who)."""
    codes = first_bad.tolist()
    code = min(codes, default=2 * len(plan))
    if code < 2 * len(plan):
        row, where = code // 2, "the state after" if code % 2 else "the model output at"
        raise NonFiniteError(
            f"NaN or infinity in {where} row {row} of {len(plan)} (t = {plan.t[row]:g}), "
            + (who or f"sample {codes.index(code)} of the batch")
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


def _dense_like(value: Any) -> Any:
    """Return memory for tensors like this one; what is no tensor stays as it is."""
    return torch.empty(value.shape, dtype=value.dtype, device=value.device) if isinstance(value, Tensor) else value


def for_each_sample(values: Tensor, batch: int) -> Tensor:
    """Return values of each row, [rows, 1 or batch], as one per sample, [rows, batch].

    All rows begin at a multiple of 16 bytes, so that every one looks alike to a kernel compiled for its arguments.
    """
    unit = 16 // values.element_size()
    padded = values.new_empty(len(values), (batch + unit - 1) // unit * unit)
    return padded[:, :batch].copy_(values)
