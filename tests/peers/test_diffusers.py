"""Whole loops against diffusers, every step of them, in float64.

The peer's tables are float32; it is given ours in float64, as `abar = alpha^2`. Its known defects have their own tests.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise, product

import diffusers
import pytest
import torch
from diffusers.schedulers import scheduling_ddpm
from torch import Tensor

import fastdiff as fd
from fastdiff.schedules import Schedule
from tests.peers.loops import PREDICTIONS, SPACINGS, error, gaussian, in_float64, network, ours, schedule_of

VARIANCES = {"small": "fixed_small", "large": "fixed_large", "learned_range": "learned_range"}
LEVELS = pytest.mark.parametrize(
    ("T", "steps"),
    [(1000, 7), (1000, 13), (1000, 50), (100, 7), (100, 13)],  # 7 and 13 divide neither
)
CLIPS = [None, 1.0]

# Measured, the worst of all cases: 1.4e-14. The peer finds 1 - abar and 1 - abar / abar_prev, at least 1e-4, by
# subtraction, which can lose 4 digits of float64's 16.
TOLERANCE = 1e-12


def ddim_peer(
    schedule: Schedule,
    steps: int,
    spacing: str,
    prediction: str = "eps",
    eta: float = 0.0,
    clip: float | None = None,
    rederive: bool = False,
    offset: int = 0,
    to_one: bool = True,
) -> list[Tensor]:
    """The states of diffusers' DDIM."""
    T = len(schedule)
    scheduler = in_float64(
        diffusers.DDIMScheduler(
            num_train_timesteps=T,
            timestep_spacing=spacing,
            prediction_type=PREDICTIONS[prediction],
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
            steps_offset=offset,
        ),
        schedule,
    )
    if not to_one:  # set_alpha_to_one=False
        scheduler.final_alpha_cumprod = scheduler.alphas_cumprod[0]
    scheduler.set_timesteps(steps)
    model, x, states = network(T), gaussian(10_000), []
    for row, t in enumerate(scheduler.timesteps.tolist()):
        noise = gaussian(row) if eta > 0 else None
        x = scheduler.step(
            model(x, t), t, x, eta=eta, use_clipped_model_output=rederive, variance_noise=noise
        ).prev_sample
        states.append(x)
    return states


@LEVELS
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddim(T: int, steps: int, spacing: str, prediction: str) -> None:
    """Every step of DDIM for eta 0, 0.5 and 1, clipped or not, with eps re-derived or not, with the peer's gaps."""
    schedule = schedule_of(T)
    clipping = [(None, False), (None, True), (1.0, False), (1.0, True)]
    ends = []
    for eta, (clip, rederive) in product([0.0, 0.5, 1.0], clipping):
        options = {"clip": clip, "prediction": prediction, "rederive_eps": rederive}
        plan = fd.samplers.ddim(schedule, steps, eta, spacing, gaps="uniform", **options)
        states = ours(plan, T)
        expected = ddim_peer(schedule, steps, spacing, prediction, eta, clip, rederive)
        assert error(states, expected) < TOLERANCE, (eta, clip, rederive)
        ends.append(states[0])
    # The options are not idle: what they change differs after the first step, but for the clip of an x0 below it.
    distinct = {tuple(end.flatten().tolist()) for end in ends}
    assert len(distinct) == 9


