"""DDIM's table against Song et al. 2020 in abar form, against DDPM, and against Euler in other coordinates."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import prediction
from fastdiff.errors import InputError
from fastdiff.samplers import ddim, ddpm, spacing
from fastdiff.schedules import Schedule
from tests.samplers.loops import LINEAR, STEPS, T, alpha_bars, denoiser, gaussian, trajectory, update

ETAS = [0.0, 0.5, 1.0, "sigma-hat"]
EVERY_SYSTEM = pytest.mark.parametrize(
    "schedule",
    [
        LINEAR,
        fd.schedules.cosine(T),
        LINEAR.zero_terminal_snr(),
        fd.schedules.karras(T),
        fd.schedules.flow(T, shift=3.0),
    ],
    ids=["linear", "cosine", "zero-snr", "karras", "flow"],
)


# --- the table


@pytest.mark.parametrize("name", spacing.names())
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_coefficients(name: str, steps: int, eta: float) -> None:
    """x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - s^2) eps + s z with eq. 16's s, on any subsequence."""
    plan = ddim(LINEAR, steps, eta, name)
    now, prev = alpha_bars(spacing.spaced(T, steps, name).tolist())
    s = eta * np.sqrt((1 - prev) / (1 - now)) * np.sqrt(1 - now / prev)
    # 1 - abar / abar_prev, at least beta_1 = 1e-4, loses 4 digits of the T roundings in abar: 1e-13 / 1e-4.
    tolerance = {"rtol": 1e-9, "atol": 1e-12}
    np.testing.assert_allclose(plan.column("c0"), np.sqrt(prev), **tolerance)
    np.testing.assert_allclose(plan.column("ce"), np.sqrt(1 - prev - s**2), **tolerance)
    np.testing.assert_allclose(plan.column("cz"), s, **tolerance)
    for unused in ("cx", "cy", "ch0", "cv", "slot"):
        assert unused not in plan.columns
    np.testing.assert_array_equal(plan.t, spacing.spaced(T, steps, name))
    assert (len(plan), plan.init_scale) == (steps, 1.0)


@pytest.mark.parametrize("steps", STEPS)
def test_sigma_hat_coefficients(steps: int) -> None:
    """The direction of eta = 1 with noise of variance 1 - abar / abar_prev, but none in the last row."""
    plan = ddim(LINEAR, steps, "sigma-hat")
    now, prev = alpha_bars(spacing.spaced(T, steps).tolist())
    np.testing.assert_array_equal(plan.column("ce"), ddim(LINEAR, steps, 1.0).column("ce"))
    expected = np.append(np.sqrt(1 - now / prev)[:-1], 0.0)
    np.testing.assert_allclose(plan.column("cz"), expected, rtol=1e-9)  # as above


def test_x0_of_an_eps_prediction() -> None:
    """x0 = (x - sqrt(1 - abar) eps) / sqrt(abar); eps again from the clipped x0, or the network's own."""
    now, _ = alpha_bars(spacing.spaced(T, 50).tolist())
    plan = ddim(LINEAR, 50, clip=0.5)
    columns = {
        "px": 1 / np.sqrt(now),
        "po": -np.sqrt(1 - now) / np.sqrt(now),
        "ex": 1 / np.sqrt(1 - now),
        "e0": -np.sqrt(now) / np.sqrt(1 - now),
        "clip": np.full(50, 0.5),
    }
    for column, expected in columns.items():
        # 1 - abar at the cleanest level, 1e-4, loses 4 digits.
        np.testing.assert_allclose(plan.column(column), expected, rtol=1e-11)
    assert "eo" not in plan.columns
    for own in (ddim(LINEAR, 50, rederive_eps=False), ddim(LINEAR, 50, clip=None)):
        np.testing.assert_array_equal(own.column("eo"), 1.0)
        assert not {"ex", "e0"} & set(own.columns)
    assert "clip" not in ddim(LINEAR, 50, clip=None).columns


def test_timesteps_replace_steps_and_spacing() -> None:
    """The levels may be given as a list; steps and spacing are then not used."""
    levels = spacing.spaced(T, 13, "quadratic").tolist()
    chosen = ddim(LINEAR, 50, 0.5, "trailing", timesteps=levels)
    assert chosen == ddim(LINEAR, 13, 0.5, "quadratic")


