"""Flow matching against diffusers in float64: DDIM, Heun's method or consistency sampling on `schedules.flow`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.samplers import sigmas
from fastdiff.schedules import Schedule
from tests.peers.doubles import doubled
from tests.peers.loops import error, ours, theirs

T = 1000
EULER = ("flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler")
HEUN = ("flow_match_heun_discrete", "FlowMatchHeunDiscreteScheduler")
PLAN: dict[str, Any] = {"clip": None, "prediction": "flow"}

# Measured, the worst of all cases: 4e-14; t from sigma / alpha and back is a few roundings.
TOLERANCE = 1e-12


def flow(shift: float = 1.0) -> Schedule:
    """Rectified flow whose network is given 1000 t."""
    schedule = fd.schedules.flow(T, shift)
    return schedule.with_time(T * schedule.sigma)


def even_times(steps: int, shift: float) -> Any:
    """The peer's own levels: even between its shifted ends, and then shifted once more."""
    cleanest = flow(shift)
    return sigmas.flow(steps, cleanest.sigma[0] / cleanest.alpha[0], shift=shift)


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_euler(steps: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Euler's method in t is DDIM."""
    scheduler = doubled(monkeypatch, *EULER, flow(), shift=shift)
    scheduler.set_timesteps(steps)
    plan = fd.samplers.ddim(flow(), sigmas=even_times(steps, shift), **PLAN)
    np.testing.assert_allclose(plan.t, scheduler.timesteps.numpy(), rtol=1e-12)
    assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_dynamic_shift(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """FLUX.1: times 1, 1 - 1 / S, ... moved by exp(mu), mu from the size of the image: spacing "trailing"."""
    steps = 20
    scheduler = doubled(monkeypatch, *EULER, flow(), use_dynamic_shifting=True)
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / steps, steps), mu=mu)
    shift = fd.schedules.flow_shift(tokens)
    assert shift == pytest.approx(math.exp(mu), rel=1e-15)
    plan = fd.samplers.ddim(flow(shift), steps, spacing="trailing", **PLAN)
    np.testing.assert_allclose(plan.t, scheduler.timesteps.numpy(), rtol=1e-12)
    assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("kind", ["exponential", "linear"])
def test_kinds_of_shift(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's linear time shift is a shift of mu, the exponential one of exp(mu); both may end at a given time."""
    for terminal in (None, 0.1):
        config = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift_terminal": terminal}
        scheduler = doubled(monkeypatch, *EULER, flow(), **config)
        scheduler.set_timesteps(sigmas=np.linspace(1, 0.05, 20), mu=1.2)
        shift = math.exp(1.2) if kind == "exponential" else 1.2
        ratios = sigmas.flow(20, 0.05 / 0.95, shift=shift, terminal=terminal)
        np.testing.assert_allclose(1 - 1 / (1 + ratios), scheduler.sigmas[:-1], rtol=1e-12)
        plan = fd.samplers.ddim(flow(), sigmas=ratios, **PLAN)
        assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 7, 20])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_heun(steps: int, shift: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heun's method in t, from pure noise; the last step is Euler's."""
    scheduler = doubled(monkeypatch, *HEUN, flow(), shift=shift)
    scheduler.set_timesteps(steps)
    plan = fd.samplers.flow_heun(flow(), sigmas=even_times(steps, shift), **PLAN)
    np.testing.assert_allclose(plan.t, scheduler.timesteps.numpy(), rtol=1e-12)
    assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 4])
def test_stochastic_sampling(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step jumps to x0 and noises it again: consistency sampling."""
    scheduler = doubled(monkeypatch, *EULER, flow(), stochastic_sampling=True)
    scheduler.set_timesteps(steps)
    plan = fd.samplers.consistency(flow(), sigmas=even_times(steps, 1.0), **PLAN)
    assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE
