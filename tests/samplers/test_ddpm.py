"""DDPM's table against Ho et al. 2020 and Nichol & Dhariwal 2021 in abar form, with every variance."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff import prediction
from fastdiff.errors import InputError
from fastdiff.samplers import ddpm, spacing
from fastdiff.schedules import Schedule
from tests.samplers.loops import BETAS, LINEAR, STEPS, T, alpha_bars, denoiser, gaussian, trajectory, update

VARIANCES = ["small", "large", "learned_range"]
EVERY_SYSTEM = pytest.mark.parametrize(
    "schedule",
    [LINEAR, LINEAR.zero_terminal_snr(), fd.schedules.karras(T), fd.schedules.flow(T, shift=3.0)],
    ids=["linear", "zero-snr", "karras", "flow"],
)
# 1 - abar / abar_prev, at least beta_1 = 1e-4, loses 4 digits of the T roundings in abar: 1e-13 / 1e-4.
RTOL = 1e-9


# --- the table


@pytest.mark.parametrize("name", spacing.names())
@pytest.mark.parametrize("steps", STEPS)
def test_posterior_mean(name: str, steps: int) -> None:
    """mu~ = sqrt(abar_prev) beta / (1 - abar) x0 + sqrt(1 - beta) (1 - abar_prev) / (1 - abar) x, on a subsequence."""
    now, prev = alpha_bars(spacing.spaced(T, steps, name).tolist())
    beta = 1 - now / prev
    for variance in VARIANCES:
        plan = ddpm(LINEAR, steps, variance, name)
        np.testing.assert_allclose(plan.column("c0"), np.sqrt(prev) * beta / (1 - now), rtol=RTOL)
        np.testing.assert_allclose(plan.column("cx"), np.sqrt(1 - beta) * (1 - prev) / (1 - now), rtol=RTOL)
        np.testing.assert_array_equal(plan.t, spacing.spaced(T, steps, name))
        assert (len(plan), plan.init_scale) == (steps, 1.0)
        for unused in ("ce", "ex", "eo", "e0", "cy", "ch0", "slot"):
            assert unused not in plan.columns


@pytest.mark.parametrize("name", spacing.names())
@pytest.mark.parametrize("steps", STEPS)
def test_variances(name: str, steps: int) -> None:
    """Small is beta~ = (1 - abar_prev) / (1 - abar) beta, large is beta, and the last row draws nothing."""
    now, prev = alpha_bars(spacing.spaced(T, steps, name).tolist())
    beta = 1 - now / prev
    small, large = ddpm(LINEAR, steps, "small", name), ddpm(LINEAR, steps, "large", name)
    np.testing.assert_allclose(small.column("cz") ** 2, (1 - prev) / (1 - now) * beta, rtol=RTOL)
    np.testing.assert_allclose(large.column("cz")[:-1] ** 2, beta[:-1], rtol=RTOL)
    assert large.column("cz")[-1] == small.column("cz")[-1] == 0
    assert (small.column("cz")[:-1] < large.column("cz")[:-1]).all()
    assert not small.learns_variance


def test_every_step_has_the_schedules_betas() -> None:
    """With all T steps, beta is the linear schedule's own, and beta~_1 is 0."""
    plan = ddpm(LINEAR, variance="large")
    assert len(plan) == T
    np.testing.assert_allclose(plan.column("cz")[:-1] ** 2, BETAS[:0:-1], rtol=RTOL)


@settings(deadline=None)
@given(v=st.floats(-1, 1), steps=st.integers(2, 100))
def test_learned_range(v: float, steps: int) -> None:
    """std = exp((v' log beta + (1 - v') log beta~) / 2), v' = (v + 1) / 2: small at v = -1, large at v = 1."""
    plan = ddpm(LINEAR, steps, "learned_range")
    assert plan.learns_variance
    std = plan.column("cz") * np.exp(plan.column("cv") * v)
    now, prev = alpha_bars(spacing.spaced(T, steps).tolist())
    beta = (1 - now / prev)[:-1]
    posterior = ((1 - prev) / (1 - now))[:-1] * beta
    share = (v + 1) / 2
    # Relative errors of beta and beta~ become absolute ones of their logarithms.
    np.testing.assert_allclose(
        std[:-1], np.exp((share * np.log(beta) + (1 - share) * np.log(posterior)) / 2), rtol=RTOL
    )
    assert std[-1] == 0
    assert plan.column("cv")[-1] == 0


