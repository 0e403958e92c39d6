"""The C++ ops that reduce a sample to one number, against float64 and NumPy."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.ops import native, reference
from fastdiff.ops.dispatch import Backend
from fastdiff.ops.philox import normal
from fastdiff.plan import Plan
from tests.ops.cpu import (
    FLOATS,
    STREAM,
    assert_products_close,
    assert_same_bits,
    copied,
    cpu_backend,
    example,
    loss_to_target,
    run,
    to_noise,
)
from tests.ops.plans import table

pytestmark = cpu_backend

SIZES = [1, 2, 127, 128, 129, 1024, 1025, 5000]  # around a block (128) and a partial sum (1024) of the kernels
ULP = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_noise_loss(level: int, size: int, dtype: torch.dtype) -> None:
    """The mean squared error against the noise, summed in float64; its gradient is that of autograd in float64."""
    call = to_noise(example("noise_loss", (3, size), dtype))
    pred = call["pred"].double().requires_grad_()
    exact = (pred - normal(pred.shape, call["key"], call["draw"], STREAM).double()).square().mean(dim=1)
    # pred - eps and the result are rounded to float32: 1.5 ulp with the squares; the sums are exact to 1e-13.
    torch.testing.assert_close(native.ops.noise_loss(**call).double(), exact, rtol=1.5 * ULP, atol=0)

    grad = torch.tensor([1.0, -0.5, 3.0])
    (wanted,) = torch.autograd.grad(exact, pred, grad.double())
    got = native.ops.noise_loss_backward(grad, **call)
    assert got.dtype == dtype
    # Four roundings of half an ulp in float32, then one to dtype, also of numbers that are subnormal there.
    eps, tiny = torch.finfo(dtype).eps, torch.finfo(dtype).smallest_normal
    torch.testing.assert_close(got.double(), wanted, rtol=2 * ULP + eps / 2, atol=tiny * eps)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_noise_loss_to_a_target(level: int, size: int, dtype: torch.dtype) -> None:
    """The mean squared error against t0 x0 + te eps, for each sample's row; the gradient has the reference's bits."""
    call = example("noise_loss", (3, size), dtype)
    exact, off = loss_to_target(call)
    # Sums in float64, rounded once: half an ulp.
    assert ((native.ops.noise_loss(**call).double() - exact).abs() <= off + ULP / 2 * exact).all()

    backward = {"grad": torch.tensor([1.0, -0.5, 3.0]), **call}
    assert_same_bits(
        run(native.ops, "noise_loss_backward", backward), run(reference, "noise_loss_backward", copied(backward))
    )


@pytest.mark.parametrize("kinds", list(itertools.permutations(FLOATS, 2)), ids=str)
def test_noise_loss_of_several_kinds(kinds: tuple[torch.dtype, torch.dtype]) -> None:
    """pred and x0 are widened exactly, each from its own dtype."""
    call = example("noise_loss", (3, 43), torch.float16)
    call["pred"], call["x0"] = (call[name].to(dtype) for name, dtype in zip(("pred", "x0"), kinds, strict=True))
    wide = {**call, "pred": call["pred"].float(), "x0": call["x0"].float()}
    assert_same_bits(run(native.ops, "noise_loss", call), run(native.ops, "noise_loss", wide))


def test_sums_do_not_depend_on_the_instruction_set(level: int) -> None:
    """Every instruction set adds in one order: the bits of the sums are those of the scalar kernels."""
    for name in ("noise_loss", "guidance_rescale", "inner_products", "threshold"):
        call = example(name, (2, 3, 41, 43), torch.bfloat16)
        got = run(native.ops, name, call)
        torch.ops.fastdiff.cpu_level(0)
        wanted = run(native.ops, name, call)
        torch.ops.fastdiff.cpu_level(level)
        assert_same_bits(got, wanted)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES[1:])
def test_guidance_rescale(level: int, size: int, dtype: torch.dtype) -> None:
    """phi std(out) / std(guided) + 1 - phi, from the guided output rounded to float32, as the step has it."""
    call = example("guidance_rescale", (3, size), dtype)
    # The same float32 numbers, summed in float64 both times: what is left is the rounding of the result.
    torch.testing.assert_close(
        native.ops.guidance_rescale(**call), reference.guidance_rescale(**call), rtol=ULP, atol=0
    )


def test_guidance_rescale_far_from_zero(level: int) -> None:
    """A mean a million times the deviation leaves the deviation: squares of the numbers themselves would not."""
    out = 2.0**20 + torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
    uncond, w = torch.full_like(out, 2.0**20), torch.tensor([3.0, 1.0])
    got = native.ops.guidance_rescale(out, uncond, w, 1.0)
    # guided - 2^20 is 3 (out - 2^20), rounded to a multiple of 1/8: 3000 errors of 0.04 on a deviation of 3.
    torch.testing.assert_close(got, torch.tensor([1 / 3, 1.0]), rtol=1e-3, atol=0)


def test_guidance_rescale_of_a_constant(level: int) -> None:
    """A guided output without deviation is not rescaled: the ratio is 1, not 0 / 0."""
    flat = torch.full((2, 300), 0.7)
    got = native.ops.guidance_rescale(flat, 2 * flat, torch.tensor([1.0, 3.0]), 0.7)
    assert got.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_inner_products(level: int, size: int, dtype: torch.dtype) -> None:
    """<c, c>, <c, c - u> and <c - u, c - u>, from the difference rounded to float32."""
    call = example("inner_products", (3, size), dtype)
    # The same numbers, summed in float64 both times: what is left is the rounding of the result, in both.
    assert_products_close(native.ops.inner_products(**call), reference.inner_products(**call), rtol=ULP)


def test_inner_products_of_outputs_that_are_close(level: int) -> None:
    """A difference of a millionth of the output keeps its digits: those of the squares' difference would be gone."""
    apart = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0)).round(decimals=3)
    out = 2.0**14 + torch.zeros_like(apart)
    c, u = out, out - 2.0**-6 * apart.round()  # exact, and so is their difference
    got = native.ops.inner_products(c, u)
    wanted = (2.0**-6 * apart.round()).double().square().sum(dim=1)
    torch.testing.assert_close(got[2].double(), wanted, rtol=ULP, atol=0)


