"""LCM, TCD and consistency models against diffusers, every step of them, in float64."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

import fastdiff as fd
from tests.peers.doubles import doubled
from tests.peers.loops import PREDICTIONS, error, ours, schedule_of, theirs

T = 1000
SCHEDULE = schedule_of(T)

# Measured, the worst of all cases: 8e-15. The peers find 1 - abar >= 1e-4 by subtraction.
TOLERANCE = 1e-12


@pytest.fixture
def whole_times_float64() -> Iterator[None]:
    """A whole tensor times a number is float32 in torch, unless the default is another."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("whole_times_float64")
@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("clip", [None, 1.0])
def test_lcm(steps: int, prediction: str, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The levels, the boundary condition, which acts at small t alone, and the noise."""
    for original, scaling in ((50, 10.0), (100, 0.01)):
        kind = {"prediction_type": PREDICTIONS[prediction], "clip_sample": clip is not None}
        scheduler = doubled(monkeypatch, "lcm", "LCMScheduler", SCHEDULE, timestep_scaling=scaling, **kind)
        scheduler.set_timesteps(steps, original_inference_steps=original)
        plan = fd.samplers.lcm(SCHEDULE, steps, original, scaling, clip=clip, prediction=prediction)
        assert plan.t.tolist() == scheduler.timesteps.tolist()
        assert error(ours(plan, T), theirs(scheduler, T)) < TOLERANCE


@pytest.mark.parametrize("steps", [1, 2, 4, 7, 50])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_tcd(steps: int, prediction: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every gamma; the peer's last step lands on the cleanest level."""
    for gamma in (0.0, 0.2, 0.3, 0.5, 1.0):
        scheduler = doubled(monkeypatch, "tcd", "TCDScheduler", SCHEDULE, prediction_type=PREDICTIONS[prediction])
        scheduler.set_timesteps(steps)
        plan = fd.samplers.tcd(SCHEDULE, steps, gamma, clip=None, prediction=prediction, final="sigma_min")
        assert plan.t.tolist() == scheduler.timesteps.tolist()
        assert error(ours(plan, T), theirs(scheduler, T, eta=gamma)) < TOLERANCE, gamma


@pytest.mark.parametrize("steps", [1, 2, 4, 40])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_consistency(steps: int, clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Karras' 40 levels, the raw network with its boundary condition, and noise above sigma_min = 0.002."""
    levels = fd.schedules.karras(40)
    schedule = levels.with_time(250 * np.log(levels.sigma)).with_unit_input(sigma_data=0.5)
    scheduler = doubled(
        monkeypatch, "consistency_models", "CMStochasticIterativeScheduler", schedule, clip_denoised=clip is not None
    )
    scheduler.set_timesteps(steps)
    visited = 39 - np.arange(steps) * (40 // steps)
    # With every level visited the last is sigma_min itself, which final="sigma_min" has as the place to land on.
    options = {"timesteps": visited[:39], "final": "sigma_min", "clip": clip, "prediction": "consistency"}
    plan = fd.samplers.consistency(schedule, **options)
    states = theirs(scheduler, T)
    # The peer's last sigma is a few roundings above sigma_min, and sqrt(sigma^2 - sigma_min^2) then 1e-10, not 0.
    assert error(ours(plan, T), states[:39]) < (1e-9 if steps == 40 else TOLERANCE)
    np.testing.assert_allclose(plan.t, scheduler.timesteps.numpy()[:39], rtol=1e-12)
    if steps == 40:  # the row that we leave out changes nothing but by the clip
        bound = clip or np.inf
        assert error(states[-1:], [states[-2].clamp(-bound, bound)]) < 1e-9
