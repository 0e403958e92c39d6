"""What the tests of the C++ backend share: one call of every op, how to run it, and how to compare bits."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

from fastdiff.ops import schema
from fastdiff.ops.philox import STREAMS, normal
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan
from tests.backends import needs_extension
from tests.ops.plans import ROWS, plan_of, table

Call = dict[str, Any]  # the arguments of an op by name

cpu_backend = [needs_extension, pytest.mark.usefixtures("extension")]

FLOATS = [torch.float32, torch.bfloat16, torch.float16]
SCHEMAS = {name: op._schema for name, op in schema.OPS.items()}
SCHEMAS["step_directly"] = SCHEMAS["step"]
OPS = sorted(SCHEMAS)
WRITTEN = {name: [argument.name for argument in SCHEMAS[name].arguments if argument.is_write] for name in OPS}
BATCH_DIM = {"key": 1, "history": 1}  # the dimension that counts samples, where it is not the first
LEVELS = torch.tensor([[0.9, 0.3], [0.5, 0.8], [0.1, 1.2]])  # alpha and sigma
TARGETS = torch.tensor([[-0.3, 0.9], [1.0, 0.0], [0.0, -1.2]])  # t0 and te
TARGET = ("x0", "level", "table")  # the arguments of noise_loss without which the target is the noise
WEIGHTS = torch.tensor([1.0, 2.5, 0.0, -1.0])  # of guidance; 1 leaves the output as it is
MASK = torch.tensor([0.0, 0.25, 1.0])  # of what is known: not, in part, known
STREAM = STREAMS["q_sample"]


class Random:
    """Tensors of a seed."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals, rounded to dtype."""
        return torch.randn(shape, generator=self.generator).to(dtype)

    def below(self, end: int, *shape: int) -> Tensor:
        """Whole numbers 0..end-1, int64."""
        return torch.randint(end, shape, generator=self.generator)

    def key(self, batch: int) -> Tensor:
        """Seeds of 64 bits and sample indices of 56, int64 [2, batch]."""
        high, low = self.below(2**32, 2, batch)
        return torch.stack([(high - 2**31 << 32) + low, self.below(2**56, batch)])


def step_call(plan: Plan, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> Call:
    """A step of a plan with every tensor given but z; the network's tensors are of dtype."""
    random, batch = Random(seed), shape[0]
    network = functools.partial(random.normal, *shape, dtype=dtype)
    return {
        "x": random.normal(*shape),
        "out": network(),
        "table": table(plan),
        "layout": plan.layout,
        "row": random.below(ROWS, batch),
        "uncond": network(),
        "w": WEIGHTS[random.below(len(WEIGHTS), batch)],
        "key": random.key(batch),
        "model_input": torch.full(shape, torch.nan, dtype=dtype),
        "first_bad": torch.full((batch,), 2 * ROWS),
        "variance": network(),
        "scale": random.normal(batch),
        "threshold": random.normal(batch).abs(),
        "y": random.normal(*shape),
        "history": random.normal(HISTORY_SLOTS, *shape),
        "x0_out": torch.full(shape, torch.nan),
        "w_uncond": random.normal(batch),
        "known": random.normal(*shape),
        "mask": MASK[random.below(len(MASK), *shape)],
    }


def example(name: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Call:
    """One call of an op with every optional tensor that it can take; what is only written is full of NaN."""
    return copied(_examples(shape, dtype)[name])


@functools.lru_cache(maxsize=4)
def _examples(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Call]:
    random, batch = Random(1), shape[0]
    step = step_call(plan_of(set(NEUTRAL)), shape, dtype=dtype)
    broken = step["x"].clone()
    broken.view(-1)[-1:] = torch.inf  # something to note in first_bad
    image, empty = random.normal(*shape, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype)
    drawn = {"key": step["key"], "draw": random.below(2**32, batch), "stream": STREAM}
    noised = {"x0": image, "level": random.below(len(LEVELS), batch), "table": LEVELS, **drawn, "noise": None}
    target = {"x0": random.normal(*shape, dtype=dtype), "level": noised["level"], "table": TARGETS}
    predicted = ("x", "out", "table", "layout", "row", "uncond", "w", "scale", "w_uncond")
    return {
        "step": {**step, "x": broken},
        "step_directly": {**step, "x": broken},
        "normal_": {"z": empty, **drawn},
        "q_sample": {**noised, "return_noise": True},
        "q_sample_out": {**noised, "x_t": empty, "drawn": torch.full(shape, torch.nan)},
        "noise_loss": {"pred": image, **drawn, **target},
        "noise_loss_backward": {"grad": random.normal(batch), "pred": image, **drawn, **target},
        "guidance_rescale": {**{name: step[name] for name in ("out", "uncond", "w")}, "phi": 0.7},
        "inner_products": {name: step[name] for name in ("out", "uncond")},
        "threshold": {**{name: step[name] for name in predicted}, "quantile": 0.9},
    }


def to_noise(call: Call) -> Call:
    """A call of noise_loss, or of its gradient, whose target is the noise."""
    return {name: value for name, value in call.items() if name not in TARGET}


def loss_to_target(call: Call) -> tuple[Tensor, Tensor]:
    """What a call of noise_loss should give, by the formula in float64, and by how much its differences may be off.

    A difference is rounded to float32 three times: t0 x0, the target and the difference, each by half an ulp of what is
    no larger than |pred| + |t0 x0| + |te eps|. The sum of the squares is exact in both numbers.
    """
    pred, x0 = call["pred"].double(), call["x0"].double()
    t0, te = call["table"][call["level"]].double().reshape(-1, 2, *[1] * (pred.ndim - 1)).unbind(1)
    of_x0, of_eps = t0 * x0, te * normal(pred.shape, call["key"], call["draw"], call["stream"]).double()
    difference = pred - (of_x0 + of_eps)
    off = 1.5 * torch.finfo(torch.float32).eps * (pred.abs() + of_x0.abs() + of_eps.abs())
    squares, off = difference.square(), 2 * difference.abs() * off + off.square()
    return squares.flatten(1).mean(dim=1), off.flatten(1).mean(dim=1)


def run(backend: Any, name: str, call: Call) -> dict[str, Tensor]:
    """Call an op, in place, and return what it returned and what it wrote."""
    returned = getattr(backend, name)(*(call.get(argument.name) for argument in SCHEMAS[name].arguments))
    results = returned if isinstance(returned, tuple) else () if returned is None else (returned,)
    written = {argument: call[argument] for argument in WRITTEN[name] if call.get(argument) is not None}
    return {**{f"result {k}": result for k, result in enumerate(results)}, **written}


def copied(call: Call) -> Call:
    """The same call on copies of its tensors."""
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in call.items()}


def assert_products_close(got: Tensor, wanted: Tensor, rtol: float) -> None:
    """Inner products [3, B] agree, relative to the norms of their factors: their terms may cancel."""
    of_out, _, of_difference = wanted.double()
    size = torch.stack([of_out, (of_out * of_difference).sqrt(), of_difference])
    assert ((got.double() - wanted.double()).abs() <= rtol * size).all()


def differing(a: Tensor, b: Tensor) -> int:
    """How many elements differ in any bit; NaN is NaN, whatever its payload."""
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    same = a.contiguous().view(words) == b.contiguous().view(words)
    return int((~same & ~(a.isnan() & b.isnan())).sum())


def assert_same_bits(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Both hold the same tensors, to the bit."""
    assert got.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert got[name].shape == tensor.shape and got[name].dtype == tensor.dtype, name
        assert differing(got[name], tensor) == 0, name
