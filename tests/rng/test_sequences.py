"""Noise along each coordinate of its counter and key is a sequence of independent N(0, 1): 3e8 draws, about 10 s."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from tests.rng import draws, nulls
from tests.rng.nulls import implausible
from tests.rng.statistics import POLAR, Statistics, polar_cells

ALONG_EACH = pytest.mark.parametrize("coordinate", draws.WALKS)


@functools.cache
def measured(coordinate: str) -> Statistics:
    statistics = Statistics()
    for block in draws.walk(coordinate):
        statistics.add(block)
    return statistics


@ALONG_EACH
def test_moments(coordinate):
    """Moments 1 to 8 are those of N(0, 1)."""
    assert not implausible(measured(coordinate).moments())


@ALONG_EACH
def test_distribution(coordinate):
    """The distribution is N(0, 1), by chi-square and Kolmogorov-Smirnov."""
    assert not implausible(measured(coordinate).distribution())


@ALONG_EACH
def test_tails(coordinate):
    """As many draws lie beyond 3, 4, 5 and 6 as should."""
    assert not implausible(measured(coordinate).tails())


@ALONG_EACH
def test_quads(coordinate):
    """Four in a row are jointly independent; along "element" they are the quad of one Philox call."""
    assert not implausible(measured(coordinate).quads())


@ALONG_EACH
def test_correlations(coordinate):
    """Values and squares are uncorrelated at any two places of a frame of 64, and so at lags 1 to 63."""
    assert not implausible(measured(coordinate).correlations())


@ALONG_EACH
def test_long_lags(coordinate):
    """Values and squares are uncorrelated at the lags 64, 128, 256, ... 2^20."""
    assert not implausible(measured(coordinate).long_lags())


@pytest.mark.parametrize(("i", "j"), list(itertools.combinations(range(4), 2)))
def test_angle_and_radius(i, j):
    """Angle and radius of any two elements of a quad, from one Box-Muller or two, are independent and uniform."""
    quads = next(draws.walk("element")).view(-1, 4)
    cells = torch.bincount(polar_cells(quads[:, i], quads[:, j]), minlength=POLAR**2)
    assert not implausible({"chi-square": nulls.of_cells(cells.numpy())})