def x0_of(x: Tensor, quantile: float, ops: Backend = native.ops) -> Tensor:
    """The threshold where x0 = x."""
    plan = Plan.build("x", [0.0], {"px": 1.0})
    row = torch.zeros(len(x), dtype=torch.int64)
    return ops.threshold(x, torch.zeros_like(x), table(plan), plan.layout, row, None, None, None, None, quantile)


@settings(deadline=None, max_examples=60)
@given(
    size=st.sampled_from(SIZES),
    seed=st.integers(0, 2**32 - 1),
    quantile=st.floats(0, 1),
    digits=st.sampled_from([0, 1, 7]),
)
def test_threshold_is_the_quantile(level: int, size: int, seed: int, quantile: float, digits: int) -> None:
    """NumPy's quantile of |x0|, with many ties (numbers of few digits) and with none."""
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)).round(decimals=digits)
    wanted = np.quantile(x.abs().double().numpy(), quantile, axis=1)
    # Interpolated in float64 and rounded once; NumPy's position in the order may differ by its own rounding.
    np.testing.assert_allclose(x0_of(x, quantile).numpy(), wanted, rtol=ULP, atol=1e-12)


def test_threshold_beside_infinity(level: int) -> None:
    """A quantile that is one of the numbers is that number, whatever stands above it."""
    x = torch.tensor([[3.0, -1.0, torch.inf, -2.0, -torch.inf]])
    for ops in (native.ops, reference):
        assert [x0_of(x, quantile, ops).item() for quantile in (0.0, 0.25, 0.5, 1.0)] == [1.0, 2.0, 3.0, torch.inf]
        assert not x0_of(x, 0.6, ops).isfinite()


def test_threshold_of_nan(level: int) -> None:
    """NaN is above everything: a quantile that reaches it is NaN, and one that does not is a number."""
    x = torch.tensor([[3.0, torch.nan, 1.0, -2.0, 4.0]])
    assert x0_of(x, 0.5).item() == 3.0
    assert x0_of(x, 1.0).isnan()


@pytest.mark.parametrize("dtype", FLOATS)
def test_threshold_of_a_step(level: int, dtype: torch.dtype) -> None:
    """Guidance, scale and the row's coefficients are in it: the bits of x0 are those that the step clips."""
    call = example("threshold", (3, 3, 17, 19), dtype)
    # The same order statistics; the reference interpolates in float32, in three roundings.
    torch.testing.assert_close(native.ops.threshold(**call), reference.threshold(**call), rtol=2 * ULP, atol=0)
