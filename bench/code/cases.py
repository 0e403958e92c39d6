"""The calls whose kernels are inspected: every op, a step for the samplers that most people run.

The tensors are never read or written: they take addresses, but no memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.bench.code import work
from fastdiff.bench.code.work import Work
from fastdiff.bench.speed.samplers import SCHEDULE, STEPS, dpmpp_2m_plan
from fastdiff.ops.philox import STREAMS
from fastdiff.plan import FAST_NORMALS, Plan

SHAPE = (64, 3, 256, 256)  # whole blocks, and enough of them
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

PLANS: dict[str, Plan] = {
    "ddim": fd.samplers.ddim(SCHEDULE, STEPS, 0.0, clip=None),
    "ddim clipped": fd.samplers.ddim(SCHEDULE, STEPS, 0.0, clip=1.0),
    "ddim eta 1": fd.samplers.ddim(SCHEDULE, STEPS, 1.0, clip=None),
    "ddim eta 1 clipped": fd.samplers.ddim(SCHEDULE, STEPS, 1.0, clip=1.0),
    "ddpm": fd.samplers.ddpm(SCHEDULE, STEPS, clip=None),
    "dpmpp-2m": dpmpp_2m_plan(STEPS),
}


@dataclass(frozen=True)
class Case:
    """One call of an op.

    Attributes:
        name: "step, ddpm, guided, bf16, exact normals".
        op: name of the op's function.
        arguments: makes its arguments, by position.
        dtype: of the network's tensors, "fp32" or "bf16".
        normals: "none", "exact" or "fast".
        work: what one element takes in the first kernel that the op launches.
        columns: those in use, of a step.
    """

    name: str
    op: str
    arguments: Callable[[], tuple[Any, ...]]
    dtype: str
    normals: str
    work: Work
    columns: tuple[str, ...] = ()


def cases() -> list[Case]:
    """Return every case, each name once."""
    return [*_steps(), *_others()]


def _steps() -> Iterator[Case]:
    for sampler, plan in PLANS.items():
        for guided in (False, True):
            for dtype in DTYPES:
                for normals in _normals(plan, dtype):
                    yield _step(sampler, plan, guided, dtype, normals)


def _normals(plan: Plan, dtype: str) -> Sequence[str]:
    """Fast normals are for bf16: with float32 the exact ones hide behind the memory."""
    if not plan.draws_noise:
        return ("none",)
    return ("exact", "fast") if dtype == "bf16" else ("exact",)


def _step(sampler: str, plan: Plan, guided: bool, dtype: str, normals: str) -> Case:
    words = ["step", sampler, "guided" if guided else "", dtype, "" if normals == "none" else f"{normals} normals"]
    return Case(
        name=", ".join(filter(None, words)),
        op="step",
        arguments=partial(_step_arguments, plan, guided, dtype, normals),
        dtype=dtype,
        normals=normals,
        work=work.step(plan.columns, guided, DTYPES[dtype].itemsize, normals),
        columns=plan.columns,
    )


def _step_arguments(plan: Plan, guided: bool, dtype: str, normals: str) -> tuple[Any, ...]:
    history = _tensor(plan.history_slots, *SHAPE, dtype=torch.float32) if plan.history_slots else None
    return (
        *(_image("fp32"), _image(dtype), _table(plan), plan.layout | (FAST_NORMALS if normals == "fast" else 0)),
        _of_samples(torch.int64),
        *((_image(dtype), _of_samples(torch.float32)) if guided else (None, None)),
        *(_key(), _image(dtype, branches=1 + guided), _of_samples(torch.int64)),
        *(None, None, None, None, history, None, None),
    )


def _others() -> Iterator[Case]:
    for dtype, kind in DTYPES.items():
        for name, (arguments, normals, done) in _OTHERS.items():
            op = name.partition(",")[0]
            yield Case(f"{name}, {dtype}", op, partial(arguments, dtype), dtype, normals, done(kind.itemsize))


def _q_sample(dtype: str) -> tuple[Any, ...]:
    return (_image(dtype), *_levels(), *_drawn(), None, False)


def _noise_loss(dtype: str, *target: Tensor) -> tuple[Any, ...]:
    return (_image(dtype), *_drawn(), *target)


def _target(dtype: str) -> tuple[Tensor, ...]:
    return (_image(dtype), *_levels())


def _threshold(dtype: str) -> tuple[Any, ...]:
    plan = PLANS["ddim clipped"]
    predicted = (_image("fp32"), _image(dtype), _table(plan), plan.layout, _of_samples(torch.int64), _image(dtype))
    return (*predicted, _of_samples(torch.float32), None, None, 0.995)


_OTHERS: dict[str, tuple[Callable[[str], tuple[Any, ...]], str, Callable[[int], Work]]] = {
    "normal_": (lambda dtype: (_image(dtype), *_drawn()), "exact", work.normal),
    "q_sample": (_q_sample, "exact", work.q_sample),
    "noise_loss": (_noise_loss, "exact", work.noise_loss),
    "noise_loss, target": (
        lambda dtype: _noise_loss(dtype, *_target(dtype)),
        "exact",
        partial(work.noise_loss, target=True),
    ),
    "noise_loss_backward": (
        lambda dtype: (_of_samples(torch.float32), *_noise_loss(dtype)),
        "exact",
        work.noise_loss_backward,
    ),
    "noise_loss_backward, target": (
        lambda dtype: (_of_samples(torch.float32), *_noise_loss(dtype, *_target(dtype))),
        "exact",
        partial(work.noise_loss_backward, target=True),
    ),
    "guidance_rescale": (
        lambda dtype: (_image(dtype), _image(dtype), _of_samples(torch.float32), 0.7),
        "none",
        work.guidance_rescale,
    ),
    "inner_products": (lambda dtype: (_image(dtype), _image(dtype)), "none", work.inner_products),
    "threshold": (_threshold, "none", work.threshold),
}


def _tensor(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype)


def _image(dtype: str, branches: int = 1) -> Tensor:
    return _tensor(branches * SHAPE[0], *SHAPE[1:], dtype=DTYPES[dtype])


def _table(plan: Plan) -> Tensor:
    return _tensor(*plan.table.shape, dtype=torch.float32)


def _levels() -> tuple[Tensor, Tensor]:
    return _of_samples(torch.int64), _tensor(1000, 2, dtype=torch.float32)


def _of_samples(dtype: torch.dtype) -> Tensor:
    return _tensor(SHAPE[0], dtype=dtype)


def _key() -> Tensor:
    return _tensor(2, SHAPE[0], dtype=torch.int64)


def _drawn() -> tuple[Tensor, Tensor, int]:
    return _key(), _of_samples(torch.int64), STREAMS["q_sample"]
