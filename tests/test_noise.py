"""Noise: bit equality with the known answers and with a slow NumPy version written from docs/noise.md."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fastdiff as fd
from fastdiff.noise import MAX_DRAW, MAX_SAMPLE, MAX_SEED, STREAMS
from tests.backends import each_backend
from tests.rounding import F, fma

# Known answers, made from docs/noise.md by an implementation other than this one.
TRUTH = json.loads((Path(__file__).parent / "truth" / "noise.json").read_text())["cases"]
LISTED = [case for case in TRUTH if "bits" in case]
SUMMED = [case for case in TRUTH if "sum_of_bits_mod_2_64" in case]


def bits(z: torch.Tensor) -> np.ndarray:
    return z.numpy().view(np.uint32)


def draw(case: dict, n: int, backend: str) -> torch.Tensor:
    where = {"seed": int(case["seed"]), "index": [int(case["sample"])], "step": case["draw"], "stream": case["stream"]}
    return fd.noise.normal((1, n), **where, backend=backend)


@each_backend
@pytest.mark.parametrize("case", LISTED, ids=lambda case: f"{case['stream']}-{case['seed']}-{case['sample']}")
def test_known_answers(case, backend):
    """The first normals of a sample have the published bits."""
    expected = [int(word, 16) for word in case["bits"]]
    assert bits(draw(case, len(expected), backend))[0].tolist() == expected


@each_backend
@pytest.mark.parametrize("case", SUMMED, ids=lambda case: f"{case['n']}")
def test_known_sum(case, backend):
    """A million normals have the published sum of bits, mean and variance."""
    z = draw(case, case["n"], backend)
    assert int(bits(z).astype(np.uint64).sum()) == int(case["sum_of_bits_mod_2_64"])
    # The published moments were summed in float64 too; 1e-9 allows another order of summation.
    assert z.double().mean().item() == pytest.approx(case["mean"], abs=1e-9)
    assert z.double().var(correction=0).item() == pytest.approx(case["var"], abs=1e-5)


# --- a second implementation, one number at a time, from the page ----------------------------------------------------

L = [-2.0, 0.9999997615814209, -0.6666837334632874, 0.5000414848327637, -0.39913666248321533]
L += [0.33124786615371704, -0.2990453541278839, 0.2873367965221405, -0.1744469851255417]
S = [0.7853981852531433, -0.08074543625116348, 0.00249000103212893, -3.5950448364019394e-05]
C = [0.9999999403953552, -0.308424174785614, 0.015849683433771133, -0.0003187278052791953]


def polynomial(coefficients, x):
    p = F(coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        p = fma(p, x, coefficient)
    return p


def slow_philox(counter, key):
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & 0xFFFFFFFF, (p0 >> 32) ^ c[3] ^ k[1], p0 & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def slow_pair(a, b):
    u = F((a >> 1) | 1)
    raw = int(u.view(np.uint32))
    e = (raw - 0x3F3504F3) >> 23
    f = np.uint32(raw - (e << 23)).view(F) - F(1)
    inside = fma(e - 31, -1.3862943611198906, polynomial(L, f) * f)
    r = F(math.sqrt(float(inside)))
    t = F(b - 2**32 if b >= 2**31 else b) * F(2.0**-31)
    t2 = t * t
    s, c = polynomial(S, t2) * t, polynomial(C, t2)
    c = -c if b & 2 else c
    s, c = (c, s) if b & 1 else (s, c)
    return [r * c, r * s]


def slow_normal(n, seed, sample, step, stream):
    out = []
    for quad in range((n + 3) // 4):
        counter = (quad, step, sample & 0xFFFFFFFF, STREAMS[stream] << 24 | (sample >> 32 & 0xFFFFFF))
        words = slow_philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
        out += slow_pair(*words[:2]) + slow_pair(*words[2:])
    return np.array(out[:n], dtype=F)


def test_philox_of_zero():
    """Counter 0 and key 0 give the words of Salmon et al.'s own known-answer test."""
    assert slow_philox((0, 0, 0, 0), (0, 0)) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


