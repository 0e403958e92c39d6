"""Noise levels by sigma / alpha, against their papers' formulas and scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff import schedules
from fastdiff.errors import InputError
from fastdiff.samplers import sigmas
from fastdiff.samplers.levels import visited

untimed = settings(deadline=None)
EPS = np.finfo(np.float64).eps


@untimed
@given(
    name=st.sampled_from(sigmas.names()),
    steps=st.integers(2, 60),
    low=st.floats(1e-3, 0.5),
    span=st.floats(10, 1e4),
)
def test_falls_from_end_to_end(name: str, steps: int, low: float, span: float) -> None:
    """Every spacing falls strictly from sigma_max to sigma_min, or says that it cannot."""
    # The quadratic through (0, 0), (end, log(1 + sigma_min^2)) and (1, log(1 + sigma_max^2)) falls at 1 beyond this.
    if name == "vp" and math.log1p(low**2) > 1.999e-3 * math.log1p((low * span) ** 2):
        with pytest.raises(InputError, match="sigmas of 'vp' do not fall to sigma_min"):
            sigmas.vp(steps, low, low * span)
        return
    found = sigmas.SPACINGS[name](steps, low, low * span)
    assert found.shape == (steps,)
    assert (np.diff(found) < 0).all()
    # Roots, exponentials and their inverses; "vp" finds the small end as a difference of the size of the large one,
    # log(1 + sigma^2) <= 17, below which sigma^2 >= 1e-6 keeps 9 digits; "beta" as one of sigma_max.
    assert found[[0, -1]] == pytest.approx([low * span, low], rel=1e-8)


@untimed
@given(
    p=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    a=st.floats(0.2, 5),
    b=st.floats(0.2, 5),
)
def test_beta_quantile(p: list[float], a: float, b: float) -> None:
    """The beta distribution's quantile, by its distribution function, at any shape and probability."""
    found = sigmas.beta_quantile(np.array(p), a, b)
    assert ((0 <= found) & (found <= 1)).all()
    # Where the density is large, the next number to the quantile may be as far off in p: both neighbours enclose p.
    low, high = (scipy.stats.beta.cdf(np.clip(found + sign * 4 * EPS, 0, 1), a, b) for sign in (-1, 1))
    assert ((low - 1e-13 <= p) & (p <= high + 1e-13)).all()


@pytest.mark.parametrize(("a", "b"), [(0.6, 0.6), (0.5, 0.5), (1.0, 1.0), (2.0, 0.3)])
def test_beta(a: float, b: float) -> None:
    """Lee et al. 2024: sigma_min + (sigma_max - sigma_min) ppf(1 - i / (S - 1)), with scipy's quantiles."""
    quantiles = scipy.stats.beta.ppf(1 - np.linspace(0, 1, 12), a, b)
    np.testing.assert_allclose(sigmas.beta(12, 0.02, 10.0, a, b), 0.02 + 9.98 * quantiles, rtol=1e-13)
    if (a, b) == (1.0, 1.0):
        np.testing.assert_allclose(sigmas.beta(12, 0.02, 10.0, a, b), sigmas.linear_sigma(12, 0.02, 10.0), rtol=1e-13)


def test_formulas() -> None:
    """Karras et al. 2022, eq. 5; k-diffusion's exponential and polyexponential; each at i of S."""
    for i, u in enumerate(np.linspace(0, 1, 6)):
        karras = (5 ** (1 / 7) + u * (0.1 ** (1 / 7) - 5 ** (1 / 7))) ** 7
        assert sigmas.karras(6, 0.1, 5)[i] == pytest.approx(karras, rel=1e-14)
        for rho in (1.0, 0.7, 2.0):
            exponential = math.exp((1 - u) ** rho * (math.log(5) - math.log(0.1)) + math.log(0.1))
            assert sigmas.exponential(6, 0.1, 5, rho)[i] == pytest.approx(exponential, rel=1e-14)
        assert sigmas.linear_sigma(6, 0.1, 5)[i] == pytest.approx(5 + u * (0.1 - 5), rel=1e-14)


def test_vp() -> None:
    """sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t from 1 to 1e-3; beta_d = 19.9, beta_min = 0.1: Song et al. 2021."""
    t = np.linspace(1, 1e-3, 10)
    expected = np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)
    np.testing.assert_allclose(sigmas.vp(10, expected[-1], expected[0]), expected, rtol=1e-10)
    # The schedule `vp` has these levels at its own times.
    schedule = schedules.vp(1000)
    ratio = (schedule.sigma / schedule.alpha)[[999, 499, 0]]
    np.testing.assert_allclose(np.sqrt(np.expm1([10.05, 19.9 / 8 + 0.05, 19.9e-6 / 2 + 1e-4])), ratio, rtol=1e-12)


