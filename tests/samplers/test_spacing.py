"""Which levels are visited: the papers' formulas in exact fractions, by hand, and diffusers' lists."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import diffusers
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.errors import InputError
from fastdiff.samplers import spacing

untimed = settings(deadline=None)
counts = st.integers(1, 1500).flatmap(lambda T: st.tuples(st.just(T), st.integers(1, T)))

# The index of the i-th level that is visited, i = 1..S from the cleanest; round() is to even, as numpy's.
FORMULAS: dict[str, Callable[[int, int, int], int]] = {
    "leading": lambda T, S, i: (i - 1) * (T // S),
    "trailing": lambda T, S, i: round(Fraction(T * i, S)) - 1,
    "linspace": lambda T, S, i: round(Fraction((T - 1) * (i - 1), S - 1)) if S > 1 else T - 1,
    "linear": lambda T, S, i: T * i // S - 1,
    "quadratic": lambda T, S, i: max(i, T * i**2 // S**2) - 1,
}


@untimed
@given(count=counts, name=st.sampled_from(spacing.names()))
def test_levels_are_distinct_and_fall(count: tuple[int, int], name: str) -> None:
    """Any spacing of any S of any T levels gives S distinct indices within 0..T-1, noisiest first."""
    T, S = count
    levels = spacing.spaced(T, S, name)
    assert levels.shape == (S,)
    assert levels.dtype == np.int64
    assert (np.diff(levels) < 0).all()
    assert 0 <= levels[-1]
    assert levels[0] <= T - 1


@untimed
@given(count=counts)
def test_end_points(count: tuple[int, int]) -> None:
    """Leading ends at the cleanest level, the others start at the noisiest, linspace does both."""
    T, S = count
    first, last = {}, {}
    for name in spacing.names():
        levels = spacing.spaced(T, S, name)
        first[name], last[name] = levels[0], levels[-1]
    assert first == {**dict.fromkeys(first, T - 1), "leading": (S - 1) * (T // S)}
    assert last["leading"] == 0
    assert last["linspace"] == (0 if S > 1 else T - 1)


@untimed
@given(T=st.integers(1, 500), name=st.sampled_from(spacing.names()))
def test_every_level(T: int, name: str) -> None:
    """S = T, and steps=None, visit every level in every spacing."""
    np.testing.assert_array_equal(spacing.spaced(T, T, name), np.arange(T)[::-1])
    np.testing.assert_array_equal(spacing.spaced(T, None, name), np.arange(T)[::-1])


def exact(name: str, T: int, S: int) -> list[int]:
    return [FORMULAS[name](T, S, i) for i in range(S, 0, -1)]


@untimed
@given(count=counts, name=st.sampled_from(["leading", "linear", "quadratic"]))
def test_formulas(count: tuple[int, int], name: str) -> None:
    """The formulas of the papers, in whole numbers."""
    assert spacing.spaced(*count, name).tolist() == exact(name, *count)


def halves(name: str, T: int, S: int) -> bool:
    """Whether a level's exact value lies half-way between two indices, where rounding errors decide."""
    top, bottom = (T, S) if name == "trailing" else (T - 1, max(S - 1, 1))
    return Fraction(top, bottom).denominator % 2 == 0


@untimed
@given(count=counts, name=st.sampled_from(["trailing", "linspace"]))
def test_rounded_formulas(count: tuple[int, int], name: str) -> None:
    """Trailing and linspace round the exact value to the nearest index."""
    if not halves(name, *count):
        assert spacing.spaced(*count, name).tolist() == exact(name, *count)
    else:
        value = [Fraction(count[0] * i, count[1]) - 1 for i in range(count[1], 0, -1)]
        if name == "linspace":
            value = [Fraction((count[0] - 1) * i, count[1] - 1) for i in range(count[1] - 1, -1, -1)]
        distance = [abs(level - v) for level, v in zip(spacing.spaced(*count, name).tolist(), value, strict=True)]
        assert max(distance) == Fraction(1, 2)


def test_trailing_rounds_halves_to_even() -> None:
    """`round(T - i T/S) - 1` with halves to even before the 1 is taken off (Lin et al. 2023, Table 2), for T < 60."""
    for T in range(1, 60):
        for S in range(1, T + 1):
            assert spacing.spaced(T, S, "trailing").tolist() == exact("trailing", T, S), (T, S)


