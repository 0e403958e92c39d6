"""The Triton ops that reduce a sample to one number, against float64 and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.kernels import reductions as kernel
from fastdiff.kernels.launch import Launch
from fastdiff.kernels.launch import run as run_launch
from fastdiff.ops import reference
from fastdiff.plan import Plan
from tests.kernels.calls import LAYOUTS, moved
from tests.ops.cpu import FLOATS, assert_products_close, assert_same_bits, copied, differing, example, run
from tests.ops.plans import ROWS, table

SIZES = [2, 127, 4096, 9001]  # less than a part of a sample, whole ones, and several with an odd tail
ULP = torch.finfo(torch.float32).eps
# The parts of a deviation are float32: the numbers from which it is taken are shifted to a number of the sample, here
# at most 5 deviations from the mean, and rounded (5 ulp of the deviation); each square and its place in the sum are
# rounded at most 32 times in a row, half an ulp each. The root halves all that, and the ratio takes it twice.
RATIO_ERROR = (5 + 32 / 2) * ULP


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", SIZES)
def test_guidance_rescale(device: torch.device, size: int, dtype: torch.dtype) -> None:
    """phi std(out) / std(guided) + 1 - phi, from the guided output rounded to float32, as the step has it."""
    call = example("guidance_rescale", (3, size), dtype)
    got = kernel.guidance_rescale(**moved(call, device)).cpu()
    torch.testing.assert_close(got, reference.guidance_rescale(**call), rtol=RATIO_ERROR, atol=0)


def test_deviation_of_many_parts(device: torch.device) -> None:
    """Parts are merged in float64, however many there are and however far their means lie apart."""
    part, parts = 64, 1500
    random = torch.Generator().manual_seed(0)
    apart = torch.tensor([100.0, 3.0]) * torch.randn(2, parts, 1, 2, generator=random)
    values = (apart + torch.randn(2, parts, part, 2, generator=random)).double()  # last: conditional, guided
    mean = values.mean(dim=2)
    squares = (values - mean[:, :, None]).square().sum(dim=2)
    moments = torch.stack([mean, squares], dim=-1).float().to(device)
    factor = torch.empty(2, device=device)
    arguments = {"moments": moments, "factor": factor, "phi": 0.5, "parts": parts, "elements": parts * part}
    run_launch(Launch(kernel.rescale_kernel, (2, 1, 1), {**arguments, "PART": part, "BLOCK": 1024}))
    conditional, guided = values.flatten(1, 2).std(dim=1, correction=0).unbind(1)
    # The moments are rounded to float32, half an ulp each, and so is the result.
    torch.testing.assert_close(factor.cpu(), (0.5 * conditional / guided + 0.5).float(), rtol=2 * ULP, atol=0)


def test_guidance_rescale_far_from_zero(device: torch.device) -> None:
    """A mean a million times the deviation leaves the deviation: squares of the numbers themselves would not."""
    out = 2.0**20 + torch.randn(2, 9000, generator=torch.Generator().manual_seed(0))
    call = {"out": out, "uncond": torch.full_like(out, 2.0**20), "w": torch.tensor([3.0, 1.0]), "phi": 1.0}
    got = kernel.guidance_rescale(**moved(call, device)).cpu()
    # The numbers are exact in the reference, too, which sums them in float64.
    torch.testing.assert_close(got, reference.guidance_rescale(**call), rtol=RATIO_ERROR, atol=0)


def test_guidance_rescale_of_a_constant(device: torch.device) -> None:
    """A guided output without deviation is not rescaled: the ratio is 1, not 0 / 0."""
    flat = torch.full((2, 5000), 0.7, device=device)
    got = kernel.guidance_rescale(flat, 2 * flat, torch.tensor([1.0, 3.0], device=device), 0.7)
    assert got.tolist() == [1.0, 1.0]


def test_guidance_rescale_of_nan(device: torch.device) -> None:
    """NaN or infinity in one sample is seen in its factor, and in no other."""
    call = example("guidance_rescale", (3, 5000))
    call["out"][0, -1], call["uncond"][2, 0], call["w"][2] = torch.nan, torch.inf, 2.5
    got = kernel.guidance_rescale(**moved(call, device)).cpu()
    assert got.isfinite().tolist() == [False, True, False]


# A product is rounded, its place in the sum of its part at most 32 times in a row, and the result, half an ulp each.
PRODUCT_ERROR = (1 + 32 + 1) / 2 * ULP


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("size", [1, *SIZES])
def test_inner_products(device: torch.device, size: int, dtype: torch.dtype) -> None:
    """<c, c>, <c, c - u> and <c - u, c - u>, from the difference rounded to float32."""
    call = example("inner_products", (3, size), dtype)
    got = kernel.inner_products(**moved(call, device)).cpu()
    assert_products_close(got, reference.inner_products(**call), rtol=PRODUCT_ERROR)


def test_inner_products_of_nan(device: torch.device) -> None:
    """NaN or infinity in one sample is seen in its own products, and in no other's."""
    call = example("inner_products", (3, 5000))
    call["out"][0, -1], call["uncond"][2, 0] = torch.nan, torch.inf
    got = kernel.inner_products(**moved(call, device)).cpu()
    assert got.isfinite().tolist() == [[False, True, True], [False, True, False], [False, True, False]]


