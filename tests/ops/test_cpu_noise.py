"""The noise of the C++ kernels, and the forward process that draws it: 0 differing bits from the specification."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.noise import MAX_DRAW, MAX_SAMPLE, MAX_SEED
from fastdiff.ops import native, reference
from fastdiff.ops.philox import STREAMS
from tests.ops.cpu import FLOATS, assert_same_bits, copied, cpu_backend, differing, example, run

pytestmark = cpu_backend

TRUTH = json.loads((Path(__file__).parents[1] / "truth" / "noise.json").read_text())["cases"]


def drawn(
    size: int, seed: int, sample: int, draw: int, stream: str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """The first normals of one sample, [1, size], from the kernel into memory full of NaN."""
    z = torch.full((1, size), torch.nan, dtype=dtype)
    key = torch.from_numpy(np.array([[seed], [sample]], dtype=np.uint64).view(np.int64))
    native.ops.normal_(z, key, torch.tensor([draw]), STREAMS[stream])
    return z


@pytest.mark.parametrize("case", TRUTH, ids=lambda case: f"{case['stream']}-{case['seed']}-{case['sample']}")
def test_known_answers(level: int, case: dict) -> None:
    """Every instruction set gives the published bits, or their published sum."""
    size = case.get("n") or len(case["bits"])
    z = drawn(size, int(case["seed"]), int(case["sample"]), case["draw"], case["stream"])
    bits = z.numpy().view(np.uint32)[0]
    if "bits" in case:
        assert bits.tolist() == [int(word, 16) for word in case["bits"]]
    else:
        assert int(bits.astype(np.uint64).sum()) == int(case["sum_of_bits_mod_2_64"])


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(1, 1000),
    seed=st.integers(0, MAX_SEED),
    sample=st.integers(0, MAX_SAMPLE),
    draw=st.integers(0, MAX_DRAW),
    stream=st.sampled_from(sorted(STREAMS)),
    dtype=st.sampled_from(FLOATS),
)
def test_any_size_and_key(
    level: int, size: int, seed: int, sample: int, draw: int, stream: str, dtype: torch.dtype
) -> None:
    """Any seed, sample, draw and stream, cut at any element, rounded to any dtype."""
    key = torch.from_numpy(np.array([[seed], [sample]], dtype=np.uint64).view(np.int64))
    expected = torch.empty(1, size, dtype=dtype)
    reference.normal_(expected, key, torch.tensor([draw]), STREAMS[stream])
    assert differing(drawn(size, seed, sample, draw, stream, dtype), expected) == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("given", [False, True], ids=["drawn", "given"])
@pytest.mark.parametrize(
    "shape",
    [
        (1,),  # a sample is one number
        (3, 128),  # one whole block of the kernels
        (2, 3, 43),  # a block and one element
        (5, 3, 7, 11),  # odd throughout
    ],
)
def test_q_sample(level: int, shape: tuple[int, ...], given: bool, dtype: torch.dtype) -> None:
    """x_t and the noise have the bits of the reference, with noise that is drawn and that is given."""
    for name in ("q_sample", "q_sample_out"):
        call = example(name, shape, dtype)
        if given:
            call["noise"], call["drawn"] = torch.randn(shape, generator=torch.Generator().manual_seed(1)), None
        if name == "q_sample":
            call.pop("drawn", None)
        assert_same_bits(run(native.ops, name, copied(call)), run(reference, name, copied(call)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_q_sample_error(level: int, dtype: torch.dtype) -> None:
    """The error against float64 is at most twice that of the same formula in low precision (flash-attention's rule)."""
    call = example("q_sample", (4, 3, 32, 32), dtype)
    x_t, eps = native.ops.q_sample(**call)
    alpha, sigma = call["table"][call["level"]].reshape(-1, 2, 1, 1, 1).unbind(1)
    exact = alpha.double() * call["x0"].double() + sigma.double() * eps.double()
    plain = alpha.to(dtype) * call["x0"] + sigma.to(dtype) * eps.to(dtype)
    assert (x_t - exact).abs().max() <= 2 * (plain - exact).abs().max()


def test_given_noise_can_be_copied(level: int) -> None:
    """`drawn` gets the noise that was given, too, from the kernels as from the specification."""
    for ops in (native.ops, reference):
        call = example("q_sample_out", (2, 3, 43))
        call["noise"] = torch.randn(2, 3, 43)
        ops.q_sample_out(**call)
        assert torch.equal(call["drawn"], call["noise"])
