"""Restart and RePaint against plain loops that walk the papers' sequences of levels."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from fastdiff.errors import InputError
from fastdiff.samplers import ddim, ddpm, heun, repaint, restart, sigmas
from fastdiff.schedules import Schedule
from tests.samplers.exploding import EVERY_SYSTEM, TOLERANCE, error, levels, noise, slope, start, states
from tests.samplers.loops import LINEAR


@EVERY_SYSTEM
@pytest.mark.parametrize("intervals", [((0.06, 0.3, 2, 3),), ((0.05, 0.5, 1, 2), (1.0, 20.0, 3, 1))])
def test_restart_is_the_papers_loop(schedule: Schedule, intervals: Any) -> None:
    """Heun down; where an interval begins, K times noise up to its sigma_max and Heun down again."""
    steps = 10
    plan = restart(schedule, steps, intervals, prediction="x0", clip=None)
    s, eps, found = levels(schedule, steps), slope(schedule), states(plan)
    row, x = 0, start(plan)

    def down(x, now, after, up=None):  # type: ignore[no-untyped-def]
        """One step of Heun, or of Euler onto 0, and noise up."""
        nonlocal row
        direction = eps(x, now)
        if after:
            direction = (direction + eps(x + (after - now) * direction, after)) / 2
            row += 1
        x = x + (after - now) * direction
        if up is not None:
            x = x + math.sqrt(up**2 - after**2) * noise(row)
        assert error([found[row]], [x]) < TOLERANCE
        row += 1
        return x

    begins = {min(s[1:], key=lambda level, low=low: abs(level - low)): rest for low, *rest in intervals}
    for now, after in pairwise(s):
        high, restarts, within = begins.get(after, (None, 0, 0))
        x = down(x, now, after, high)
        for k in range(restarts):
            way = sigmas.karras(within + 1, after, high).tolist()
            for i in range(within):
                x = down(x, way[i], way[i + 1], high if i == within - 1 and k < restarts - 1 else None)
    assert row == len(plan)
    assert plan.draws_noise


def test_restart_without_intervals_is_heun() -> None:
    """No interval, or none of its restarts, and nothing is left but Heun's method."""
    for intervals in ((), ((0.06, 0.3, 0, 3),)):
        assert restart(LINEAR, 7, intervals).table.tolist() == heun(LINEAR, 7).table.tolist()


def test_restart_from_clean_data() -> None:
    """Where the nearest level is clean data, the way down is over the network's levels, and then onto data again."""
    plan = restart(LINEAR, 1, ((0.06, 0.3, 1, 3),))
    ratio = plan.sigma / plan.alpha
    # Euler; Heun, Heun, Euler from the cleanest level.
    assert ratio[0] > 100
    np.testing.assert_allclose(ratio[[1, -2, -1]], [0.3, LINEAR.sigma[0] / LINEAR.alpha[0], 0.0])
    assert len(plan) == 1 + 2 * 2 + 1


@pytest.mark.parametrize(
    ("interval", "message"),
    [
        ((0.06, 0.01, 2, 3), "a restart from sigma = .* needs a sigma_max above it and up to 157.*, got 0.01"),
        ((0.06, 1e4, 2, 3), "a restart from sigma = .* needs a sigma_max above it and up to 157.*, got 10000.0"),
        ((0.06, math.inf, 2, 3), "an interval's sigma_max must be finite, got inf"),
        (("low", 0.3, 2, 3), "an interval's sigma_min must be >= 0 and finite, got 'low'"),
        ((0.06, 0.3, -1, 3), "an interval's restarts must be a whole number, at least 0, got -1"),
        ((0.06, 0.3, 1.5, 3), "an interval's restarts must be a whole number, at least 0, got 1.5"),
        ((0.06, 0.3, 2, 0), "an interval's steps must be a whole number, at least 1, got 0"),
        ((0.06, 0.3, 2), r"intervals are tuples \(sigma_min, sigma_max, restarts, steps\), got \(\(0.06, 0.3, 2\),\)"),
        (0.06, "intervals are tuples"),
    ],
)
def test_bad_intervals(interval: Any, message: str) -> None:
    """One line that says what to do."""
    with pytest.raises(InputError, match=message):
        restart(LINEAR, 10, (interval,))