def x0_of(x: Tensor, quantile: float, device: torch.device) -> Tensor:
    """The threshold where x0 = x."""
    plan = Plan.build("x", [0.0], {"px": 1.0})
    row = torch.zeros(len(x), dtype=torch.int64)
    tensors = [value.to(device) for value in (x, torch.zeros_like(x), table(plan))]
    return kernel.threshold(*tensors, plan.layout, row.to(device), None, None, None, None, quantile).cpu()


@settings(deadline=None, max_examples=15)
@given(
    size=st.sampled_from([1, *SIZES]),
    seed=st.integers(0, 2**32 - 1),
    quantile=st.floats(0, 1) | st.sampled_from([0.0, 0.5, 1.0]),
    digits=st.sampled_from([0, 1, 7]),
)
def test_threshold_is_the_quantile(device: torch.device, size: int, seed: int, quantile: float, digits: int) -> None:
    """NumPy's quantile of |x0|, with many ties (numbers of few digits) and with none."""
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(seed)).round(decimals=digits)
    wanted = np.quantile(x.abs().double().numpy(), quantile, axis=1)
    # Interpolated in float64 between the same numbers: the fraction and the result are rounded to float32, half an ulp
    # each. NumPy's position in the order may differ by its own rounding.
    np.testing.assert_allclose(x0_of(x, quantile, device).numpy(), wanted, rtol=ULP, atol=1e-12)


@pytest.mark.parametrize("size", [2, 9001])
def test_threshold_of_an_order_statistic(device: torch.device, size: int) -> None:
    """A quantile that is one of the numbers is that number to the bit, the smallest and the largest among them."""
    x = torch.randn(2, size, generator=torch.Generator().manual_seed(0)) * 10.0 ** torch.arange(-30, 30, 60 / size)
    ordered = x.abs().sort(dim=1).values
    for rank in (0, size // 2, size - 1):
        quantile = rank / (size - 1)
        assert quantile * (size - 1) == rank
        assert differing(x0_of(x, quantile, device), ordered[:, rank]) == 0


def test_threshold_between_far_neighbours(device: torch.device) -> None:
    """The upper neighbour is found wherever it stands: the same number, near in the last bits, or far away."""
    for above in (1.0, 1.0 + ULP, 1.5, 1e30):
        x = torch.tensor([[above, 1.0, 0.5, -above]]).repeat(1, 1250)  # ranks 1250..2499 are 1, those above `above`
        wanted = np.float32((1.0 + above) / 2)
        np.testing.assert_allclose(x0_of(x, 2499.5 / 4999, device).numpy(), [wanted], rtol=ULP)


def test_threshold_beside_infinity(device: torch.device) -> None:
    """A quantile that is one of the numbers is that number, whatever stands above it."""
    x = torch.tensor([[3.0, -1.0, torch.inf, -2.0, -torch.inf]])
    got = [x0_of(x, quantile, device).item() for quantile in (0.0, 0.25, 0.5, 1.0)]
    assert got == [1.0, 2.0, 3.0, torch.inf]
    assert not x0_of(x, 0.6, device).isfinite()


def test_threshold_of_nan(device: torch.device) -> None:
    """NaN is above everything: a quantile that reaches it is NaN, and one that does not is a number."""
    x = torch.tensor([[3.0, torch.nan, 1.0, -2.0, -torch.nan], [0.0, -0.0, 1.0, 2.0, 3.0]])
    assert x0_of(x, 0.5, device).tolist() == [3.0, 1.0]
    top = x0_of(x, 1.0, device)
    assert top[0].isnan() and top[1] == 3.0


@pytest.mark.parametrize("dtype", FLOATS)
def test_threshold_of_a_step(device: torch.device, dtype: torch.dtype) -> None:
    """Guidance, scale and the row's coefficients are in it: the bits of x0 are those that the step clips."""
    call = example("threshold", (3, 3, 41, 43), dtype)
    for change in ({}, {"w_uncond": None}, {"scale": None}, {"uncond": None, "w": None}):
        got = kernel.threshold(**moved({**call, **change}, device)).cpu()
        # The same order statistics; the reference interpolates in float32, in three roundings.
        torch.testing.assert_close(got, reference.threshold(**{**call, **change}), rtol=2 * ULP, atol=0)
        exact = {**call, **change, "quantile": 1.0}
        assert_same_bits(run(kernel, "threshold", moved(exact, device)), run(reference, "threshold", copied(exact)))


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(2, 3, 1024, 1024), (70000, 5)], ids=str)
def test_large(device: torch.device, shape: tuple[int, ...]) -> None:
    """Samples of many parts, and more samples than a grid has rows: too much for the interpreter."""
    call = example("guidance_rescale", shape, torch.bfloat16)
    got = kernel.guidance_rescale(**moved(call, device)).cpu()
    torch.testing.assert_close(got, reference.guidance_rescale(**call), rtol=RATIO_ERROR, atol=0)
    call = example("inner_products", shape, torch.bfloat16)
    got = kernel.inner_products(**moved(call, device)).cpu()
    assert_products_close(got, reference.inner_products(**call), rtol=PRODUCT_ERROR)
    call = example("threshold", shape, torch.bfloat16)
    got = kernel.threshold(**moved(call, device)).cpu()
    torch.testing.assert_close(got, reference.threshold(**call), rtol=2 * ULP, atol=0)


