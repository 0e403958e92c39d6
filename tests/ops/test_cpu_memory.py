"""Memory of the C++ kernels: any order and any gaps, nothing written beside a tensor, nothing left unwritten in it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import native
from tests.ops.cpu import BATCH_DIM, FLOATS, OPS, WRITTEN, assert_same_bits, copied, cpu_backend, example, run

pytestmark = cpu_backend

SENTINEL = 101  # exact in every dtype
MARGIN = 200  # elements before and after a tensor: more than a block of the kernels
SHAPES = [
    (2, 3, 5, 9),  # a block of the kernels and an odd tail
    (1, 2, 8, 16),  # two whole blocks, one sample
    (3, 1, 1, 1),  # dimensions of size 1, whose strides mean nothing
    (2, 257),
    (5,),
]


class Placed:
    """A copy of a tensor inside a buffer of sentinels, with its dimensions in any order and with gaps."""

    def __init__(self, values: Tensor, order: Sequence[int], gaps: Sequence[int], offset: int) -> None:
        """Lay out `values`: `order` names the dimensions from the innermost on, gap 1 is none, offset misaligns."""
        strides, reach = [0] * values.ndim, 1
        for dim, gap in zip(order, gaps, strict=True):
            strides[dim] = reach * gap
            reach = strides[dim] * values.shape[dim]
        start = MARGIN + offset
        self.buffer = torch.full((start + reach + MARGIN,), SENTINEL, dtype=values.dtype)
        self.tensor = self.buffer.as_strided(values.shape, strides, start)
        self.tensor.copy_(values)

    def beside(self) -> Tensor:
        """Everything in the buffer that is not the tensor."""
        outside = torch.ones_like(self.buffer, dtype=torch.bool)
        outside.as_strided(self.tensor.shape, self.tensor.stride(), self.tensor.storage_offset()).fill_(False)
        return self.buffer[outside]


def dense(values: Tensor, offset: int) -> Placed:
    """A contiguous tensor."""
    return Placed(values, range(values.ndim)[::-1], [1] * values.ndim, offset)


def place(values: Tensor, data: st.DataObject) -> Placed:
    """A tensor laid out in any way."""
    order = data.draw(st.permutations(range(values.ndim)) | st.just(range(values.ndim)[::-1]))
    gaps = data.draw(st.lists(st.integers(1, 3), min_size=values.ndim, max_size=values.ndim))
    return Placed(values, order, gaps, data.draw(st.integers(0, 7)))


@pytest.mark.parametrize("name", OPS)
@settings(deadline=None, max_examples=25)
@given(shape=st.sampled_from(SHAPES), dtype=st.sampled_from(FLOATS), data=st.data())
def test_any_memory_format(
    level: int, name: str, shape: tuple[int, ...], dtype: torch.dtype, data: st.DataObject
) -> None:
    """Wherever the elements of any tensor of a call lie, the bits are the same and all else in memory is as it was."""
    call = example(name, shape, dtype)
    placed = {key: place(value, data) for key, value in call.items() if isinstance(value, Tensor)}
    got = run(native.ops, name, {**call, **{key: where.tensor for key, where in placed.items()}})
    read = {key: where.tensor for key, where in placed.items() if key not in WRITTEN[name]}
    assert_same_bits(read, {key: call[key] for key in read})
    assert_same_bits(got, run(native.ops, name, copied(call)))
    for where in placed.values():
        assert (where.beside() == SENTINEL).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", [name for name in OPS if WRITTEN[name]])
def test_nothing_beside_is_written(level: int, name: str, dtype: torch.dtype) -> None:
    """Dense samples of odd sizes at odd addresses: every tensor that any op writes keeps its bounds."""
    for size, offset in itertools.product((1, 2, 3, 5, 127, 128, 129, 255, 257, 1000), (0, 1, 7)):
        call = example(name, (2, size), dtype)
        placed = {key: dense(call[key], offset) for key in WRITTEN[name]}
        run(native.ops, name, {**call, **{key: where.tensor for key, where in placed.items()}})
        for where in placed.values():
            assert (where.beside() == SENTINEL).all()


@pytest.fixture
def fresh_memory_is_nan() -> Iterator[None]:
    """New tensors are full of NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [name for name in OPS if not WRITTEN[name]])
def test_new_tensors_are_written(
    level: int, fresh_memory_is_nan: None, name: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    """Every element of what an op returns was written by it."""
    assert torch.empty(3).isnan().all()
    for result in run(native.ops, name, example(name, shape, dtype)).values():
        assert not result.isnan().any()


@pytest.mark.parametrize("name", OPS)
def test_what_is_read_may_be_expanded(level: int, name: str) -> None:
    """One value for all samples need not be copied for each: stride 0 is read as it is."""
    call = example(name, (3, 5, 43))
    for key, value in call.items():
        if not isinstance(value, Tensor) or key in WRITTEN[name]:
            continue
        expanded = value.narrow(BATCH_DIM.get(key, 0), 0, 1).expand_as(value)
        got = run(native.ops, name, {**copied(call), key: expanded})
        assert_same_bits(got, run(native.ops, name, {**copied(call), key: expanded.contiguous()}))


@pytest.mark.parametrize("written", ["x", "model_input", "x0_out", "y", "history"])
@pytest.mark.parametrize("read", ["out", "uncond", "z", "known", "mask"])
def test_what_is_written_may_be_read_element_for_element_only(written: str, read: str) -> None:
    """The same tensor is fine (a network may return its input); the same memory in another order is refused."""
    call = example("step", (3, 6, 6))
    shared = call[written][0] if written == "history" else call[written]
    call[read] = shared
    wanted = copied({**call, read: shared.clone()})
    assert_same_bits(run(native.ops, "step", call), run(native.ops, "step", wanted))
    words = f"^{written} is written and shares memory with {read} other than element for element: pass a copy$"
    for view in (shared.mT, shared[:, :1].expand_as(shared)):
        with pytest.raises(RuntimeError, match=words):
            run(native.ops, "step", {**call, read: view})


@pytest.mark.parametrize(("name", "key"), [(name, key) for name in OPS for key in WRITTEN[name]])
def test_what_is_written_must_own_its_memory(name: str, key: str) -> None:
    """A tensor that shares memory with itself is refused: its samples would overwrite each other."""
    call = example(name, (3, 5, 43))
    value, words = call[key], f"^{key} is written, so its elements must not share memory: pass a copy$"
    for dim in range(value.ndim):
        expanded = value.narrow(dim, 0, 1).expand_as(value)
        with pytest.raises(RuntimeError, match=words):
            run(native.ops, name, {**call, key: expanded})
    overlapping = torch.zeros(10000, dtype=value.dtype).as_strided(value.shape, [1, *[2] * (value.ndim - 1)])
    if value.ndim > 1:
        with pytest.raises(RuntimeError, match=words):
            run(native.ops, name, {**call, key: overlapping})


def test_channels_last_and_views(level: int) -> None:
    """What models hand over: channels_last, a slice of channels, a permuted copy, one half of a doubled batch."""
    call = example("step", (2, 3, 8, 9), torch.bfloat16)
    wanted = run(native.ops, "step", copied(call))
    both = torch.cat([call["uncond"], call["out"]])
    views = {
        "x": call["x"].clone(memory_format=torch.channels_last),
        "out": both[2:],
        "uncond": both[:2],
        "variance": torch.cat([call["variance"]] * 2, dim=1)[:, 3:],
        "model_input": call["model_input"].clone(memory_format=torch.channels_last),
        "y": call["y"].permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    }
    assert_same_bits(run(native.ops, "step", {**call, **views}), wanted)