def test_defaults() -> None:
    """Fifty deterministic steps, leading, clipped at 1."""
    explicit = ddim(LINEAR, 50, 0.0, "leading", clip=1.0, prediction="eps", rederive_eps=True)
    assert ddim(LINEAR) == explicit == fd.samplers.make("ddim", LINEAR)
    assert not ddim(LINEAR).draws_noise
    assert len(ddim(LINEAR, None)) == T


@pytest.mark.parametrize("steps", [6, 7, 10, 13])
def test_uniform_gaps_land_where_the_plan_says(steps: int) -> None:
    """Each row lands T // steps levels down, `alpha x0 + sigma eps`: that is its level, clean data or not."""
    plan = ddim(LINEAR, steps, spacing="trailing", gaps="uniform")
    np.testing.assert_array_equal(plan.alpha[1:], plan.column("c0"))
    np.testing.assert_allclose(plan.sigma[1:], plan.column("ce"), rtol=1e-15)  # a square and its root
    lands = plan.t.astype(int) - T // steps
    np.testing.assert_array_equal(plan.alpha[1:], [LINEAR.alpha[i] if i >= 0 else 1.0 for i in lands])


# --- as a whole update


@EVERY_SYSTEM
@pytest.mark.parametrize(("eta", "variance"), [(1.0, "small"), ("sigma-hat", "large")])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [13, 50])
def test_is_ddpm_at_eta_one(schedule: Schedule, eta: float, variance: str, clip: float | None, steps: int) -> None:
    """eta = 1 is DDPM with beta~, and sigma-hat DDPM with beta: any x, out and noise give the same x_prev."""
    for name in ("leading", "trailing", "linspace"):
        ours = ddim(schedule, steps, eta, name, clip=clip, prediction="v")
        ancestral = ddpm(schedule, steps, variance, name, clip=clip, prediction="v")
        for row in range(steps):
            x = gaussian(4, 8, seed=row) * math.hypot(
                schedule.alpha[int(ours.t[row])], schedule.sigma[int(ours.t[row])]
            )
            out, z = gaussian(4, 8, seed=1000 + row), gaussian(4, 8, seed=2000 + row)
            a, b = update(ours, row, x, out, z), update(ancestral, row, x, out, z)
            # Measured: 4.5e-14. x0 and eps cancel where alpha_prev x0 is large against x_prev.
            assert (a - b).abs().max() <= 1e-12 * max(1.0, float(x.abs().max()))


def test_is_not_ddpm_where_eps_is_the_networks_own() -> None:
    """With a clip that acts, DDPM needs eps from the clipped x0: `rederive_eps` is not idle."""
    x, out, z = gaussian(4, 8), gaussian(4, 8, seed=1), gaussian(4, 8, seed=2)
    ancestral = update(ddpm(LINEAR, 50), 0, x, out, z)
    own = update(ddim(LINEAR, 50, 1.0, rederive_eps=False), 0, x, out, z)
    assert (own - ancestral).abs().max() > 0.1


@EVERY_SYSTEM
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [1, 13])
def test_last_row_lands_on_x0(schedule: Schedule, eta: Any, clip: float | None, steps: int) -> None:
    """The last row's coefficients are exactly 1 for x0 and 0 for all else, and the sample is that x0 to the bit."""
    plan = ddim(schedule, steps, eta, "trailing", clip=clip, prediction="v")
    assert {column: plan.column(column)[-1] for column in ("cx", "c0", "ce", "cz")} == {
        "cx": 0.0,
        "c0": 1.0,
        "ce": 0.0,
        "cz": 0.0,
    }
    states, x0 = trajectory(denoiser(schedule, "v"), plan, gaussian(3, 5) * plan.init_scale)
    assert torch.equal(states[-1], x0)