@each_backend
@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 21),
    seed=st.integers(0, MAX_SEED),
    sample=st.integers(0, MAX_SAMPLE),
    step=st.integers(0, MAX_DRAW),
    stream=st.sampled_from(sorted(STREAMS)),
)
def test_equals_the_slow_version(backend, n, seed, sample, step, stream):
    """0 differing bits against exact rational arithmetic, for any seed, sample, draw and stream."""
    z = fd.noise.normal((1, n), seed=seed, index=[sample], step=step, stream=stream, backend=backend)
    assert (bits(z)[0] == slow_normal(n, seed, sample, step, stream).view(np.uint32)).all()


# --- what follows from being a function ------------------------------------------------------------------------------


@each_backend
def test_a_batch_is_its_samples(backend):
    """A sample's noise does not depend on the batch it is drawn in, nor on the image's shape."""
    seeds, indices = [3, 3, 9, 9, 3], [0, 7, 0, 7, 2**40]
    whole = fd.noise.normal((5, 3, 4, 5), seeds, indices, step=[0, 1, 2, 3, 4], backend=backend)
    for b, (seed, index, step) in enumerate(zip(seeds, indices, range(5), strict=True)):
        alone = fd.noise.normal((1, 60), seed=seed, index=[index], step=step, backend=backend)
        assert torch.equal(whole[b].flatten(), alone[0])


@each_backend
def test_a_prefix_is_a_prefix(backend):
    """Odd sizes cut the last quad and change nothing before it."""
    longest = fd.noise.normal((2, 64), seed=1, backend=backend)
    for n in (0, 1, 2, 3, 5, 63):
        assert torch.equal(fd.noise.normal((2, n), seed=1, backend=backend), longest[:, :n])


def test_every_coordinate_matters():
    """Another seed, sample, draw or stream is other noise."""
    base = {"seed": 1, "index": [2], "step": 3, "stream": "step"}
    first = fd.noise.normal((1, 32), **base)
    for change in (
        {"seed": 2},
        {"seed": 1 + 2**32},
        {"index": [3]},
        {"index": [2 + 2**32]},
        {"step": 4},
        {"stream": "init"},
    ):
        assert not (first == fd.noise.normal((1, 32), **{**base, **change})).any()


def test_largest_magnitude():
    """The extreme words give the largest |z| that docs/noise.md states, and no NaN."""
    from fastdiff.ops.philox import normal_pair

    words = torch.tensor([0, 1, 2, 3, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF])
    first, second = normal_pair(words[:, None], words[None, :])
    z = torch.stack([first, second])
    assert z.isfinite().all()
    assert z.abs().max().item() == pytest.approx(6.56, abs=0.005)


def test_is_standard_normal():
    """Kolmogorov-Smirnov against N(0, 1) and correlations over 2^18 draws; the seed is fixed, so the result is too."""
    z = fd.noise.normal((4, 2**16), seed=11).double().numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    # A correlation of n independent pairs has standard deviation 1/sqrt(n) = 0.0039.
    assert np.abs(np.corrcoef(z) - np.eye(4)).max() < 5 * 2**-8
    quads = z.reshape(-1, 4)
    assert np.abs(np.corrcoef(quads.T) - np.eye(4)).max() < 5 * 2**-8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed must be between 0 and"),
        ({"seed": 2**64}, "seed must be between 0 and"),
        ({"seed": [1, 2, 3]}, "seed must be one number or one for each of 2 samples"),
        ({"seed": torch.tensor([0.5, 1.0])}, "seed must be whole numbers"),
        ({"seed": [1.7, 2.2]}, "seed must be whole numbers"),
        ({"seed": 1.5}, "seed must be whole numbers"),
        ({"index": 3}, "index needs one number for each of 2 samples"),
        ({"index": torch.tensor(3)}, "index needs one number for each of 2 samples"),
        ({"index": [0, 2**56]}, "index must be between 0 and"),
        ({"step": 2**32}, "step must be between 0 and"),
        ({"stream": "stp"}, "did you mean 'step'"),
        ({"shape": ()}, "shape must be"),
        ({"shape": (2, -1)}, "shape must be"),
        ({"backend": "egaer"}, "did you mean 'eager'"),
    ],
)
def test_bad_input(change, message):
    """What is out of range is refused with a line that names it."""
    arguments = {"shape": (2, 4), **change}
    with pytest.raises(fd.InputError, match=message):
        fd.noise.normal(**arguments)


