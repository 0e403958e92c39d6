"""Euler's method against Karras et al. 2022, Algorithm 2, without its second stage, and ancestral against DDPM."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fastdiff as fd
from fastdiff.errors import InputError
from fastdiff.samplers import ddim, ddpm, euler, euler_ancestral
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, TOLERANCE, error, levels, noise, slope, start, states
from tests.samplers.loops import LINEAR, denoiser, gaussian, trajectory

STEPS = 8


@EVERY_SYSTEM
@pytest.mark.parametrize("churn", [(0.0, 0.0, math.inf, 1.0), (2.0, 0.05, 20.0, 1.01), (80.0, 0.0, math.inf, 0.9)])
@pytest.mark.parametrize("clip", [None, 0.5])
def test_is_the_papers_loop(schedule: Schedule, churn: tuple[float, float, float, float], clip: float | None) -> None:
    """Raise the level by noise, then step down; the first rise is in the start state."""
    plan = euler(schedule, STEPS, *churn, prediction="x0", clip=clip)
    amount, low, high, scale = churn
    s, direction = levels(schedule, STEPS), slope(schedule, clip or math.inf)
    x, expected = start(plan), []
    for i in range(STEPS):
        gamma = min(amount / STEPS, math.sqrt(2) - 1) if low <= s[i] <= high else 0.0
        hat = s[i] * (1 + gamma)
        if i:
            x = x + math.sqrt(hat**2 - s[i] ** 2) * scale * noise(i - 1)
            expected.append(x)
        assert plan.sigma[i] / plan.alpha[i] == pytest.approx(hat, rel=1e-12)  # some last digits
        x = x + (s[i + 1] - hat) * direction(x, hat)
    assert error(states(plan), [*expected, x]) < TOLERANCE
    assert len(plan) == STEPS


@pytest.mark.parametrize(
    "schedule", [LINEAR, fd.schedules.karras(1000), fd.schedules.flow(1000)], ids=["vp", "ve", "flow"]
)
@pytest.mark.parametrize("options", [{}, {"clip": None}, {"rederive_eps": False}, {"final": "sigma_min"}])
def test_is_ddim(schedule: Schedule, options: dict[str, Any]) -> None:
    """Without churn or ancestral noise the table is DDIM's, in every schedule, also from pure noise."""
    same = {"spacing": "trailing", "prediction": "flow", **options}
    expected = ddim(schedule, 13, **same)
    for plan in (euler(schedule, 13, **same), euler_ancestral(schedule, 13, eta=0.0, **same)):
        assert plan.columns == expected.columns
        # alpha (sigma / alpha) may miss sigma by a last digit.
        np.testing.assert_allclose(plan.table, expected.table, rtol=1e-14)


@pytest.mark.parametrize("schedule", [LINEAR, fd.schedules.karras(1000)], ids=["vp", "ve"])
def test_start_holds_the_first_churn(schedule: Schedule) -> None:
    """The start state is noise of the first level, and on it the noise that raises it, times churn_noise."""
    for scale in (1.0, 0.9):
        plan = euler(schedule, 4, churn=4.0, churn_noise=scale, spacing="trailing")
        level, hat = schedule.sigma[-1] / schedule.alpha[-1], plan.sigma[0] / plan.alpha[0]
        first = 1 / schedule.alpha[-1] if schedule.variance_preserving else level
        expected = plan.alpha[0] * math.sqrt(first**2 + scale**2 * (hat**2 - level**2))
        assert hat == pytest.approx(math.sqrt(2) * level)
        assert plan.init_scale == pytest.approx(expected)


def test_churn_beyond_the_schedule_asks_its_noisiest_time() -> None:
    """There is no later time to ask the network for."""
    plan = euler(LINEAR, 4, churn=4.0, spacing="trailing")
    assert plan.t[0] == 999
    assert plan.sigma[0] / plan.alpha[0] > LINEAR.sigma[-1] / LINEAR.alpha[-1]