@pytest.mark.parametrize(
    "schedule", [LINEAR, fd.schedules.karras(T, sigma_min=0.01), fd.schedules.flow(T)], ids=["vp", "ve", "flow"]
)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize(("clip", "rederive"), [(None, True), (0.7, True), (0.7, False)])
def test_predictions_agree(schedule: Schedule, eta: Any, clip: float | None, rederive: bool) -> None:
    """One denoiser, said as eps, x0, v or another, gives one trajectory, with and without a clip that acts."""
    x_init = gaussian(3, 5) * schedule.sigma[-20]
    runs = {}
    for name in prediction.names():
        # Leading, as eps and score cannot start at flow's alpha = 0.
        plan = ddim(schedule, 13, eta, clip=clip, prediction=name, rederive_eps=rederive)
        runs[name], _ = trajectory(denoiser(schedule, name), plan, x_init)
    scale = runs["x0"].abs().max()
    for name, states in runs.items():
        # Measured: 8e-16. An eps prediction divides its rounding by alpha >= 0.015, and the denoiser forgives most.
        assert (states - runs["x0"]).abs().max() <= 1e-13 * scale, name


# --- in other coordinates


@pytest.mark.parametrize("schedule", [fd.schedules.karras(T), fd.schedules.log_linear(T)], ids=["karras", "log_linear"])
@pytest.mark.parametrize("steps", [13, 50])
def test_is_euler_in_variance_exploding_coordinates(schedule: Schedule, steps: int) -> None:
    """With alpha = 1, DDIM is x + (sigma_prev - sigma) eps: Euler's method in sigma (Karras et al. 2022, Alg. 1)."""
    plan = ddim(schedule, steps, 0.0, "trailing", clip=None)
    sigma = np.append(schedule.sigma[plan.t.astype(int)], 0.0)
    assert plan.init_scale == sigma[0]
    for row in range(steps):
        x, eps = gaussian(2, 5, seed=row) * sigma[row], gaussian(2, 5, seed=1000 + row)
        expected = x + (sigma[row + 1] - sigma[row]) * eps
        # x0 = x - sigma eps is rounded at the size of sigma.
        assert (update(plan, row, x, eps, eps) - expected).abs().max() <= 1e-14 * max(1.0, sigma[row])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("steps", [13, 50])
def test_is_euler_in_flow_coordinates(shift: float, steps: int) -> None:
    """With alpha = 1 - t and sigma = t, DDIM is x + (t_prev - t)(eps - x0): Euler along the flow."""
    schedule = fd.schedules.flow(T, shift)
    plan = ddim(schedule, steps, 0.0, "trailing", clip=None, prediction="flow")
    t = np.append(schedule.sigma[plan.t.astype(int)], 0.0)
    assert t[0] == plan.init_scale == 1.0
    for row in range(steps):
        x, velocity = gaussian(2, 5, seed=row), gaussian(2, 5, seed=1000 + row)
        expected = x + (t[row + 1] - t[row]) * velocity
        assert (update(plan, row, x, velocity, velocity) - expected).abs().max() <= 1e-14  # a few roundings of |x| < 4


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_variance_exploding_form_is_the_same_sampler(eta: float) -> None:
    """A network of VP inputs runs in VE coordinates through `with_unit_input`: each x_VE is x_VP / alpha."""
    exploding = LINEAR.to_variance_exploding().with_unit_input()
    plan, other = (ddim(schedule, 13, eta, "trailing") for schedule in (LINEAR, exploding))
    model = denoiser(LINEAR, "eps")
    alpha = LINEAR.alpha[plan.t.astype(int)]
    preserving, x0 = trajectory(model, plan, gaussian(3, 5))
    rescaled, same = trajectory(model, other, gaussian(3, 5) / alpha[0])
    following = torch.from_numpy(np.append(alpha[1:], 1.0))[:, None, None]
    # Measured: 1.3e-15, in units of x_VP; the first states are 150 times as large in VE.
    assert (rescaled * following - preserving).abs().max() <= 1e-13
    assert (same - x0).abs().max() <= 1e-13


def test_sigma_hat_depends_on_the_coordinates() -> None:
    """beta~ is a property of the process, beta is not: x_VE = x_VP / alpha makes it larger by 1 / (1 - beta)."""
    exploding = LINEAR.to_variance_exploding()
    plan, other = (ddim(schedule, 50, "sigma-hat") for schedule in (LINEAR, exploding))
    now, prev = alpha_bars(plan.t.astype(int).tolist())
    ratio = (other.column("cz")[:-1] * np.sqrt(prev[:-1]) / plan.column("cz")[:-1]) ** 2
    np.testing.assert_allclose(ratio, (prev / now)[:-1], rtol=1e-9)  # as for the coefficients


