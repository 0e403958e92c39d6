"""The noise of the Triton kernels: 0 differing bits from the specification."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.kernels import normal as kernel
from fastdiff.kernels import operands
from fastdiff.noise import MAX_DRAW, MAX_SAMPLE, MAX_SEED
from fastdiff.ops import reference
from fastdiff.ops.philox import STREAMS
from tests.kernels.calls import LAYOUTS, moved
from tests.ops.cpu import FLOATS, assert_same_bits, copied, differing, example, run

TRUTH = json.loads((Path(__file__).parents[1] / "truth" / "noise.json").read_text())["cases"]
MOST_INTERPRETED = 100_000  # elements that the interpreter draws in a moment


def drawn(
    device: torch.device, size: int, seed: int, sample: int, draw: int, stream: str, dtype: torch.dtype
) -> torch.Tensor:
    """The first normals of one sample, [1, size], from the kernel into memory full of NaN."""
    z = torch.full((1, size), torch.nan, dtype=dtype, device=device)
    key = torch.from_numpy(np.array([[seed], [sample]], dtype=np.uint64).view(np.int64)).to(device)
    kernel.normal_(z, key, torch.tensor([draw], device=device), STREAMS[stream])
    return z.cpu()


@pytest.mark.parametrize("case", TRUTH, ids=lambda case: f"{case['stream']}-{case['seed']}-{case['sample']}")
def test_known_answers(device: torch.device, case: dict[str, Any]) -> None:
    """The published bits, or their published sum."""
    size = case.get("n") or len(case["bits"])
    if size > MOST_INTERPRETED and device.type == "cpu":
        pytest.skip("the interpreter is slow")
    arguments = (int(case["seed"]), int(case["sample"]), case["draw"], case["stream"])
    bits = drawn(device, size, *arguments, torch.float32).numpy().view(np.uint32)[0]
    if "bits" in case:
        assert bits.tolist() == [int(word, 16) for word in case["bits"]]
    else:
        assert int(bits.astype(np.uint64).sum()) == int(case["sum_of_bits_mod_2_64"])


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.integers(1, 3000),
    seed=st.integers(0, MAX_SEED),
    sample=st.integers(0, MAX_SAMPLE),
    draw=st.integers(0, MAX_DRAW),
    stream=st.sampled_from(sorted(STREAMS)),
    dtype=st.sampled_from(FLOATS),
)
def test_any_size_and_key(
    device: torch.device, size: int, seed: int, sample: int, draw: int, stream: str, dtype: torch.dtype
) -> None:
    """Any seed, sample, draw and stream, cut at any element, rounded to any dtype."""
    key = torch.from_numpy(np.array([[seed], [sample]], dtype=np.uint64).view(np.int64))
    expected = torch.empty(1, size, dtype=dtype)
    reference.normal_(expected, key, torch.tensor([draw]), STREAMS[stream])
    assert differing(drawn(device, size, seed, sample, draw, stream, dtype), expected) == 0


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(3, 2, 1024), (2, 3, 41, 43), (5, 7)], ids=str)
def test_several_samples(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Whole blocks and an odd tail; each sample has its own key and draw."""
    call = example("normal_", shape, dtype)
    assert_same_bits(run(kernel, "normal_", moved(call, device)), run(reference, "normal_", copied(call)))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_any_memory_format(device: torch.device, layout: str) -> None:
    """However the elements lie, the noise of one is that of its place in C order."""
    call = example("normal_", (3, 4, 5, 6))
    placed = moved(call, device)
    placed["z"] = LAYOUTS[layout](placed["z"])
    assert_same_bits(run(kernel, "normal_", placed), run(reference, "normal_", copied(call)))


def test_one_draw_for_all(device: torch.device) -> None:
    """A draw that is expanded over the samples is read as such."""
    call = example("normal_", (3, 5, 7))
    call["draw"] = torch.tensor([9]).expand(3)
    placed = moved(call, device)
    placed["draw"] = torch.tensor([9], device=device).expand(3)
    assert_same_bits(run(kernel, "normal_", placed), run(reference, "normal_", copied(call)))


def test_more_samples_than_rows_of_programs(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the most that y can count, z counts on; programs beyond the last sample do nothing."""
    call = example("normal_", (5, 3, 43))
    monkeypatch.setattr(operands, "MOST_ROWS", 2)
    operands.blocks.cache_clear()
    got = run(kernel, "normal_", moved(call, device))
    operands.blocks.cache_clear()
    assert_same_bits(got, run(reference, "normal_", copied(call)))


def test_shared_memory_is_refused(device: torch.device) -> None:
    """Two samples cannot be written to one place."""
    call = moved(example("normal_", (2, 3, 5)), device)
    call["z"] = call["z"][:1].expand(2, 3, 5)
    with pytest.raises(InputError, match=r"^z is written, so its elements must not share memory: pass a copy$"):
        kernel.normal_(**call)


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (0,)])
def test_nothing_to_draw(device: torch.device, shape: tuple[int, ...]) -> None:
    """No samples, or samples without elements."""
    key, draw = torch.zeros(2, shape[0], dtype=torch.int64), torch.zeros(shape[0], dtype=torch.int64)
    kernel.normal_(torch.empty(shape, device=device), key.to(device), draw.to(device), 0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"z": torch.zeros(2, 3, 5).double()}, "z must be float32, bfloat16 or float16"),
        ({"z": torch.zeros(())}, "image tensors must have at least 1 dimension"),
        ({"key": torch.zeros(2, 3).long()}, "key must be int64 [2, 2]: seeds and sample indices"),
        ({"draw": torch.zeros(3).long()}, "draw must be int64 with one number for each of 2 samples"),
        ({"draw": torch.zeros(2).long().to("meta")}, "draw is on meta and the other tensors of the call on "),
        ({"stream": 256}, "stream must be 0..255, got 256"),
    ],
)
def test_refusals(device: torch.device, change: dict[str, Any], words: str) -> None:
    """One line that names the argument, and both devices."""
    call = example("normal_", (2, 3, 5))
    placed = moved(call, device)
    for name, value in change.items():
        on_meta = isinstance(value, torch.Tensor) and value.device.type == "meta"
        placed[name] = value if on_meta or not isinstance(value, torch.Tensor) else value.to(device)
    with pytest.raises(InputError) as caught:
        kernel.normal_(**placed)
    assert words in str(caught.value) and "\n" not in str(caught.value)