def test_missing_backend():
    """A backend that cannot draw on the CPU is an error that says why, never a silent fall-back."""
    with pytest.raises(fd.BackendError, match="'cuda' is not available: "):
        fd.noise.normal((1, 4), backend="cuda")


def arc(a, b, t):
    """Spherical interpolation of two vectors: b turned into a's plane, in complex numbers."""
    x, y = a / np.linalg.norm(a), b / np.linalg.norm(b)
    angle = math.acos(np.clip(x @ y, -1, 1))
    across = (y - math.cos(angle) * x) / math.sin(angle)
    of_a, of_b = np.linalg.norm(a) * x, np.linalg.norm(b) * y
    along = math.cos(t * angle) * x + math.sin(t * angle) * across
    # The same point in terms of both ends: solve for their weights.
    weights = np.linalg.lstsq(np.stack([x, y], axis=1), along, rcond=None)[0]
    return weights[0] * of_a + weights[1] * of_b


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 1000), st.lists(st.floats(-0.5, 1.5), min_size=3, max_size=3))
def test_slerp_goes_along_the_great_circle(seed, t):
    """Each sample by its own t; the ends are the ends, and equal lengths stay."""
    a, b = (fd.noise.normal((3, 2, 5), seed=seed, step=step).double() for step in (0, 1))
    got = fd.noise.slerp(a, b, torch.tensor(t, dtype=torch.float64))
    expected = np.stack([arc(x, y, s) for x, y, s in zip(a.flatten(1).numpy(), b.flatten(1).numpy(), t, strict=True)])
    # An angle of 0.1 or more leaves all but two digits of float64's sixteen.
    np.testing.assert_allclose(got.flatten(1).numpy(), expected, rtol=0, atol=1e-11)
    for end, whole in ((a, 0.0), (b, 1.0)):
        torch.testing.assert_close(fd.noise.slerp(a, b, whole), end, rtol=1e-14, atol=1e-14)
    unit, other = (v / v.flatten(1).norm(dim=1).view(-1, 1, 1) for v in (a, b))
    lengths = fd.noise.slerp(unit, other, torch.tensor(t)).flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)


def test_slerp_of_parallel_samples_is_a_line():
    """Where there is no angle, nor one to choose (opposite samples, zeros), there is no NaN."""
    a = torch.ones(3, 4)
    got = fd.noise.slerp(a, torch.stack([2 * a[0], -a[1], 0 * a[2]]), 0.25)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor([1.25, 0.5, 0.75])[:, None].expand(3, 4), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(2, 3), torch.ones(2, 4), 0.5), "two tensors .* of one shape"),
        ((torch.ones(2), torch.ones(2), 0.5), "two tensors .* of one shape"),
        ((torch.ones(2, 3), torch.ones(2, 3).int(), 0.5), "slerp needs floats, got torch.float32 and torch.int32"),
        ((torch.ones(2, 3), torch.ones(2, 3), torch.ones(3)), r"t must be a number or have shape \(2,\), got \(3,\)"),
    ],
)
def test_slerp_refuses(arguments, message):
    """What does not fit costs one line."""
    with pytest.raises(fd.InputError, match=message):
        fd.noise.slerp(*arguments)