# --- what cannot be


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": -0.1}, "eta must be >= 0 and finite, got -0.1"),
        ({"eta": math.nan}, "eta must be >= 0 and finite, got nan"),
        ({"eta": 30.0}, "eta=30.0 asks for more noise than the next level holds: use a smaller eta"),
        ({"eta": "sigma_hat"}, "unknown eta 'sigma_hat': did you mean 'sigma-hat'"),
        ({"spacing": "trailling"}, "unknown spacing 'trailling': did you mean 'trailing'"),
        ({"prediction": "epsilon"}, "unknown prediction 'epsilon': did you mean 'eps'"),
        ({"steps": 1001}, "steps must be a whole number in 1..1000, got 1001"),
        ({"steps": 0}, "steps must be a whole number in 1..1000, got 0"),
        ({"steps": 5.0}, "steps must be a whole number in 1..1000, got 5.0"),
        ({"eta": None}, "eta must be >= 0 and finite, got None"),
        ({"start": 50}, "start must be a whole number in 0..49, got 50"),
        ({"start": 1.5}, "start must be a whole number in 0..49, got 1.5"),
        ({"prediction": None}, "prediction must be a name, got None"),
        ({"clip": "1"}, "clip must be > 0 and finite, got '1'"),
        ({"sigma_max": 5.0}, "sigma_min and sigma_max need a spacing by sigma: one of karras"),
        ({"sigma_min": 0.1, "sigmas": [2.0, 1.0]}, "sigma_min and sigma_max need a spacing by sigma"),
        ({"sigma_min": "a", "spacing": "karras"}, "sigma_min must be finite, got 'a'"),
        ({"timesteps": [2, 1], "sigmas": [2.0, 1.0]}, "timesteps and sigmas both say which levels to visit"),
        ({"timesteps": [1, 2]}, "timesteps must fall strictly"),
        ({"gaps": "even"}, "unknown gaps 'even': did you mean"),
        ({"gaps": "uniform", "spacing": "karras"}, "gaps='uniform' counts the schedule's own levels: use a spacing"),
        ({"clip": 0.0}, "clip must be > 0 and finite, got 0.0"),
        ({"clip": -1.0}, "clip must be > 0"),
        ({"clip": math.nan}, "clip must be > 0"),
        ({"order": 2}, "unknown option of ddim 'order': did you mean"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    """Each wrong argument gets one line that names it."""
    with pytest.raises(InputError, match=message) as caught:
        fd.samplers.make("ddim", LINEAR, **options)
    assert "\n" not in str(caught.value)


def test_unknown_sampler() -> None:
    """A wrong name gets the nearest one."""
    with pytest.raises(InputError, match="unknown sampler 'dim': did you mean 'ddim'"):
        fd.samplers.make("dim", LINEAR)


def test_zero_terminal_snr_needs_another_prediction() -> None:
    """An eps prediction cannot start from pure noise; leading does not, as it never visits the last level."""
    schedule = LINEAR.zero_terminal_snr()
    with pytest.raises(InputError, match="eps prediction says nothing of x0 where alpha is 0"):
        ddim(schedule, 50, spacing="trailing")
    assert len(ddim(schedule, 50, spacing="leading")) == 50


def test_eta_above_one_while_there_is_room() -> None:
    """eta may exceed 1 as long as s <= sigma_prev in every row; ce then shrinks to what is left."""
    plan = ddim(LINEAR, 1000, 1.2, timesteps=[300, 250, 200])
    s, ce = plan.column("cz"), plan.column("ce")
    sigma_prev = np.append(LINEAR.sigma[[250, 200]], 0.0)
    np.testing.assert_allclose(s**2 + ce**2, sigma_prev**2, rtol=1e-14)  # two squares, a root and a sum
    assert s[1] > ddim(LINEAR, 1000, 1.0, timesteps=[300, 250, 200]).column("cz")[1]