@pytest.mark.parametrize(("v", "variance"), [(-1.0, "small"), (1.0, "large")])
def test_learned_range_ends_at_small_and_large(v: float, variance: str) -> None:
    """A whole update with v = -1 is that of the small variance, with v = 1 that of the large one."""
    learned, fixed = ddpm(LINEAR, 13, "learned_range"), ddpm(LINEAR, 13, variance)
    for row in range(13):
        x, out, z = (gaussian(2, 3, 4, seed=3 * row + i) for i in range(3))
        a, b = update(learned, row, x, out, z, torch.full_like(x, v)), update(fixed, row, x, out, z)
        assert (a - b).abs().max() <= 1e-14  # two logarithms, an exponential: eps |log beta| <= 5 eps


def test_learned_range_reads_every_element() -> None:
    """The network's second half gives each element its own variance, through the whole loop."""
    plan = ddpm(LINEAR, 2, "learned_range", "trailing", clip=None, prediction="x0")
    v = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(1, 3, 4)
    z = gaussian(1, 3, 4)
    states = []
    fd.sample(
        lambda x, t: torch.cat([torch.zeros_like(x), v], dim=1),
        plan,
        (1, 3, 4),
        dtype=torch.float64,
        x_init=torch.zeros(1, 3, 4, dtype=torch.float64),
        noise=lambda stream, draw, shape: z,
        callback=lambda row, x, x0: states.append(x.clone()),
    )
    std = torch.exp(plan.column("cv")[0] * v) * plan.column("cz")[0]
    torch.testing.assert_close(states[0], std * z, rtol=1e-14, atol=0)  # one exponential, two products
    assert torch.equal(states[1], torch.zeros_like(z))


# --- as a whole update