# --- RePaint


def walk(steps: int, jump_length: int, jump_samples: int) -> list[int]:
    """The levels of RePaint's appendix B, of which 0 is the cleanest with noise and -1 clean data, reached once."""
    jumps = dict.fromkeys(range(0, steps - jump_length, jump_length), jump_samples - 1)
    t, path = steps, []
    while t >= 1:
        t -= 1
        path.append(t)
        if jumps.get(t, 0) > 0:
            jumps[t] -= 1
            for _ in range(jump_length):
                t += 1
                path.append(t)
    return [*path, -1]


@EVERY_SYSTEM
@pytest.mark.parametrize(("jump_length", "jump_samples"), [(1, 3), (3, 2), (5, 1)])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_repaint_is_the_papers_loop(schedule: Schedule, jump_length: int, jump_samples: int, eta: float) -> None:
    """DDPM where the level falls, noise where it rises; noises in a row are one draw here."""
    steps = 10
    plan = repaint(schedule, steps, jump_length, jump_samples, eta, spacing="karras", prediction="x0", clip=None)
    s, eps = np.roll(levels(schedule, steps)[::-1], -1), slope(schedule)  # s[-1] is 0
    x, expected, path = start(plan), [], walk(steps, jump_length, jump_samples)
    variance, row = 0.0, -1
    for before, after in pairwise(path):
        if after > before:
            variance += s[after] ** 2 - s[before] ** 2
            continue
        if row >= 0:
            x = x + math.sqrt(variance) * noise(row)
            expected.append(x)
        row += 1
        variance = eta**2 * s[after] ** 2 * (1 - (s[after] / s[before]) ** 2)
        x = x + (math.sqrt(s[after] ** 2 - variance) - s[before]) * eps(x, s[before])
    assert error(states(plan), [*expected, x]) < TOLERANCE
    assert plan.draws_noise == (eta > 0 or jump_samples > 1)


@pytest.mark.parametrize(("steps", "jump_length", "jump_samples"), [(250, 10, 10), (13, 2, 3), (5, 10, 10), (1, 1, 2)])
def test_repaint_visits_the_papers_levels(steps: int, jump_length: int, jump_samples: int) -> None:
    """The times asked are those from which the paper's walk goes down."""
    plan = repaint(LINEAR, steps, jump_length, jump_samples)
    path = walk(steps, jump_length, jump_samples)
    asked = [before for before, after in pairwise(path) if after < before]
    np.testing.assert_array_equal(plan.t, np.array(asked) * (1000 // steps))
    assert asked.count(0) == 1


def test_repaint_without_jumps() -> None:
    """Walked once, it is DDPM, or DDIM with eta = 0."""
    once = {"jump_samples": 1, "spacing": "trailing"}
    ours, same = repaint(LINEAR, 13, eta=0.0, **once), ddim(LINEAR, 13, spacing="trailing")
    np.testing.assert_allclose(ours.table, same.table, rtol=1e-14)  # a last digit
    # The posterior's variance has 1e-4 in its denominators.
    noise_of_ddpm = ddpm(LINEAR, 13, spacing="trailing").column("cz")
    np.testing.assert_allclose(repaint(LINEAR, 13, **once).column("cz"), noise_of_ddpm, rtol=1e-9)


@pytest.mark.parametrize(("jump_length", "jump_samples"), [(0, 2), (2, 0), (1.5, 2), (2, 2.0), (True, 2)])
def test_bad_jumps(jump_length: Any, jump_samples: Any) -> None:
    """Jumps go up by whole levels, a whole number of times."""
    with pytest.raises(InputError, match="jump_(length|samples) must be a whole number, at least 1, got"):
        repaint(LINEAR, 10, jump_length, jump_samples)


def test_numpy_integers() -> None:
    """Counts may be numpy's."""
    count = np.int64(2)
    np.testing.assert_array_equal(repaint(LINEAR, 13, count, count).table, repaint(LINEAR, 13, 2, 2).table)
    plans = [restart(LINEAR, 7, [(0.06, 0.3, n, n)]) for n in (count, 2)]
    assert plans[0].table.tolist() == plans[1].table.tolist()
