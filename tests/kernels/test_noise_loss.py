"""The training loss in Triton: the mean against float64, its gradient to the bit."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastdiff.errors import InputError
from fastdiff.kernels import noise_loss as kernel
from fastdiff.kernels import parts
from fastdiff.kernels.launch import Launch
from fastdiff.kernels.launch import run as run_launch
from fastdiff.ops import reference
from fastdiff.ops.philox import normal
from tests.kernels.calls import LAYOUTS, moved
from tests.ops.cpu import (
    FLOATS,
    STREAM,
    assert_same_bits,
    copied,
    differing,
    example,
    loss_to_target,
    run,
    to_noise,
)

SIZES = [1, 127, 2048, 5001]  # less than a part of a sample, whole ones, and several with an odd tail
# A square and its place in the mean are rounded to float32 at most 32 times in a row; all of them are positive.
ULP = torch.finfo(torch.float32).eps
ERROR = 32 * ULP / 2


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_mean(device: torch.device, size: int, dtype: torch.dtype) -> None:
    """The mean squared error against the noise, as float64 has it."""
    call = to_noise(example("noise_loss", (2, size), dtype))
    error = call["pred"].double() - normal(call["pred"].shape, call["key"], call["draw"], STREAM).double()
    got = kernel.noise_loss(**moved(call, device)).cpu()
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), error.square().mean(dim=1), rtol=ERROR, atol=0)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_mean_to_a_target(device: torch.device, size: int, dtype: torch.dtype) -> None:
    """The mean squared error against t0 x0 + te eps, as float64 has it."""
    call = example("noise_loss", (2, size), dtype)
    exact, off = loss_to_target(call)
    got = kernel.noise_loss(**moved(call, device)).cpu().double()
    assert ((got - exact).abs() <= off + ERROR * exact).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_gradient(device: torch.device, size: int, dtype: torch.dtype) -> None:
    """The gradient has the bits of the reference, whatever the target."""
    call = example("noise_loss_backward", (2, size), dtype)
    for each in (call, to_noise(call)):
        assert_same_bits(
            run(kernel, "noise_loss_backward", moved(each, device)), run(reference, "noise_loss_backward", copied(each))
        )


def test_several_kinds(device: torch.device) -> None:
    """pred and x0 are widened exactly, each from its own dtype; the gradient has that of pred."""
    for kinds in itertools.permutations(FLOATS, 2):
        call = example("noise_loss_backward", (2, 2048), torch.float16)
        call["pred"], call["x0"] = (call[name].to(dtype) for name, dtype in zip(("pred", "x0"), kinds, strict=True))
        assert_same_bits(
            run(kernel, "noise_loss_backward", moved(call, device)), run(reference, "noise_loss_backward", copied(call))
        )


def test_a_level_outside_the_table_makes_its_sample_nan(device: torch.device) -> None:
    """A GPU cannot refuse it."""
    call = moved(example("noise_loss", (3, 43)), device)
    call["level"] = torch.tensor([0, 3, -1], device=device)
    assert kernel.noise_loss(**call).isfinite().tolist() == [True, False, False]


def test_sum_of_many_parts(device: torch.device) -> None:
    """Parts are added in float64, however many there are: what is left is the rounding of the result."""
    part = torch.rand(2, 2500, generator=torch.Generator().manual_seed(0))
    total = torch.empty(2, device=device)
    arguments = {"part": part.to(device), "total": total, "parts": 2500, "BLOCK": 1024}
    run_launch(Launch(parts.sum_kernel, (2, 1, 1), arguments))
    torch.testing.assert_close(total.cpu(), part.double().sum(dim=1).float(), rtol=ULP, atol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 3, 1024, 1024), (70000, 5)], ids=str)
def test_large(device: torch.device, shape: tuple[int, ...]) -> None:
    """Samples of many parts, and more samples than a grid has rows: too much for the interpreter."""
    call = to_noise(example("noise_loss", shape, torch.bfloat16))
    error = call["pred"].double() - normal(shape, call["key"], call["draw"], STREAM).double()
    got = kernel.noise_loss(**moved(call, device)).cpu()
    torch.testing.assert_close(got.double(), error.square().flatten(1).mean(dim=1), rtol=ERROR, atol=0)
    call["grad"] = torch.ones(shape[0])
    assert_same_bits(
        run(kernel, "noise_loss_backward", moved(call, device)), run(reference, "noise_loss_backward", copied(call))
    )


@pytest.mark.parametrize("name", ["noise_loss", "noise_loss_backward"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_format(device: torch.device, name: str, layout: str) -> None:
    """However the elements of pred and x0 lie, the bits are the same."""
    for shape in ((3, 4, 5, 6), (3, 4, 6, 8)):  # the second is of whole 16-byte accesses
        call = moved(example(name, shape, torch.bfloat16), device)
        placed = {**call, **{image: LAYOUTS[layout](call[image]) for image in ("pred", "x0")}}
        assert_same_bits(run(kernel, name, placed), run(kernel, name, call))


@pytest.mark.parametrize("name", ["noise_loss", "noise_loss_backward"])
def test_sample_does_not_depend_on_its_batch(device: torch.device, name: str) -> None:
    """A sample alone has the bits that it has in a batch."""
    call = moved(example(name, (3, 5000)), device)
    each = ("grad", "pred", "draw", "x0", "level")
    alone = {argument: value[1:2] for argument, value in call.items() if argument in each}
    one = getattr(kernel, name)(**{**call, **alone, "key": call["key"][:, 1:2]})
    assert differing(one, getattr(kernel, name)(**call)[1:2]) == 0


def test_numbers_of_samples_may_be_strided(device: torch.device) -> None:
    """A gradient, a draw and a level that are expanded from one number are read as they are."""
    call = moved(example("noise_loss_backward", (3, 43)), device)
    expanded = {name: call[name][:1].expand(3) for name in ("grad", "draw", "level")}
    dense = {name: value.contiguous() for name, value in expanded.items()}
    got, wanted = (kernel.noise_loss_backward(**{**call, **numbers}) for numbers in (expanded, dense))
    assert differing(got, wanted) == 0


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_shows(device: torch.device, value: float) -> None:
    """NaN or infinity in one sample is seen in its mean, and in no other."""
    call = example("noise_loss", (3, 5000))
    call["pred"][1, -1] = value
    got = kernel.noise_loss(**moved(call, device)).cpu()
    assert got.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("shape", [(0, 3, 4), (2, 0), (2, 3, 0)], ids=str)
def test_empty(device: torch.device, shape: tuple[int, ...]) -> None:
    """The mean of no elements is NaN, and their gradient is empty, as in the reference."""
    for name in ("noise_loss", "noise_loss_backward"):
        call = example(name, shape)
        assert_same_bits(run(kernel, name, moved(call, device)), run(reference, name, call))


def test_refusals(device: torch.device) -> None:
    """What does not fit is refused in one line."""
    call = moved(example("noise_loss_backward", (2, 43)), device)
    for change, message in (
        ({"pred": call["pred"].double()}, "pred must be float32, bfloat16 or float16"),
        ({"grad": call["grad"].double()}, "grad must be float32"),
        ({"key": call["key"][:1]}, r"key must be int64 \[2, 2\]"),
        ({"draw": call["draw"][:1]}, "draw must be int64"),
        ({"stream": -1}, "stream must be 0..255"),
        ({"x0": call["x0"].double()}, "x0 must be float32, bfloat16 or float16"),
        ({"x0": call["x0"][:, 1:]}, "x0 must have the shape"),
        ({"level": call["level"].int()}, "level must be int64"),
        ({"table": call["table"][:, :1]}, r"table must be float32 \[rows, 2\]"),
        ({"x0": None}, "noise_loss needs x0, level and table together"),
        ({"table": None}, "noise_loss needs x0, level and table together"),
    ):
        with pytest.raises(InputError, match=message):
            kernel.noise_loss_backward(**{**call, **change})
