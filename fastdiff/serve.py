"""A batch that runs on: each sample at its own row, and where one is finished the next one begins.

Rows are looked up per sample, on the device, so the samples of a batch need not be at the same step; the host only
counts. A sample is the one that `fastdiff.sample` draws alone, as its noise and steps do not depend on the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.errors import InputError, NonFiniteError, whole
from fastdiff.guidance.branches import Condition, Model, alike, conditions
from fastdiff.guidance.rules import CFG, Scale, as_rule, w_of_rows
from fastdiff.loop import Inputs, Loop, Setup, for_each_sample, raise_if_bad
from fastdiff.ops import dispatch
from fastdiff.plan import Plan
from fastdiff.sample import place_of

Result = Tensor | InputError | NonFiniteError

_END = object()


@dataclass(frozen=True, eq=False)
class Request:
    """One sample to draw.

    Attributes:
        seed, index: whose noise, as in `fastdiff.sample`.
        cond, uncond: keyword arguments of the model as in `fastdiff.sample`, tensors without the batch. All requests
            have the same names and shapes, and equal values where they are no tensors.
        guidance: w of this sample, a number or a function of the noise level; None is that of `serve`.
    """

    seed: int = 0
    index: int = 0
    cond: Condition = field(default_factory=dict)
    uncond: Condition | None = None
    guidance: Scale | None = None


def serve(
    model: Model,
    plan: Plan,
    sample_shape: Sequence[int],
    requests: Iterable[Request | None],
    *,
    slots: int = 8,
    guidance: Scale | CFG = 1.0,
    guidance_rescale: float = 0.0,
    dynamic_threshold: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
    check_finite: bool = True,
    normals: str = "exact",
) -> Iterator[tuple[Request, Result]]:
    """Draw what is requested in a batch that refills itself; yield each request with its sample when that is finished.

    Requests are asked for when a slot is free, before each row. The host waits for the device where a request comes in,
    whose numbers it copies there, and where a sample is finished, to check it; the other rows wait for nothing.
    The network always sees `slots` samples (twice as many with guidance), also where none is asked for.

    What is wrong with one request is its own result, an error instead of a sample, and the others go on. What the
    network or `requests` raise ends all that is at work.

    Args:
        model, plan: as in `fastdiff.sample`.
        sample_shape: (...) of one sample, without the batch.
        requests: what to draw; None says that nothing is asked for right now and the samples at work may go on.
        slots: samples that run at the same time.
        guidance: w of requests that do not say, or a rule for all; with the number 1 no request may have another.
        guidance_rescale, dynamic_threshold, device, dtype, backend, normals: as in `fastdiff.sample`.
        check_finite: whether a sample in which NaN or infinity appeared is a NonFiniteError instead.

    Yields:
        (request, sample of `sample_shape`) in the order in which they finish, which is that of the requests. Or
        (request, error): an InputError at once, where a request is out of range or does not fit the first one; a
        NonFiniteError at its end, where a model output or a state is not finite.

    Raises:
        InputError: an argument is out of range.
        BackendError: the backend is not available.
    """
    whole("slots", slots, 1)
    if len(sample_shape) < 1 or min(sample_shape) < 0:
        raise InputError(f"serve needs the shape of a sample, with no negative size, got {tuple(sample_shape)}")
    place = place_of(model, None, device)
    rule = as_rule(guidance)
    guided = isinstance(guidance, (CFG, Tensor)) or callable(guidance) or guidance != 1.0
    one = Setup(
        plan=plan,
        shape=(1, *sample_shape),
        device=place,
        dtype=dtype,
        backend=dispatch.resolve(backend, place, torch.promote_types(dtype, torch.float32)),
        branches=2 if guided else 1,
        rule=rule.method,
        guidance_rescale=guidance_rescale,
        dynamic_threshold=dynamic_threshold,
        check_finite=check_finite,
        normals=normals,
    )
    return _run(model, one, rule, iter(requests), slots)


@torch.no_grad()
def _run(
    model: Model, one: Setup, rule: CFG, requests: Iterator[Request | None], slots: int
) -> Iterator[tuple[Request, Result]]:
    batch: _Batch | None = None
    ended = False
    while not ended or (batch is not None and batch.at_work):
        while not ended and (batch is None or len(batch.at_work) < slots):
            request: Any = next(requests, _END)
            ended = request is _END
            if ended or request is None:
                break
            try:
                inputs = _inputs(model, one, rule, request)
                batch = batch or _Batch(one, inputs, slots)
                batch.admit(request, inputs)
            except InputError as error:
                yield request, error
        if batch is not None and batch.at_work:
            batch.advance(model)
            yield from batch.finished()


def _inputs(model: Model, one: Setup, rule: CFG, request: Request) -> Inputs:
    """Return what a loop of this sample alone reads."""
    if not isinstance(request, Request):
        raise InputError(f"serve draws fastdiff.Request, or None for none right now, got {type(request).__name__}")
    key = noises.key([request.seed], [request.index], 1, one.device)
    rule = rule if request.guidance is None else replace(rule, w=request.guidance)
    w, alone = w_of_rows(rule, one.plan, 1, one.device, one.state_dtype)
    if one.branches == 1 and len(alone) < len(one.plan):
        raise InputError("a request asks for guidance and serve has none: give serve a guidance other than 1")
    if rule.momentum and 0 < len(alone) < len(one.plan):
        raise InputError("serve cannot leave rows of one sample out of a running mean: use APG without momentum here")
    cond, uncond = _with_batch(request.cond), None if request.uncond is None else _with_batch(request.uncond)
    condition = conditions(model, cond, uncond, one.branches, 1)
    return Inputs(key, None if one.branches == 1 else for_each_sample(w, 1), condition)


def _with_batch(cond: Condition) -> dict[str, Any]:
    return {name: value[None] if isinstance(value, Tensor) else value for name, value in cond.items()}


class _Batch:
    """A loop with a row for each sample, and one of a single sample, in which requests start.

    It begins as copies of the first sample, so that idle slots are like any other.
    """

    def __init__(self, one: Setup, inputs: Inputs, slots: int) -> None:
        self.single = Loop(one, inputs.buffers(one))
        condition = {
            name: value.repeat_interleave(slots, 0) if isinstance(value, Tensor) else value
            for name, value in inputs.condition.items()
        }
        w = None if inputs.w is None else for_each_sample(inputs.w, slots)
        many = Inputs(inputs.key.repeat(1, slots), w, condition)
        self.loop = Loop(replace(one, shape=(slots, *one.shape[1:])), many)
        self.loop.start()
        self.slots = slots
        self.row = torch.zeros(one.branches * slots, dtype=torch.int64, device=one.device)
        self.at_work: dict[int, tuple[Request, int]] = {}  # by slot: the request, and how many rows are left

    def admit(self, request: Request, inputs: Inputs) -> None:
        """Start a sample in a free slot. Raises InputError if its conditions are not like those of the others."""
        held, given = self.single.inputs.condition, inputs.condition
        if set(held) != set(given) or not all(alike(value, given[name]) for name, value in held.items()):
            raise InputError(
                "all requests of serve need conditions of the same names, shapes and dtypes, and equal values otherwise"
            )
        self.single.inputs.fill(inputs)
        self.single.start()
        slot = next(slot for slot in range(self.slots) if slot not in self.at_work)
        for own, new in zip(_parts(self.loop, slot, self.slots), _parts(self.single, 0, 1), strict=True):
            own.copy_(new)
        self.row[slot :: self.slots] = 0
        self.at_work[slot] = request, len(self.loop.setup.plan)

    def advance(self, model: Model) -> None:
        """Do the row of every slot; those that are done stay at the last one."""
        loop, row = self.loop, self.row[: self.slots]
        w = None if loop.inputs.w is None else loop.inputs.w.gather(0, row[None])[0]
        both = loop.setup.branches, loop.setup.branches
        loop.advance(model, row, loop.t[self.row], w, both)
        self.row.add_(1).clamp_(max=len(loop.setup.plan) - 1)
        self.at_work = {slot: (request, left - 1) for slot, (request, left) in self.at_work.items()}

    def finished(self) -> Iterator[tuple[Request, Result]]:
        """Take out what has no rows left."""
        for slot, (request, left) in list(self.at_work.items()):
            if left == 0:
                del self.at_work[slot]
                yield request, self._result(slot, request)

    def _result(self, slot: int, request: Request) -> Tensor | NonFiniteError:
        if self.loop.first_bad is not None:
            who = f"the request of seed {request.seed} and index {request.index}"
            try:
                raise_if_bad(self.loop.first_bad[slot : slot + 1], self.loop.setup.plan, who)
            except NonFiniteError as error:
                return error
        return self.loop.x[slot].clone()


def _parts(loop: Loop, slot: int, slots: int) -> list[Tensor]:
    """Return what belongs to one sample of a loop, as views."""
    inputs, this = loop.inputs, slice(slot, slot + 1)
    by_sample = [loop.x, loop.y, loop.mean, loop.first_bad]
    by_row = [loop.history, inputs.key, inputs.w]
    by_branch = [loop.model_input, *(inputs.condition[name] for name in sorted(inputs.condition))]
    return [
        *(tensor[this] for tensor in by_sample if tensor is not None),
        *(tensor[:, this] for tensor in by_row if tensor is not None),
        *(tensor[slot::slots] for tensor in by_branch if isinstance(tensor, Tensor)),
    ]