def test_flow() -> None:
    """t falls evenly from 1, where sigma / alpha is infinite; shifted and stretched; t / (1 - t) is the ratio."""
    found = sigmas.flow(5, 0.25 / 0.75)
    np.testing.assert_allclose(1 - 1 / (1 + found), [1, 13 / 16, 10 / 16, 7 / 16, 1 / 4], rtol=4 * EPS)
    shifted = 1 - 1 / (1 + sigmas.flow(5, 0.25 / 0.75, shift=2.0))
    np.testing.assert_allclose(shifted, [2 * t / (1 + t) for t in (1, 13 / 16, 10 / 16, 7 / 16, 1 / 4)], rtol=4 * EPS)
    stretched = 1 - 1 / (1 + sigmas.flow(5, 0.25 / 0.75, shift=2.0, terminal=0.1))
    np.testing.assert_allclose(1 - stretched, (1 - shifted) * 0.9 / (1 - shifted[-1]), rtol=8 * EPS)
    # Given as sigmas it begins in pure noise, and the network is asked in between the schedule's times.
    levels = visited(schedules.flow(100), None, sigmas=sigmas.flow(4, 0.01 / 0.99))
    np.testing.assert_allclose([level.sigma for level in levels], [1, 0.67, 0.34, 0.01, 0], rtol=1e-14)
    assert [level.time for level in levels[:4]] == pytest.approx([99, 66, 33, 0], abs=1e-12)


def test_align_your_steps() -> None:
    """10 steps are the paper's table; for others log sigma is interpolated over it and the level below it."""
    for model, ends in {"sd15": (14.615, 0.152), "sdxl": (14.615, 0.113), "svd": (700.0, 0.034)}.items():
        table = sigmas.ays(10, model)
        assert table[[0, -1]] == pytest.approx(ends, rel=1e-14)
        np.testing.assert_allclose(sigmas.ays(5, model), table[::2], rtol=1e-14)
        np.testing.assert_allclose(sigmas.ays(20, model)[1:19:2], np.sqrt(table[:-1] * table[1:]), rtol=1e-14)
        assert len(fd.samplers.ddim(schedules.scaled_linear(), sigmas=table)) == 10
    with pytest.raises(InputError, match="unknown model 'sd': did you mean"):
        sigmas.ays(10, "sd")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"spacing": "karas"}, "unknown spacing 'karas': did you mean 'karras'"),
        ({"spacing": "karras", "steps": 0}, "steps must be a whole number, at least 1, got 0"),
        ({"spacing": "beta", "sigma_max": 1e-3}, "sigmas need 0 < sigma_min < sigma_max"),
        ({"sigmas": [1.0, 2.0]}, "sigmas must fall strictly and stay above 0; leave out the final 0"),
        ({"sigmas": [math.inf, math.inf]}, "sigmas must fall strictly"),
        ({"sigmas": [2.0, 0.0]}, "sigmas must fall strictly and stay above 0; leave out the final 0"),
        ({"sigmas": [math.nan]}, "sigmas must be a non-empty list of numbers"),
        ({"sigmas": []}, "sigmas must be a non-empty list of numbers"),
        ({"sigmas": "karras"}, "sigmas must be a non-empty list of numbers"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    """Each wrong argument gets one line."""
    with pytest.raises(InputError, match=message) as caught:
        fd.samplers.ddim(schedules.linear(), **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (sigmas.karras, {"rho": 0.0}, "rho must be > 0 and finite, got 0.0"),
        (sigmas.exponential, {"rho": -1.0}, "rho must be > 0 and finite, got -1.0"),
        (sigmas.beta, {"a": -1.0}, "a must be > 0 and finite, got -1.0"),
        (sigmas.beta, {"b": math.nan}, "b must be > 0 and finite, got nan"),
        (sigmas.vp, {"end": 1.0}, "end must be > 0 and < 1, got 1.0"),
        (sigmas.flow, {"shift": -1.0}, "shift must be > 0 and finite, got -1.0"),
        (sigmas.flow, {"terminal": 2.0}, "terminal must be > 0 and < 1, got 2.0"),
    ],
)
def test_bad_shapes(function: Any, options: dict[str, Any], message: str) -> None:
    """Each function refuses what its formula does not take."""
    with pytest.raises(InputError, match=message):
        function(4, 0.1, 10.0, **options)
    with pytest.raises(InputError, match="steps must be a whole number, at least 1, got 0"):
        sigmas.ays(0)


@pytest.mark.parametrize("name", sigmas.names())
def test_pure_noise_has_no_sigma(name: str) -> None:
    """No spacing by sigma begins at an infinite sigma / alpha: one is told what to do."""
    options = {"steps": 4, "spacing": name, "prediction": "flow"}
    with pytest.raises(InputError, match="cannot begin in pure noise: give sigma_max, or take spacing='trailing'"):
        fd.samplers.ddim(schedules.flow(100), **options)
    assert len(fd.samplers.ddim(schedules.flow(100), sigma_max=50.0, **options)) == 4


def test_default_spacing() -> None:
    """Karras', but "trailing" from pure noise, which follows the shift of a flow, and for a schedule of one level."""
    schedule = schedules.linear(100)
    assert visited(schedule, 4) == visited(schedule, 4, "karras")
    assert visited(schedule.zero_terminal_snr(), 4) == visited(schedule.zero_terminal_snr(), 4, "trailing")
    assert visited(schedules.flow(100), 4, sigma_max=9.0) == visited(schedules.flow(100), 4, "karras", sigma_max=9.0)
    # 3 t / (2 t + 1) at t = 1, 3/4, 1/2, 1/4.
    shifted = [level.sigma for level in visited(schedules.flow(100, 3.0), 4)]
    assert shifted == pytest.approx([1, 0.9, 0.75, 0.5, 0], rel=4 * EPS)
    assert [level.sigma for level in visited(schedules.linear(1), 1)] == [0.01, 0.0]
