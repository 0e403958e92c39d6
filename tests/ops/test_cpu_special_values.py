"""What the C++ kernels make of numbers at the edge: every bf16 and fp16, ties, NaN, clip at its bound."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops import native, reference
from fastdiff.plan import Plan
from tests.ops.cpu import cpu_backend, differing
from tests.ops.plans import table

pytestmark = cpu_backend

NARROW = [torch.bfloat16, torch.float16]
ROW = torch.tensor([0])


def every(dtype: torch.dtype) -> Tensor:
    """Every number of 16 bits, [1, 65536]."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)[None]


def step(columns: dict[str, Any], x: Tensor, out: Tensor, backend: Any = native.ops, **tensors: Tensor) -> Tensor:
    """The first of two rows; returns x'."""
    plan, x = Plan.build("rows", [1.0, 0.0], columns), x.clone()
    backend.step(x, out, table(plan), plan.layout, ROW, **tensors)
    return x


@pytest.mark.parametrize("dtype", NARROW)
def test_every_narrow_number_is_widened_exactly(level: int, dtype: torch.dtype) -> None:
    """A network's output of 16 bits arrives as it is: subnormal, infinite or NaN."""
    out = every(dtype)
    assert differing(step({"po": 1.0, "c0": 1.0}, torch.zeros(out.shape), out), out.float()) == 0


@pytest.mark.parametrize("dtype", NARROW)
def test_rounding_to_nearest_even(level: int, dtype: torch.dtype) -> None:
    """The next input is rounded as torch rounds: at every tie, one ulp beside it, in overflow and in subnormals."""
    narrow = every(dtype).flatten()
    narrow = narrow[narrow.isfinite()].float()
    up = torch.nextafter(narrow.to(dtype), torch.tensor(torch.inf, dtype=dtype)).float()
    tie = torch.where(up.isfinite(), (narrow.double() + up.double()) / 2, up.double()).float()
    limit = torch.tensor([torch.finfo(dtype).max, torch.finfo(torch.float32).max, torch.nan])
    around = [torch.nextafter(tie, torch.full_like(tie, end)) for end in (-torch.inf, torch.inf)]
    x = torch.cat([narrow, tie, *around, limit, -limit, 65520 * torch.tensor([1 - 2**-20, 1, -1])])[None]
    model_input = torch.zeros(x.shape, dtype=dtype)
    assert differing(step({"cx": 1.0}, x, torch.zeros(x.shape), model_input=model_input), x) == 0
    assert differing(model_input, x.to(dtype)) == 0


def test_clip(level: int) -> None:
    """Bounds are reached exactly, zeros keep their sign, and NaN is not clipped away."""
    x = torch.tensor([[0.5, 0.50000006, -0.5, -0.50000006, torch.inf, -torch.inf, torch.nan, 0.0, -0.0]])
    wanted = torch.tensor([[0.5, 0.5, -0.5, -0.5, 0.5, -0.5, torch.nan, 0.0, -0.0]])
    got = step({"px": 1.0, "clip": 0.5, "c0": 1.0}, x, torch.zeros(x.shape))
    assert differing(got, wanted) == 0


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0, 2.0, torch.inf, torch.nan])
@pytest.mark.parametrize("clip", [0.0, 1.0, torch.inf])
def test_thresholds(level: int, clip: float, threshold: float) -> None:
    """A threshold below the clip, above it, not finite or NaN bounds x0 as in the reference."""
    x, bound = torch.linspace(-3, 3, 101)[None], torch.tensor([threshold])
    columns, out = {"px": 1.0, "c0": 1.0, "clip": [clip, 1.0], "cx": 0.5}, torch.zeros(x.shape)
    got, wanted = (step(columns, x, out, backend, threshold=bound) for backend in (native.ops, reference))
    assert differing(got, wanted) == 0


@pytest.mark.parametrize("payload", [0x7FC00000, 0x7FC00001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001])
def test_nan_stays_nan(level: int, payload: int) -> None:
    """A NaN of any payload in any tensor that a step reads makes the state NaN: no bit trick makes it a number."""
    nan = torch.tensor([payload - 2**32 if payload >= 2**31 else payload]).int().view(torch.float32).expand(1, 300)
    one = torch.ones(1, 300)
    columns = {"px": 1.0, "po": 1.0, "clip": 1.0, "c0": 1.0, "cy": 1.0, "ch0": 1.0, "cz": 1.0, "cv": 1.0}
    tensors = {"out": one, "variance": one, "y": one, "z": one, "history": one[None]}
    for name in tensors:
        given = {**tensors, name: nan.reshape(tensors[name].shape)}
        changed = {key: value.clone() for key, value in given.items()}
        assert step(columns, one, **changed).isnan().all(), name
    assert step(columns, nan, **tensors).isnan().all()


def test_exponential_at_its_ends(level: int) -> None:
    """The learned variance's exponential has the reference's bits over its range and beyond, where it is clipped."""
    v = torch.cat([torch.linspace(-90, 91, 5001), torch.tensor([-torch.inf, torch.inf, 0.0, -0.0, 1e-45])])[None]
    given = {"variance": v, "z": torch.ones(v.shape)}
    zero = torch.zeros(v.shape)
    got, wanted = (step({"cz": 1.0, "cv": 1.0}, zero, zero, backend, **given) for backend in (native.ops, reference))
    assert differing(got, wanted) == 0
    assert got.isfinite().all() and (got > 0).all()