@pytest.mark.parametrize("row", [-1, ROWS])
def test_row_outside_the_table(device: torch.device, row: int) -> None:
    """A row that the table does not have makes the threshold of its sample NaN, and no other."""
    call = example("threshold", (3, 43))
    call["row"][1] = row
    assert kernel.threshold(**moved(call, device)).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["guidance_rescale", "inner_products", "threshold"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_format(device: torch.device, name: str, layout: str) -> None:
    """However the elements of the image tensors lie, the bits are the same."""
    for shape in ((3, 4, 5, 6), (3, 4, 6, 8)):  # the second is of whole 16-byte accesses
        call = moved(example(name, shape, torch.bfloat16), device)
        images = {argument: LAYOUTS[layout](call[argument]) for argument in ("x", "out", "uncond") if argument in call}
        assert_same_bits(run(kernel, name, {**call, **images}), run(kernel, name, call))


@pytest.mark.parametrize("name", ["guidance_rescale", "inner_products", "threshold"])
def test_sample_does_not_depend_on_its_batch(device: torch.device, name: str) -> None:
    """A sample alone has the bits that it has in a batch."""
    call = moved(example(name, (3, 9001)), device)
    per_sample = ("x", "out", "uncond", "row", "w", "scale", "w_uncond")
    alone = {argument: value[1:2] for argument, value in call.items() if argument in per_sample}
    one = getattr(kernel, name)(**{**call, **alone})
    assert differing(one, getattr(kernel, name)(**call)[..., 1:2]) == 0


def test_empty(device: torch.device) -> None:
    """No samples give no numbers; samples without elements have no deviation and no quantile."""
    for name in ("guidance_rescale", "threshold"):
        assert getattr(kernel, name)(**moved(example(name, (0, 3, 4)), device)).shape == (0,)
    assert kernel.inner_products(**moved(example("inner_products", (0, 3, 4)), device)).shape == (3, 0)
    assert kernel.inner_products(**moved(example("inner_products", (2, 0)), device)).tolist() == [[0.0] * 2] * 3
    assert kernel.guidance_rescale(**moved(example("guidance_rescale", (2, 0)), device)).isnan().all()
    with pytest.raises(InputError, match="threshold needs samples with elements"):
        kernel.threshold(**moved(example("threshold", (2, 0)), device))


def test_refusals(device: torch.device) -> None:
    """What does not fit is refused in one line."""
    call = moved(example("threshold", (2, 43)), device)
    for change, message in (
        ({"quantile": 1.5}, "quantile must be in 0..1, got 1.5"),
        ({"w": None}, "uncond needs w"),
        ({"x": call["x"].double()}, "x must be float32"),
        ({"out": call["out"][:, :1]}, "out must have the shape"),
        ({"row": call["row"][:1]}, "row must be int64"),
        ({"table": call["table"][:, :1]}, r"table must be float32 \[rows,"),
    ):
        with pytest.raises(InputError, match=message):
            kernel.threshold(**{**call, **change})
    call = moved(example("guidance_rescale", (2, 43)), device)
    with pytest.raises(InputError, match="uncond must have the shape"):
        kernel.guidance_rescale(**{**call, "uncond": call["uncond"][:1]})
    with pytest.raises(InputError, match="uncond must have the shape"):
        kernel.inner_products(call["out"], call["uncond"][:1])
