"""LMS against diffusers, every state of whole loops."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import pytest

from fastdiff.errors import InputError
from tests.integrations.loops import TOLERANCE, error, pair, states

NAME = "LMSDiscreteScheduler"
SPACINGS = ["linspace", "leading", "trailing"]
SIGMAS: list[dict[str, Any]] = [
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
    {"beta_schedule": "scaled_linear", "steps_offset": 1},
]
# Diffusers turns tensors into arrays in a way of before numpy 2, and asks quadrature of scipy for more than it has.
pytestmark = pytest.mark.filterwarnings("ignore:__array", "ignore:The occurrence of roundoff")


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_state(spacing: str) -> None:
    turns = zip(SIGMAS, cycle(["epsilon", "v_prediction", "sample"]), cycle([5, 13, 9, 8]), cycle([4, 3, 1, 2]))
    for sigmas, predicts, steps, order in turns:
        config = {"prediction_type": predicts, "timestep_spacing": spacing, **sigmas}
        mine, theirs = pair(NAME, **config)
        found, expected = (states(scheduler, steps, order=order) for scheduler in (mine, theirs))
        assert error(found, expected) < TOLERANCE, (config, steps, order)


def test_all_counts() -> None:
    for steps, spacing in zip(range(6, 51, 11), cycle(SPACINGS)):
        mine, theirs = pair(NAME, timestep_spacing=spacing)
        assert error(states(mine, steps), states(theirs, steps)) < TOLERANCE, steps


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("first", [1, 2, 6])
def test_beginning_in_the_middle(order: int, first: int) -> None:
    """Diffusers weighs the eps of levels that were not visited, and leaves them out of the sum."""
    mine, theirs = pair(NAME, timestep_spacing="trailing")
    found, expected = (states(scheduler, 9, first=first, order=order) for scheduler in (mine, theirs))
    assert error(found, expected) < TOLERANCE


@pytest.mark.parametrize("order", [0, 5])
def test_order_is_one_to_four(order: int) -> None:
    mine, _ = pair(NAME)
    with pytest.raises(InputError, match=r"order must be a whole number in 1\.\.4"):
        states(mine, 5, order=order)