@EVERY_SYSTEM
@pytest.mark.parametrize("eta", [0.3, 1.0, 1.4])
def test_ancestral_loop(schedule: Schedule, eta: float) -> None:
    """s_up = min(s', eta sqrt(s'^2 (s^2 - s'^2) / s^2)), s_down^2 = s'^2 - s_up^2: down, and up by noise."""
    plan = euler_ancestral(schedule, STEPS, eta, prediction="x0", clip=None)
    s, direction = levels(schedule, STEPS), slope(schedule)
    x, expected = start(plan), []
    for i in range(STEPS):
        up = min(s[i + 1], eta * math.sqrt(s[i + 1] ** 2 * (s[i] ** 2 - s[i + 1] ** 2) / s[i] ** 2))
        x = x + (math.sqrt(s[i + 1] ** 2 - up**2) - s[i]) * direction(x, s[i]) + up * noise(i)
        expected.append(x)
    assert error(states(plan), expected) < TOLERANCE


@pytest.mark.parametrize(
    "schedule", [LINEAR, fd.schedules.karras(1000), LINEAR.zero_terminal_snr()], ids=["vp", "ve", "zero-snr"]
)
def test_ancestral_is_ddpm(schedule: Schedule) -> None:
    """eta = 1 is DDPM with beta~, state by state, on any subsequence and from pure noise."""
    same = {"spacing": "trailing", "prediction": "v"}
    model = denoiser(schedule, "v")
    x = gaussian(3, 5) * schedule.sigma[-1]

    def run(plan: fd.Plan) -> Tensor:
        return trajectory(model, plan, x)[0]

    difference = run(euler_ancestral(schedule, 13, **same)) - run(ddpm(schedule, 13, **same))
    assert difference.abs().max() < 1e-11  # states of up to 80, and what rounding is multiplied by on the way down


@given(st.floats(0, 2), st.floats(1e-3, 1e3), st.floats(1e-3, 0.999))
def test_ancestral_keeps_the_level(eta: float, now: float, share: float) -> None:
    """What goes down and what comes up add to the next level's variance, for any eta and any two levels."""
    plan = euler_ancestral(fd.schedules.karras(100), eta=eta, sigmas=[now, now * share])
    down, up = plan.column("ce")[0], plan.column("cz")[0]
    assert math.hypot(down, up) == pytest.approx(now * share, rel=1e-12)  # some last digits
    assert 0 <= down <= now * share * (1 + 1e-12)


def test_churn_acts_at_both_ends() -> None:
    """churn_min = churn_max = one level raises that level alone (Karras et al. 2022, Algorithm 2: a closed range)."""
    schedule, timesteps = fd.schedules.karras(100), [90, 50, 20]
    level = schedule.sigma[50]
    plan = euler(schedule, churn=0.3, churn_min=level, churn_max=level, timesteps=timesteps)
    np.testing.assert_allclose(plan.sigma[:3], schedule.sigma[timesteps] * [1, 1.1, 1], rtol=1e-12)  # last digits


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": -1.0}, "churn must be >= 0 and finite, got -1.0"),
        ({"churn": math.nan}, "churn must be >= 0"),
        ({"churn": 1.0, "churn_noise": 0.0}, "churn_noise must be > 0 and finite, got 0.0"),
        ({"churn_min": 2.0, "churn_max": 1.0}, "churn_max must be >= 2 and finite, got 1.0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    """One line that says what to do."""
    with pytest.raises(InputError, match=message):
        euler(LINEAR, 4, **options)


@pytest.mark.parametrize("eta", [-0.1, math.inf, math.nan])
def test_bad_eta(eta: float) -> None:
    """No noise of negative or infinite size."""
    with pytest.raises(InputError, match="eta must be >= 0 and finite"):
        euler_ancestral(LINEAR, 4, eta)