@LEVELS
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddim_takes_the_peers_gaps_where_they_are_right(T: int, steps: int, spacing: str) -> None:
    """Where T // S is the gap between all timesteps, the peer's steps are those to the next level."""
    levels = fd.samplers.spacing.spaced(T, steps, spacing).tolist()
    gaps = {t - following for t, following in pairwise(levels)}
    right = gaps == {T // steps} and levels[-1] < T // steps
    assert right == (spacing == "leading" or (spacing == "trailing" and T % steps == 0))
    plans = [fd.samplers.ddim(schedule_of(T), steps, 0.5, spacing, gaps=gaps) for gaps in ("visited", "uniform")]
    assert (plans[0] == replace(plans[1], name=plans[0].name)) == right


def test_ddim_peer_misses_its_levels_where_steps_do_not_divide() -> None:
    """A defect of the peer: with S = 13 and trailing, its last step does not land on x0, nor its others on theirs.

    T // S = 76, but the timesteps are 77 apart, and the last of them is 76: its next level is 0, not clean data.
    """
    schedule = schedule_of(1000)
    assert fd.samplers.spacing.spaced(1000, 13, "trailing").tolist()[-3:] == [230, 153, 76]
    plan = fd.samplers.ddim(schedule, 13, 0.0, "trailing", clip=None)
    states, theirs = ours(plan, 1000), ddim_peer(schedule, 13, "trailing")
    model = network(1000)

    def x0_and_eps(x: Tensor) -> tuple[Tensor, Tensor]:
        eps = model(x, 76.0)
        return (x - schedule.sigma[76] * eps) / schedule.alpha[76], eps

    # A few roundings at the size of x.
    size = max(1.0, float(states[-2].abs().max()))
    x0, _ = x0_and_eps(states[-2])
    torch.testing.assert_close(states[-1], x0, rtol=0, atol=1e-15 * size)
    x0, eps = x0_and_eps(theirs[-2])
    assert (theirs[-1] - x0).abs().max() > 1e-3
    torch.testing.assert_close(theirs[-1], schedule.alpha[0] * x0 + schedule.sigma[0] * eps, rtol=0, atol=1e-15 * size)
    assert error(states, theirs) > 1e-3


@pytest.mark.parametrize("steps", [7, 20, 50])
@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_ddim_of_stable_diffusion(steps: int, prediction: str) -> None:
    """Its configuration: steps_offset=1 and set_alpha_to_one=False, which ends at the cleanest level."""
    schedule = fd.schedules.scaled_linear(1000)
    timesteps = fd.samplers.spacing.spaced(1000, steps, "leading") + 1
    plan = fd.samplers.ddim(
        schedule, timesteps=timesteps, gaps="uniform", final="sigma_min", clip=None, prediction=prediction
    )
    expected = ddim_peer(schedule, steps, "leading", prediction, offset=1, to_one=False)
    assert error(ours(plan, 1000), expected) < TOLERANCE


# --- DDPM


@pytest.fixture
def row_of_peer(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Make diffusers' DDPM draw the noise of `gaussian(row)`; the test says which row it is at."""
    at = {"row": 0, "silent": 0}
    monkeypatch.setattr(
        scheduling_ddpm,
        "randn_tensor",
        lambda shape, **_: torch.zeros(shape, dtype=torch.float64) if at["silent"] else gaussian(at["row"]),
    )
    return at


def ddpm_peer(
    schedule: Schedule,
    steps: int,
    spacing: str,
    prediction: str,
    variance: str,
    clip: float | None,
    at: dict[str, int],
    quiet_end: bool = True,
) -> list[Tensor]:
    """The states of diffusers' DDPM, which finds the gaps by itself.

    It draws noise in its last step unless the level is 0; with `quiet_end` that noise is 0.
    """
    T = len(schedule)
    scheduler = in_float64(
        diffusers.DDPMScheduler(
            num_train_timesteps=T,
            timestep_spacing=spacing,
            prediction_type=PREDICTIONS[prediction],
            variance_type=VARIANCES[variance],
            clip_sample=clip is not None,
            clip_sample_range=clip or 1.0,
            steps_offset=0,
        ),
        schedule,
    )
    scheduler.set_timesteps(steps)
    model, x, states = network(T, variance == "learned_range"), gaussian(10_000), []
    for row, t in enumerate(scheduler.timesteps.tolist()):
        at.update(row=row, silent=quiet_end and row == steps - 1)
        x = scheduler.step(model(x, t), t, x).prev_sample
        states.append(x)
    return states


@LEVELS
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm(T: int, steps: int, spacing: str, prediction: str, row_of_peer: dict[str, int]) -> None:
    """Every step of DDPM for its three variances, clipped or not."""
    schedule = schedule_of(T)
    ends = []
    for variance, clip in product(VARIANCES, CLIPS):
        plan = fd.samplers.ddpm(schedule, steps, variance, spacing, clip=clip, prediction=prediction)
        states = ours(plan, T)
        expected = ddpm_peer(schedule, steps, spacing, prediction, variance, clip, row_of_peer)
        assert error(states, expected) < TOLERANCE, (variance, clip)
        ends.append(states[0])
    distinct = {tuple(end.flatten().tolist()) for end in ends}
    assert len(distinct) == 6


@pytest.mark.parametrize("variance", VARIANCES)
def test_ddpm_over_every_level(variance: str, row_of_peer: dict[str, int]) -> None:
    """Ancestral sampling with steps=None is the peer's loop over all of its timesteps."""
    schedule = schedule_of(100)
    plan = fd.samplers.ddpm(schedule, variance=variance)
    expected = ddpm_peer(schedule, 100, "leading", "eps", variance, 1.0, row_of_peer, quiet_end=False)
    assert error(ours(plan, 100), expected) < TOLERANCE


@pytest.mark.parametrize(("variance", "noise"), [("small", 0.0), ("large", 0.1), ("learned_range", 1e-9)])
def test_ddpm_peer_adds_noise_to_its_sample(variance: str, noise: float, row_of_peer: dict[str, int]) -> None:
    """A defect of the peer: where the last timestep is not 0, as in trailing, it adds noise to the finished sample.

    With the large variance that is sqrt(1 - abar); with the small one its floor of 1e-20 leaves 1e-10; a learned one
    lies between the two. Ours ends at x0, as the peer does if that last draw is 0.
    """
    schedule = schedule_of(1000)
    assert fd.samplers.spacing.spaced(1000, 13, "trailing")[-1] == 76
    arguments = (schedule, 13, "trailing", "eps", variance, 1.0, row_of_peer)
    theirs, quiet = ddpm_peer(*arguments, quiet_end=False)[-1], ddpm_peer(*arguments)[-1]
    drawn = (theirs - quiet).abs().max()
    assert drawn > noise
    if variance == "small":
        assert drawn < 1e-9
    states = ours(fd.samplers.ddpm(schedule, 13, variance, "trailing"), 1000)
    assert (states[-1] - quiet).abs().max() < TOLERANCE