@pytest.mark.parametrize("steps", [13, 1000])
def test_mean_in_eps(steps: int) -> None:
    """mu~ = (x - beta / sqrt(1 - abar) eps) / sqrt(1 - beta): the one-step alpha, not abar."""
    plan = ddpm(LINEAR, steps, clip=None)
    now, prev = alpha_bars(plan.t.astype(int).tolist())
    beta = 1 - now / prev
    for row in range(0, steps, max(steps // 50, 1)):
        x, eps = gaussian(2, 5, seed=row), gaussian(2, 5, seed=1000 + row)
        expected = (x - beta[row] / math.sqrt(1 - now[row]) * eps) / math.sqrt(1 - beta[row])
        # x0 = (x - sigma eps) / alpha is up to 4 / alpha_T = 600 and rounded there; the betas add theirs, see RTOL.
        assert (update(plan, row, x, eps, torch.zeros_like(x)) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("schedule", [fd.schedules.karras(T), fd.schedules.log_linear(T)], ids=["karras", "log_linear"])
def test_variance_exploding_closed_form(schedule: Schedule) -> None:
    """With alpha = 1, mu~ = x0 + r (x - x0) and beta~ = r (sigma^2 - sigma_prev^2), r = (sigma_prev / sigma)^2."""
    plan = ddpm(schedule, 13, spacing="trailing", clip=None, prediction="x0")
    sigma = np.append(schedule.sigma[plan.t.astype(int)], 0.0)
    assert plan.init_scale == sigma[0]
    for row in range(13):
        x, x0, z = (gaussian(2, 5, seed=3 * row + i) for i in range(3))
        share = (sigma[row + 1] / sigma[row]) ** 2
        std = math.sqrt(share * (sigma[row] ** 2 - sigma[row + 1] ** 2))
        expected = x0 + share * (x - x0) + std * z
        # A few roundings relative to std, and to |x| < 4.
        assert (update(plan, row, x, x0, z) - expected).abs().max() <= 1e-14 * max(1.0, std)


@EVERY_SYSTEM
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 13])
def test_last_row_lands_on_x0(schedule: Schedule, variance: str, clip: float | None, steps: int) -> None:
    """The last row's coefficients are exactly 1 for x0 and 0 for all else, and the sample is that x0 to the bit."""
    plan = ddpm(schedule, steps, variance, "trailing", clip=clip, prediction="v")
    last = {column: plan.column(column)[-1] for column in ("cx", "c0", "ce", "cz")}
    assert last == {"cx": 0.0, "c0": 1.0, "ce": 0.0, "cz": 0.0}
    states, x0 = trajectory(denoiser(schedule, "v", plan.learns_variance), plan, gaussian(3, 5) * plan.init_scale)
    assert torch.equal(states[-1], x0)


@pytest.mark.parametrize(
    "schedule", [LINEAR, fd.schedules.karras(T, sigma_min=0.01), fd.schedules.flow(T)], ids=["vp", "ve", "flow"]
)
@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("clip", [None, 0.7])
def test_predictions_agree(schedule: Schedule, variance: str, clip: float | None) -> None:
    """One denoiser, said as eps, x0, v or another, gives one trajectory, with and without a clip that acts."""
    x_init = gaussian(3, 5) * schedule.sigma[-20]
    runs = {}
    for name in prediction.names():
        # Leading, as eps and score cannot start at flow's alpha = 0.
        plan = ddpm(schedule, 13, variance, clip=clip, prediction=name)
        runs[name], _ = trajectory(denoiser(schedule, name, plan.learns_variance), plan, x_init)
    scale = runs["x0"].abs().max()
    for name, states in runs.items():
        # Measured: 5e-16. An eps prediction divides its rounding by alpha >= 0.015, and the denoiser forgives most.
        assert (states - runs["x0"]).abs().max() <= 1e-13 * scale, name


def test_timesteps_and_defaults() -> None:
    """Every level, small variance, clipped at 1; a list of levels replaces steps and spacing."""
    assert ddpm(LINEAR) == ddpm(LINEAR, 1000, "small", "leading", clip=1.0, prediction="eps")
    levels = spacing.spaced(T, 13, "quadratic").tolist()
    assert ddpm(LINEAR, 50, timesteps=levels) == ddpm(LINEAR, 13, spacing="quadratic")


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": "smal"}, "unknown variance 'smal': did you mean 'small'"),
        ({"variance": "learned"}, "unknown variance 'learned': did you mean 'learned_range'"),
        ({"spacing": "leadng"}, "unknown spacing 'leadng': did you mean 'leading'"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon': did you mean 'eps'"),
        ({"steps": 1001}, "steps must be a whole number in 1..1000, got 1001"),
        ({"steps": 0}, "steps must be a whole number in 1..1000, got 0"),
        ({"timesteps": [1, 2]}, "timesteps must fall strictly"),
        ({"clip": 0.0}, "clip must be > 0 and finite, got 0.0"),
        ({"clip": math.nan}, "clip must be > 0"),
        ({"eta": 1.0}, "unknown option of ddpm 'eta': did you mean"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    """Each wrong argument gets one line that names it."""
    with pytest.raises(InputError, match=message) as caught:
        fd.samplers.make("ddpm", LINEAR, **options)
    assert "\n" not in str(caught.value)


def test_zero_terminal_snr_needs_another_prediction() -> None:
    """An eps prediction cannot start from pure noise; a v prediction can."""
    schedule = LINEAR.zero_terminal_snr()
    with pytest.raises(InputError, match="eps prediction says nothing of x0 where alpha is 0"):
        ddpm(schedule)
    assert len(ddpm(schedule, prediction="v")) == T