@pytest.mark.parametrize(
    ("name", "T", "S", "levels"),
    [
        # Lin et al. 2023, Table 2, T = 1000 and S = 10, less 1 as the table counts from 1.
        ("leading", 1000, 10, [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]),
        ("linspace", 1000, 10, [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]),
        ("trailing", 1000, 10, [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]),
        # Song et al. 2020, appendix D.2: tau = floor(10/3 i) = 3, 6, 10 and floor(10/9 i^2) = 1, 4, 10.
        ("linear", 10, 3, [9, 5, 2]),
        ("quadratic", 10, 3, [9, 3, 0]),
        # floor(10/64 i^2) = 0, 0, 1, 2, 3, 5, 7, 10, raised to 1..6 where it is below i.
        ("quadratic", 10, 8, [9, 6, 5, 4, 3, 2, 1, 0]),
        # S does not divide T.
        ("trailing", 10, 4, [9, 7, 4, 1]),  # 10, 7.5, 5, 2.5: halves go to even, then 1 is taken off
        ("leading", 10, 3, [6, 3, 0]),
        ("trailing", 10, 3, [9, 6, 2]),  # 10, 6.67, 3.33
        ("linspace", 10, 3, [9, 4, 0]),  # 4.5 goes to even
        ("linspace", 11, 4, [10, 7, 3, 0]),  # 6.67, 3.33
        ("leading", 7, 4, [3, 2, 1, 0]),
        # One step: only leading starts at clean data.
        ("leading", 10, 1, [0]),
        ("trailing", 10, 1, [9]),
        ("linspace", 10, 1, [9]),
        ("linear", 10, 1, [9]),
        ("quadratic", 10, 1, [9]),
        *((name, 1, 1, [0]) for name in FORMULAS),
    ],
)
def test_by_hand(name: str, T: int, S: int, levels: list[int]) -> None:
    """Small cases worked out by hand."""
    assert spacing.spaced(T, S, name).tolist() == levels


@pytest.mark.parametrize("T", [1, 2, 7, 30, 97, 100, 1000])
@pytest.mark.parametrize("name", ["leading", "trailing", "linspace"])
def test_equals_diffusers(name: str, T: int) -> None:
    """The same lists as diffusers, whether S divides T or not, but for its known defects."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=T, timestep_spacing=name, steps_offset=0)
    compared = 0
    for S in range(1, T + 1, max(T // 100, 1)):
        scheduler.set_timesteps(S)
        theirs = scheduler.timesteps.tolist()
        if name == "linspace" and S == 1:
            assert theirs == [0]  # one step from clean data, which is no sampler; ours starts at T - 1
            continue
        if len(theirs) == S + 1:
            assert theirs.pop() == -1  # np.arange with a fractional step overshoots; -1 is no level
        if name == "trailing" and halves(name, T, S):
            continue  # accumulated rounding decides theirs: see the next test
        assert theirs == spacing.spaced(T, S, name).tolist()
        compared += 1
    assert compared >= min(T, 45) // 2


@pytest.mark.parametrize("S", [16, 80, 400])
def test_trailing_equals_diffusers_at_halves(S: int) -> None:
    """Where T / S is exact in binary, so that both see true halves, diffusers rounds as we do."""
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    scheduler.set_timesteps(S)
    assert scheduler.timesteps.tolist() == spacing.spaced(1000, S, "trailing").tolist()


# --- chosen by hand


@untimed
@given(count=counts, name=st.sampled_from(spacing.names()))
def test_custom_takes_what_spaced_gives(count: tuple[int, int], name: str) -> None:
    """Levels that a spacing picked can be passed as a list, an array or whole floats."""
    T, S = count
    levels = spacing.spaced(T, S, name)
    for form in (levels, levels.tolist(), levels.astype(np.float64)):
        checked = spacing.custom(T, form)
        assert checked.dtype == np.int64
        np.testing.assert_array_equal(checked, levels)


@pytest.mark.parametrize(
    ("timesteps", "message"),
    [
        ([], "must be a non-empty list of whole numbers"),
        (3, "must be a non-empty list of whole numbers"),
        ([[3, 2]], "must be a non-empty list of whole numbers"),
        ([3, 1.5], "must be a non-empty list of whole numbers"),
        ([10, 3], r"must fall strictly within 9..0 \(noisiest first\)"),
        ([3, -1], r"must fall strictly within 9..0"),
        ([3, 3], r"must fall strictly within 9..0"),
        ([3, 5], r"must fall strictly within 9..0"),
    ],
)
def test_bad_timesteps(timesteps: Any, message: str) -> None:
    """A list that no plan can follow is refused with its reason."""
    with pytest.raises(InputError, match=message):
        spacing.custom(10, timesteps)


@pytest.mark.parametrize("timesteps", [[float("nan")], [float("inf")], ["a"], [[2, 1], [0]]])
def test_timesteps_that_are_no_numbers(timesteps: Any) -> None:
    """What is not even a number is refused with the same line."""
    with pytest.raises(InputError, match="must be a non-empty list of whole numbers"):
        spacing.custom(10, timesteps)


@pytest.mark.parametrize("steps", [0, -1, 11])
def test_bad_steps(steps: int) -> None:
    """There is no plan without steps, and none with more steps than levels."""
    for name in spacing.names():
        with pytest.raises(InputError, match=f"steps must be a whole number in 1..10, got {steps}"):
            spacing.spaced(10, steps, name)


def test_bad_distilled_steps() -> None:
    """The levels of a distilled model are a part of the schedule's, and those visited a part of them."""
    with pytest.raises(InputError, match="original_steps must be a whole number in 1..10, got 11"):
        spacing.distilled(10, 4, 11)
    with pytest.raises(InputError, match="steps must be a whole number in 1..5, got None"):
        spacing.distilled(10, None, 5)  # type: ignore[arg-type]


def test_unknown_spacing() -> None:
    """A wrong name gets the nearest one."""
    with pytest.raises(InputError, match="unknown spacing 'trailling': did you mean 'trailing'"):
        spacing.spaced(10, 5, "trailling")
