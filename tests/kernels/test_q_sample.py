"""The forward process in Triton: 0 differing bits from the specification."""

from __future__ import annotations

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import q_sample as kernel
from fastdiff.ops import reference
from tests.kernels.calls import LAYOUTS, moved
from tests.ops.cpu import FLOATS, LEVELS, assert_same_bits, copied, differing, example, run

SHAPES = [
    (1,),  # a sample is one number
    (3, 127),  # odd, less than a block of the kernel
    (1, 2, 2048),  # whole blocks
    (2, 3, 41, 43),  # several blocks and an odd tail
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits(device: torch.device, shape: tuple[int, ...], given: bool, dtype: torch.dtype) -> None:
    """x_t, and the noise that was drawn or given, have the bits of the reference in every dtype."""
    for name in ("q_sample", "q_sample_out"):
        call = example(name, shape, dtype)
        if given:
            call["noise"] = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        assert_same_bits(run(kernel, name, moved(call, device)), run(reference, name, copied(call)))


def test_noise_of_the_dtype_of_x0_is_widened(device: torch.device) -> None:
    """Noise in half precision is the number that it is."""
    call = example("q_sample", (2, 3, 43), torch.bfloat16)
    call["noise"] = torch.randn(2, 3, 43, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert_same_bits(run(kernel, "q_sample", moved(call, device)), run(reference, "q_sample", copied(call)))


def test_without_a_copy_of_the_noise(device: torch.device) -> None:
    """The drawn noise is returned, or written, where it was asked for and nowhere else."""
    call = example("q_sample", (2, 3, 43))
    call["return_noise"] = False
    assert kernel.q_sample(**moved(call, device))[1].shape == (0,)
    call = example("q_sample_out", (2, 3, 43))
    call["drawn"] = None
    assert_same_bits(run(kernel, "q_sample_out", moved(call, device)), run(reference, "q_sample_out", copied(call)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_format(device: torch.device, layout: str) -> None:
    """However the elements of its tensors lie, the noise of an element is that of its place in C order."""
    call = example("q_sample_out", (3, 4, 5, 6))
    placed = moved(call, device)
    for name in ("x0", "x_t", "drawn"):
        placed[name] = LAYOUTS[layout](placed[name])
    assert_same_bits(run(kernel, "q_sample_out", placed), run(reference, "q_sample_out", copied(call)))


def test_numbers_of_samples_may_be_strided(device: torch.device) -> None:
    """Levels, draws and keys are read wherever they lie: one for all samples, or every other one."""
    call = moved(example("q_sample", (4, 43)), device)
    strided = {**call, "draw": call["draw"][:1].expand(4), "level": call["level"].repeat_interleave(2)[::2]}
    strided["key"] = call["key"].T.contiguous().T
    strided["table"] = call["table"].T.contiguous().T
    dense = {name: value.contiguous() if isinstance(value, torch.Tensor) else value for name, value in strided.items()}
    assert_same_bits(run(kernel, "q_sample", strided), run(kernel, "q_sample", dense))


def test_in_place(device: torch.device) -> None:
    """x_t may be x0 itself."""
    call = example("q_sample_out", (2, 3, 43))
    wanted = run(reference, "q_sample_out", copied(call))
    placed = moved(call, device)
    placed["x_t"] = placed["x0"]
    assert_same_bits(run(kernel, "q_sample_out", placed), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 3, 1024, 1024), (70000, 5)], ids=str)
def test_large(device: torch.device, shape: tuple[int, ...]) -> None:
    """Samples of many blocks, and more samples than a grid has rows: too much for the interpreter."""
    call = example("q_sample", shape, torch.bfloat16)
    assert_same_bits(run(kernel, "q_sample", moved(call, device)), run(reference, "q_sample", copied(call)))


def test_shared_memory(device: torch.device) -> None:
    """What is written may not be read elsewhere afterwards, nor be the same place for two elements."""
    call = moved(example("q_sample_out", (2, 3, 43)), device)
    buffer = torch.zeros(2 * 3 * 43 + 1, device=device)
    call["x0"] = buffer[:-1].view(2, 3, 43)
    for x_t, message in (
        (buffer[1:].view(2, 3, 43), "x_t is written and shares memory with x0"),
        (buffer[:43].expand(2, 3, 43), "x_t is written, so its elements must not share memory"),
    ):
        with pytest.raises(InputError, match=message):
            kernel.q_sample_out(**{**call, "x_t": x_t})


@pytest.mark.parametrize("level", [-1, len(LEVELS)])
def test_level_outside_the_table(device: torch.device, level: int) -> None:
    """A level that the table does not have makes its sample NaN, and no other: a GPU cannot refuse."""
    call = example("q_sample", (3, 43))
    wanted = run(reference, "q_sample", copied(call))["result 0"]
    call["level"][1] = level
    x_t = kernel.q_sample(**moved(call, device))[0].cpu()
    assert x_t[1].isnan().all()
    assert differing(x_t[::2], wanted[::2]) == 0


def test_sample_does_not_depend_on_its_batch(device: torch.device) -> None:
    """A sample alone has the bits that it has in a batch."""
    call = moved(example("q_sample", (3, 2500), torch.bfloat16), device)
    batch = kernel.q_sample(**call)
    alone = {name: call[name][1:2] for name in ("x0", "level", "draw")}
    for one, all_of_them in zip(kernel.q_sample(**{**call, **alone, "key": call["key"][:, 1:2]}), batch, strict=True):
        assert differing(one, all_of_them[1:2]) == 0


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0), (2, 3, 0)], ids=str)
def test_empty(device: torch.device, shape: tuple[int, ...]) -> None:
    """No samples, or samples without elements, give tensors that are as empty."""
    for result in kernel.q_sample(**moved(example("q_sample", shape), device)):
        assert result.shape == shape


def test_refusals(device: torch.device) -> None:
    """What does not fit is refused in one line."""
    call = moved(example("q_sample_out", (2, 3, 43)), device)
    for change, message in (
        ({"key": None}, "q_sample needs key and draw, or noise"),
        ({"draw": None}, "q_sample needs key and draw, or noise"),
        ({"x0": call["x0"].double()}, "x0 must be float32, bfloat16 or float16"),
        ({"table": call["table"].double()}, r"table must be float32 \[rows, 2\]"),
        ({"table": call["table"][:, :1]}, r"table must be float32 \[rows, 2\]"),
        ({"level": call["level"].int()}, "level must be int64"),
        ({"noise": call["x0"][:, :1]}, "noise must have the shape"),
        ({"x_t": call["x_t"][:1]}, "x_t must have the shape"),
        ({"stream": 256}, "stream must be 0..255"),
    ):
        with pytest.raises(InputError, match=message):
            kernel.q_sample_out(**{**call, **change})
