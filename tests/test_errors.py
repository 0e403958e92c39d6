"""Checks of arguments: what they take, and the one line that says what was wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError, lookup, number, whole


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_whole_numbers(value: Any) -> None:
    """Every integer type, and both ends."""
    for least, most in ((1, None), (3, 3)):
        found = whole("steps", value, least, most)
        assert found == 3
        assert type(found) is int


@pytest.mark.parametrize("value", [2, 5, 3.0, np.float64(3), True, np.True_, "3", None, [3]])
def test_no_whole_numbers(value: Any) -> None:
    """Beyond the ends, and what is no integer, if only by type: bools too."""
    with pytest.raises(InputError) as caught:
        whole("order", value, 3, 4)
    assert str(caught.value) == f"order must be a whole number in 3..4, got {value!r}"
    with pytest.raises(InputError, match="order must be a whole number, at least 6, got 5"):
        whole("order", 5, 6)


@pytest.mark.parametrize("value", [1, 1.0, np.float32(1), np.int64(1)])
def test_numbers(value: Any) -> None:
    """Every type of real number, and both ends where they belong to the range."""
    for found in (number("eta", value), number("eta", value, 1, 1), number("eta", value, 0, above=True)):
        assert found == 1
        assert type(found) is float


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf, True, "1", None, 1j])
def test_no_numbers(value: Any) -> None:
    """Beyond the ends, not finite, or no number."""
    with pytest.raises(InputError) as caught:
        number("eta", value, 0)
    assert str(caught.value) == f"eta must be >= 0 and finite, got {value!r}"


def test_open_ends() -> None:
    """`above` and `below` leave out the ends."""
    with pytest.raises(InputError, match="snr must be > 0 and < 1, got 0"):
        number("snr", 0, 0, 1, above=True, below=True)
    with pytest.raises(InputError, match="snr must be >= 0 and < 1, got 1.0"):
        number("snr", 1.0, 0, 1, below=True)
    with pytest.raises(InputError, match="gamma must be finite, got -inf"):
        number("gamma", -math.inf)


@pytest.mark.parametrize("name", [None, 3, ["a"]])
def test_names_are_strings(name: Any) -> None:
    """What is no name is told the names."""
    with pytest.raises(InputError, match="colour must be a name, got .*: known are red, blue"):
        lookup("colour", name, {"red": 1, "blue": 2})
