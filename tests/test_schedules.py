"""Noise schedules against their papers' formulas, against diffusers, and through every conversion."""

from __future__ import annotations

import inspect
import json
import math
from fractions import Fraction
from typing import Any

import diffusers
import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers.schedulers import scheduling_ddim
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastdiff import schedules
from fastdiff.errors import InputError
from fastdiff.schedules import Schedule

Array = npt.NDArray[np.float64]

EPS = np.finfo(np.float64).eps
VP = ("linear", "scaled_linear", "cosine", "sigmoid", "exponential", "vp", "progressive_vae")
VE = ("geometric", "log_linear", "karras")
SYSTEMS = ("vp", "ve", "flow")
untimed = settings(deadline=None)


def one_step_betas(schedule: Schedule) -> Array:
    """`beta_t = 1 - abar_t / abar_{t-1}`, abar_{-1} = 1."""
    alpha_bar = schedule.alpha**2
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


@st.composite
def hand_made(draw: st.DrawFn) -> Schedule:
    """Any schedule: falling log SNR between -20 and 20, in any of the three systems."""
    gaps = draw(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=20))
    lambda_ = draw(st.floats(0.0, 20.0)) - np.cumsum(gaps)
    return Schedule(*schedules.from_lambda(lambda_, draw(st.sampled_from(SYSTEMS))))


# --- the named schedules


def f(u: float) -> float:
    return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2


def linear(t: int, T: int) -> float:
    return 1e-4 + (2e-2 - 1e-4) * t / max(T - 1, 1)


def scaled_linear(t: int, T: int) -> float:
    return (math.sqrt(0.00085) * (1 - t / max(T - 1, 1)) + math.sqrt(0.012) * t / max(T - 1, 1)) ** 2


def cosine(t: int, T: int) -> float:
    return min(1 - f((t + 1) / T) / f(t / T), 0.999)


def sigmoid(t: int, T: int) -> float:
    return 1e-4 + (2e-2 - 1e-4) / (1 + math.exp(6 - 12 * t / max(T - 1, 1)))


def progressive_vae(t: int, T: int) -> float:
    return 1e-4 + 0.02 * (t + 1) / T


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
@pytest.mark.parametrize("beta", [linear, scaled_linear, cosine, sigmoid, progressive_vae], ids=lambda f: f.__name__)
def test_variance_preserving_formulas(beta: Any, T: int) -> None:
    """abar_t = prod (1 - beta_s), with each paper's beta_t written out; alpha = sqrt(abar), sigma = sqrt(1 - abar)."""
    schedule = schedules.make(beta.__name__, T=T)
    alpha_bar = np.cumprod([1 - beta(t, T) for t in range(T)])
    # A product of T rounded factors is off by T eps; 1 - 0.999, the cosine cap, loses 3 digits more, once.
    np.testing.assert_allclose(schedule.alpha**2, alpha_bar, rtol=(2 * T + 2000) * EPS, atol=0)
    np.testing.assert_allclose(schedule.sigma**2, 1 - alpha_bar, rtol=0, atol=(2 * T + 20) * EPS)


@untimed
@given(T=st.integers(1, 200), start=st.floats(1e-12, 0.5), ratio=st.floats(1, 2))
@example(T=5, start=1e-12, ratio=1.0)  # 1 - abar in float64 would keep 4 digits
def test_sigma_keeps_its_digits_near_clean_data(T: int, start: float, ratio: float) -> None:
    """sigma_t^2 = 1 - prod (1 - beta_s) to 13 digits for every beta, against exact fractions."""
    schedule = schedules.linear(T, start, min(start * ratio, 0.9))
    betas = np.linspace(start, min(start * ratio, 0.9), T)
    exact = Fraction(1)
    for t in range(min(T, 10)):
        exact *= 1 - Fraction(float(betas[t]))
        # A sum of 10 rounded logarithms: each adds at most an eps of relative error.
        assert schedule.sigma[t] ** 2 == pytest.approx(float(1 - exact), rel=32 * EPS, abs=0)


@pytest.mark.parametrize("T", [1, 2, 100])
def test_continuous_formulas(T: int) -> None:
    """At t = 1/T..1: exp(-12 t); the VP-SDE's integrated beta, 0.1 to 20; sub-VP's variance (Song et al. 2021)."""
    exponential, vp, sub_vp = (schedules.make(name, T=T) for name in ("exponential", "vp", "sub_vp"))
    for i, t in enumerate(np.arange(1, T + 1) / T):
        integral = 0.1 * t + (20 - 0.1) * t**2 / 2
        # exp multiplies the rounding of its argument, at most 12.
        assert exponential.alpha[i] ** 2 == pytest.approx(math.exp(-12 * t), rel=T * 32 * EPS)
        assert vp.alpha[i] == sub_vp.alpha[i] == pytest.approx(math.exp(-integral / 2), rel=32 * EPS)
        assert vp.sigma[i] == pytest.approx(math.sqrt(-math.expm1(-integral)), rel=32 * EPS)
        assert sub_vp.sigma[i] == pytest.approx(-math.expm1(-integral), rel=32 * EPS)


def test_linear_is_the_vp_sde_in_steps() -> None:
    """The betas of 1000 steps, 1e-4 to 2e-2, are those of the SDE over T: the two differ by a step, O(1/T)."""
    vp, linear = schedules.vp(1000), schedules.linear(1000)
    # Half a step of beta at the end, 0.02 / 2, and its square over all steps, sum beta^2 / 4 = 1000 * 1.3e-4 / 4.
    np.testing.assert_allclose(np.log(vp.alpha), np.log(linear.alpha), rtol=0, atol=0.01 + 0.035)


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize("T", [1, 3, 1000])
def test_variance_preserving(name: str, T: int) -> None:
    """alpha^2 + sigma^2 = 1, also after the shift to zero terminal SNR."""
    schedule = schedules.make(name, T=T)
    assert schedule.variance_preserving
    assert not schedule.variance_exploding
    for levels in [schedule] if T == 1 else [schedule, schedule.zero_terminal_snr()]:
        # One rounding each for two squares, two roots and the sum.
        np.testing.assert_allclose(levels.alpha**2 + levels.sigma**2, 1, rtol=0, atol=4 * EPS)


@pytest.mark.parametrize("name", schedules.names())
@pytest.mark.parametrize("T", [1, 2, 1000])
def test_signal_to_noise_falls(name: str, T: int) -> None:
    """The SNR falls strictly from level to level, lambda is half its logarithm, and time counts the levels."""
    schedule = schedules.make(name, T=T)
    assert len(schedule) == T
    assert (np.diff(schedule.snr) < 0).all()
    noisy = schedule.alpha > 0
    np.testing.assert_allclose(schedule.lambda_[noisy], 0.5 * np.log(schedule.snr[noisy]), rtol=0, atol=32 * EPS)
    assert (schedule.lambda_[~noisy] == -np.inf).all()
    np.testing.assert_array_equal(schedule.time, np.arange(T))
    np.testing.assert_array_equal(schedule.scale_in, 1)


def test_cosine_caps_its_last_beta() -> None:
    """f(1) is 0, so that only the cap keeps the last level from being pure noise: beta_T is 0.999."""
    betas = one_step_betas(schedules.cosine(1000))
    # abar_T / abar_{T-1} = 0.001 to eps.
    assert betas[-1] == pytest.approx(0.999, abs=4 * EPS)
    assert betas[:-1].max() < 0.999
    assert f(1.0) < 1e-30
    assert schedules.cosine(1000, s=0.5).config["s"] == 0.5


@pytest.mark.parametrize("name", VE)
@pytest.mark.parametrize("T", [1, 2, 50])
def test_variance_exploding(name: str, T: int) -> None:
    """alpha is 1 and sigma runs from sigma_min to sigma_max."""
    schedule = schedules.make(name, T=T, sigma_min=0.03, sigma_max=7.0)
    assert schedule.variance_exploding
    assert not schedule.variance_preserving
    # Karras raises a rounded root to the power rho = 7.
    np.testing.assert_allclose(schedule.sigma[[0, -1]], [0.03, 7.0 if T > 1 else 0.03], rtol=16 * EPS)


def test_geometric_sequence() -> None:
    """NCSN's ten levels have one ratio, and log_linear is the same sequence with other defaults."""
    sigma = schedules.geometric().sigma
    assert len(sigma) == 10
    np.testing.assert_allclose(sigma[1:] / sigma[:-1], 100 ** (1 / 9), rtol=8 * EPS)
    log_linear = schedules.log_linear(40)
    np.testing.assert_array_equal(log_linear.sigma, schedules.geometric(40, 0.02, 10.0).sigma)
    np.testing.assert_allclose(np.diff(np.log(log_linear.sigma)), math.log(500) / 39, rtol=1e-13)


@pytest.mark.parametrize("rho", [1.0, 3.0, 7.0])
def test_karras(rho: float) -> None:
    """sigma_i = (max^(1/rho) + i/(N-1) (min^(1/rho) - max^(1/rho)))^rho, i = 0 the noisiest (Karras 2022, eq. 5)."""
    high, low = 80 ** (1 / rho), 0.002 ** (1 / rho)
    sigma = [(high + i / 17 * (low - high)) ** rho for i in range(18)]
    # The smallest differ by the cancellation in high - low times rho.
    np.testing.assert_allclose(schedules.karras(18, rho=rho).sigma[::-1], sigma, rtol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0, 8.0])
def test_flow(shift: float) -> None:
    """alpha + sigma = 1, sigma ends at 1, and the shift multiplies the odds t / (1 - t) (Esser et al. 2024, eq. 23)."""
    schedule = schedules.flow(50, shift)
    t = np.arange(1, 51) / 50
    np.testing.assert_allclose(schedule.alpha + schedule.sigma, 1, rtol=0, atol=EPS)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (0, 1)
    # alpha = 1 - sigma carries eps, divided by the smallest alpha, 1/400.
    odds = schedule.sigma[:-1] / schedule.alpha[:-1]
    np.testing.assert_allclose(odds, shift * t[:-1] / (1 - t[:-1]), rtol=1e3 * EPS)


@untimed
@given(T=st.integers(1, 100), shift=st.floats(0.01, 100))
@example(T=10, shift=0.1)  # refused: alpha = -2e-16
@example(T=10, shift=0.3)  # alpha = 2e-16 where it is 0 without a shift
def test_flow_ends_in_pure_noise(T: int, shift: float) -> None:
    """Whatever the shift, the last level is exactly (alpha, sigma) = (0, 1)."""
    schedule = schedules.flow(T, shift)
    assert (schedule.alpha[-1], schedule.sigma[-1]) == (0, 1)


@pytest.mark.parametrize("T", [10, 1000])
@pytest.mark.parametrize(
    ("name", "peer", "relative", "absolute"),
    [
        # Theirs is float32 (u = 2^-24): linspace is rounded at the scale of its end points, then squared.
        ("linear", "linear", 0, 0.02 * 2**-23),
        ("scaled_linear", "scaled_linear", 0, 0.012 * 2**-22),
        # One rounding of a float64 result.
        ("cosine", "squaredcos_cap_v2", 1.001 * 2**-24, 0),
        # float32 all through: linspace over [-6, 6], sigmoid, product, sum.
        ("sigmoid", "sigmoid", 0, 0.02 * 2**-22),
    ],
)
def test_betas_equal_diffusers(name: str, peer: str, relative: float, absolute: float, T: int) -> None:
    """One-step variances are those of diffusers, to its float32."""
    beta_range = {} if name == "cosine" else schedules.make(name).config
    ends = {key: beta_range[key] for key in ("beta_start", "beta_end") if key in beta_range}
    theirs = diffusers.DDPMScheduler(num_train_timesteps=T, beta_schedule=peer, **ends).betas.double().numpy()
    # Ours come from a ratio of abar: 4 eps of absolute error.
    np.testing.assert_allclose(one_step_betas(schedules.make(name, T=T)), theirs, rtol=relative, atol=absolute + 1e-15)


@pytest.mark.parametrize("name", VP)
@pytest.mark.parametrize("T", [2, 50, 1000])
def test_zero_terminal_snr_equals_diffusers(name: str, T: int) -> None:
    """Lin et al.'s Algorithm 1 on float64 betas gives diffusers' abar; ours ends at exactly 0, and changes no start."""
    schedule = schedules.make(name, T=T)
    shifted = schedule.zero_terminal_snr()
    theirs = scheduling_ddim.rescale_zero_terminal_snr(torch.from_numpy(one_step_betas(schedule)))
    alpha_bar = np.cumprod(1 - theirs.numpy())
    # The difference of two close alphas near the end; theirs goes from abar to betas and back.
    np.testing.assert_allclose(shifted.alpha**2, alpha_bar, rtol=1e-9, atol=0)
    assert (shifted.alpha[-1], shifted.sigma[-1]) == (0, 1)
    assert shifted.alpha[0] == pytest.approx(schedule.alpha[0], rel=2 * EPS)


def test_zero_terminal_snr_is_idempotent() -> None:
    """What already ends in pure noise stays as it is."""
    once = schedules.linear(100).zero_terminal_snr()
    np.testing.assert_array_equal(once.zero_terminal_snr().alpha, once.alpha)


def test_zero_terminal_snr_changes_no_times() -> None:
    """What the network is given, its times and its input's scale, stays as it was chosen."""
    schedule = Schedule(*schedules.from_lambda([1.0, 0.0]), time=[5.0, 7.0], scale_in=[2.0, 3.0]).zero_terminal_snr()
    np.testing.assert_array_equal(schedule.time, [5.0, 7.0])
    np.testing.assert_array_equal(schedule.scale_in, [2.0, 3.0])


# --- conversions


@untimed
@given(lambda_=st.floats(-300, 300), system=st.sampled_from(SYSTEMS))
def test_lambda_round_trip(lambda_: float, system: str) -> None:
    """log(alpha / sigma) gives lambda back, and (alpha, sigma) satisfy the system's equation."""
    alpha, sigma = schedules.from_lambda(lambda_, system)
    # exp turns the rounding of its argument, eps |lambda|, into a relative error of each scale.
    assert math.log(alpha) - math.log(sigma) == pytest.approx(lambda_, rel=8 * EPS, abs=8 * EPS)
    equation = {"vp": alpha**2 + sigma**2, "ve": alpha, "flow": alpha + sigma}[system]
    assert equation == pytest.approx(1, abs=4 * EPS)


@untimed
@given(log_snr=st.floats(-200, 200), system=st.sampled_from(SYSTEMS))
def test_snr_round_trip(log_snr: float, system: str) -> None:
    """alpha^2 / sigma^2 gives the SNR back."""
    snr = math.exp(log_snr)
    alpha, sigma = schedules.from_snr(snr, system)
    # As for lambda, with the squares: 2 eps |log_snr| and a few eps.
    assert (alpha / sigma) ** 2 == pytest.approx(snr, rel=4 * EPS * (4 + abs(log_snr)))


@untimed
@given(schedule=hand_made(), where=st.floats(0, 1))
def test_between_levels(schedule: Schedule, where: float) -> None:
    """At a lambda between two levels: its ratio, the system, time and scale_in in between; `at_time` is the inverse."""
    schedule = schedule.with_unit_input(0.5).with_time(3 + 2 * np.arange(len(schedule)))
    high, low = schedule.lambda_[[0, -1]]
    value = high + where * (low - high)
    time, alpha, sigma, scale_in = (float(part) for part in schedule.at_lambda(value))
    assert math.log(alpha / sigma) == pytest.approx(value, rel=16 * EPS, abs=64 * EPS)
    for equation in (lambda a, s: a**2 + s**2, lambda a, s: a, lambda a, s: a + s):
        if np.allclose(equation(schedule.alpha, schedule.sigma), 1, rtol=0, atol=1e-9):
            assert equation(alpha, sigma) == pytest.approx(1, abs=1e-8)  # little noise is in every system
    assert 3 <= time <= 1 + 2 * len(schedule)
    assert schedule.scale_in.min() * (1 - 64 * EPS) <= scale_in <= schedule.scale_in.max() * (1 + 64 * EPS)
    if schedule.variance_preserving or schedule.variance_exploding:
        # abar + sigma^2 = 1 holds to 1e-9 for what counts as preserving.
        assert scale_in == pytest.approx(1 / math.hypot(0.5 * alpha, sigma), rel=2e-9)
    # Gaps of 1e-3 in lambda or more are 2 in time: eps |lambda| <= 20 eps grows by 2e3, and as much on the way back.
    again = schedule.at_time(time)
    np.testing.assert_allclose(again, (alpha, sigma, scale_in), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", schedules.names())
def test_levels_are_found_again(name: str) -> None:
    """At the levels' own lambdas and times stand the levels, pure noise too; beyond them the last time counts."""
    schedule = schedules.make(name, T=50)
    found = schedule.at_lambda(schedule.lambda_)
    # Logarithms and exponentials of |lambda| < 10.
    for array, expected in zip(found, (schedule.time, schedule.alpha, schedule.sigma, schedule.scale_in), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-12, atol=1e-12)
    alpha, sigma, _ = schedule.at_time(schedule.time)
    np.testing.assert_allclose((alpha, sigma), (schedule.alpha, schedule.sigma), rtol=1e-12, atol=1e-15)
    time, *_ = schedule.at_lambda([schedule.lambda_[0] + 1, schedule.lambda_[-1] - 1])
    assert time.tolist() == [0, 49]


def test_time_between_levels() -> None:
    """Time is linear in lambda; in sigma for a flow, whose networks are given sigma, also next to pure noise."""
    vp = schedules.linear(10)
    assert vp.at_lambda((vp.lambda_[3] + vp.lambda_[4]) / 2)[0] == pytest.approx(3.5, rel=1e-12)
    flow = schedules.flow(10, shift=3.0)
    flow = flow.with_time(1000 * flow.sigma)
    sigma = np.array([0.3, 0.7, 0.999, 1.0])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(flow.at_lambda(np.log((1 - sigma) / sigma))[0], 1000 * sigma, rtol=1e-14)
    np.testing.assert_allclose(flow.at_time(1000 * sigma)[1], sigma, rtol=1e-14)


@pytest.mark.parametrize(
    ("schedule", "time", "message"),
    [
        (schedules.linear(10), 9.5, "time must be within 0..9, the times of the schedule"),
        (schedules.linear(10), [3, -1], "time must be within 0..9"),
        (schedules.linear(3).with_time([3, 2, 1]), 2, "only where times rise with the index"),
    ],
)
def test_no_level_at_a_time(schedule: Schedule, time: Any, message: str) -> None:
    """Times that are beyond the schedule or name no level are refused."""
    with pytest.raises(InputError, match=message):
        schedule.at_time(time)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_flow_shift(tokens: int, mu: float) -> None:
    """exp(mu), mu linear in the number of tokens: FLUX.1's two ends and their middle."""
    assert schedules.flow_shift(tokens) == pytest.approx(math.exp(mu), rel=4 * EPS)
    with pytest.raises(InputError, match="tokens must be > 0, and base_tokens below max_tokens, got 0"):
        schedules.flow_shift(0)


def test_conversions_keep_shapes_and_limits() -> None:
    """Any shape is converted, SNR 0 is pure noise, and SNR 1 is the middle of each system."""
    for system in SYSTEMS:
        assert schedules.from_snr(np.ones((2, 3)), system)[1].shape == (2, 3)
    for system in ("vp", "flow"):
        assert schedules.from_snr(0, system) == (0, 1)
        assert schedules.from_lambda(-np.inf, system) == (0, 1)
    np.testing.assert_allclose(schedules.from_snr(1, "vp"), math.sqrt(0.5), rtol=2 * EPS)
    np.testing.assert_allclose(schedules.from_snr(1, "flow"), 0.5, rtol=2 * EPS)
    np.testing.assert_allclose(schedules.from_snr(4, "ve"), [1, 0.5], rtol=2 * EPS)


@untimed
@given(schedule=hand_made())
def test_variance_exploding_and_preserving_are_one_process(schedule: Schedule) -> None:
    """x / alpha and x / sqrt(alpha^2 + sigma^2) keep lambda and time; each form is found again from the other."""
    timed = schedule.with_time(schedule.lambda_)
    exploding, preserving = timed.to_variance_exploding(), timed.to_variance_preserving()
    assert exploding.variance_exploding
    assert preserving.variance_preserving
    for form in (exploding, preserving, preserving.to_variance_exploding(), exploding.to_variance_preserving()):
        # Three divisions and a hypot, a rounding each; the logarithm adds that of |lambda| <= 20.
        np.testing.assert_allclose(form.lambda_, schedule.lambda_, rtol=8 * EPS, atol=8 * EPS)
        np.testing.assert_array_equal(form.time, schedule.lambda_)
    np.testing.assert_allclose(preserving.to_variance_exploding().sigma, exploding.sigma, rtol=8 * EPS)
    np.testing.assert_allclose(exploding.to_variance_preserving().alpha, preserving.alpha, rtol=8 * EPS)
    np.testing.assert_allclose(preserving.alpha, schedules.from_lambda(schedule.lambda_)[0], rtol=64 * EPS)


@untimed
@given(schedule=hand_made())
def test_unit_input(schedule: Schedule) -> None:
    """scale_in x has variance 1 for unit data; in the variance-exploding form the factor is the preserving alpha."""
    scaled = schedule.with_unit_input()
    np.testing.assert_allclose(scaled.scale_in**2 * (scaled.alpha**2 + scaled.sigma**2), 1, rtol=16 * EPS)
    np.testing.assert_array_equal(scaled.alpha, schedule.alpha)
    half = schedule.with_unit_input(0.5)  # c_in of Karras et al. 2022
    np.testing.assert_allclose(half.scale_in**2 * (0.25 * half.alpha**2 + half.sigma**2), 1, rtol=16 * EPS)
    np.testing.assert_allclose(
        schedule.to_variance_exploding().with_unit_input().scale_in,
        schedule.to_variance_preserving().alpha,
        rtol=16 * EPS,
    )


# --- by name and by config

OPTIONS: dict[str, dict[str, float]] = {
    "linear": {"beta_start": 1e-3, "beta_end": 0.1},
    "scaled_linear": {"beta_start": 1e-3, "beta_end": 0.1},
    "cosine": {"s": 0.02},
    "sigmoid": {"beta_start": 1e-3, "beta_end": 0.1},
    "exponential": {"rate": 5.0},
    "vp": {"beta_min": 0.2, "beta_max": 10.0},
    "sub_vp": {"beta_min": 0.2, "beta_max": 10.0},
    "progressive_vae": {"sigma2_start": 1e-3, "sigma2_slope": 0.1},
    "geometric": {"sigma_min": 0.1, "sigma_max": 3.0},
    "log_linear": {"sigma_min": 0.1, "sigma_max": 3.0},
    "karras": {"sigma_min": 0.1, "sigma_max": 3.0, "rho": 5.0},
    "flow": {"shift": 3.0},
}


@pytest.mark.parametrize("name", schedules.names())
def test_config_round_trip(name: str) -> None:
    """A schedule is rebuilt to the last bit from its config, through JSON; the config holds every argument."""
    plain = schedules.make(name, T=20, **OPTIONS[name])
    assert plain.config == {"name": name, "T": 20, **OPTIONS[name]}
    made = [plain, schedules.make(name, T=np.int64(20)), plain.with_unit_input(), plain.with_unit_input(0.5)]
    if plain.variance_preserving:
        made += [plain.zero_terminal_snr(), plain.zero_terminal_snr().with_unit_input()]
        made += [plain.with_unit_input(0.5).zero_terminal_snr()]
    for schedule in made:
        rebuilt = schedules.from_config(json.loads(json.dumps(schedule.config)))
        for array in ("alpha", "sigma", "time", "scale_in"):
            np.testing.assert_array_equal(getattr(rebuilt, array), getattr(schedule, array))
        assert rebuilt.config == schedule.config


def test_options_cover_every_name() -> None:
    """The round trip above sets every option of every schedule to something that is not its default."""
    for name in schedules.names():
        parameters = inspect.signature(getattr(schedules, name)).parameters
        assert set(OPTIONS[name]) == set(parameters) - {"T"}
        assert all(OPTIONS[name][key] != parameters[key].default for key in OPTIONS[name])


def test_make_takes_thousand_levels_by_default() -> None:
    """`make` alone means T = 1000, also where the function's own default is another."""
    assert len(schedules.make("geometric")) == 1000
    assert len(schedules.geometric()) == 10


@pytest.mark.parametrize("changed", ["with_time", "to_variance_exploding", "to_variance_preserving"])
def test_changes_without_a_name_leave_no_config(changed: str) -> None:
    """A schedule that its config would not rebuild has none, and says so."""
    schedule = schedules.linear(10)
    arguments = [schedule.sigma] if changed == "with_time" else []
    other = getattr(schedule, changed)(*arguments)
    assert other.config == {}
    assert other.with_unit_input().config == {}
    with pytest.raises(InputError, match="has no name: it was made by hand"):
        schedules.from_config(other.config)


# --- what cannot be


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"alpha": [], "sigma": []}, r"alpha must be a non-empty 1-D array .* got shape \(0,\)"),
        ({"alpha": 1.0, "sigma": 1.0}, r"alpha must be a non-empty 1-D array"),
        ({"alpha": [[1.0]], "sigma": [[1.0]]}, r"alpha must be a non-empty 1-D array .* got shape \(1, 1\)"),
        ({"alpha": [1.0, 0.5], "sigma": [1.0]}, r"sigma must be .* as long as alpha, got shape \(1,\)"),
        ({"alpha": [1.0], "sigma": [1.0], "time": [0, 1]}, r"time must be .* as long as alpha, got shape \(2,\)"),
        ({"alpha": [1.0], "sigma": [1.0], "scale_in": [1, 1]}, r"scale_in must be .* as long as alpha"),
        ({"alpha": [math.nan], "sigma": [1.0]}, "alpha must be finite"),
        ({"alpha": [1.0], "sigma": [math.inf]}, "sigma must be finite"),
        ({"alpha": [1.0], "sigma": [1.0], "time": [math.nan]}, "time must be finite"),
        ({"alpha": [1.0], "sigma": [1.0], "scale_in": [math.inf]}, "scale_in must be finite"),
        ({"alpha": [-0.1], "sigma": [1.0]}, "alpha must be >= 0 and sigma > 0"),
        ({"alpha": [1.0], "sigma": [0.0]}, "alpha must be >= 0 and sigma > 0"),
        ({"alpha": [1.0, 1.0], "sigma": [0.5, 0.5]}, "alpha / sigma must fall strictly"),
        ({"alpha": [0.5, 1.0], "sigma": [0.5, 0.5]}, "alpha / sigma must fall strictly"),
        ({"alpha": [1.0, 0.0, 0.0], "sigma": [0.5, 0.5, 0.6]}, "alpha / sigma must fall strictly"),
    ],
)
def test_bad_levels(arrays: dict[str, Any], message: str) -> None:
    """Levels that no process has are refused, each with its reason."""
    with pytest.raises(InputError, match=message):
        Schedule(**arrays)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("linear", {"beta_start": 0.0}, "betas need 0 < beta_start <= beta_end < 1, got 0.0 and 0.02"),
        ("linear", {"beta_start": 0.03}, "betas need 0 < beta_start <= beta_end < 1"),
        ("scaled_linear", {"beta_end": 1.0}, "betas need 0 < beta_start <= beta_end < 1"),
        ("sigmoid", {"beta_start": math.nan}, "beta_start must be finite, got nan"),
        ("progressive_vae", {"sigma2_slope": -1.0}, "betas need 0 < beta_start <= beta_end < 1"),
        ("cosine", {"s": -0.1}, "the cosine offset s must be >= 0, got -0.1"),
        ("geometric", {"sigma_min": 0.0}, "sigmas need 0 < sigma_min < sigma_max, got 0.0"),
        ("log_linear", {"sigma_min": 20.0}, "sigmas need 0 < sigma_min < sigma_max"),
        ("karras", {"sigma_max": math.inf}, "sigma_max must be finite, got inf"),
        ("karras", {"rho": 0.0}, "rho must be > 0, got 0.0"),
        ("exponential", {"rate": 0.0}, "rate must be > 0, got 0.0"),
        ("vp", {"beta_min": 0.0}, "betas need 0 < beta_min <= beta_max, got 0.0 and 20.0"),
        ("sub_vp", {"beta_max": 0.01}, "betas need 0 < beta_min <= beta_max, got 0.1 and 0.01"),
        ("flow", {"shift": 0.0}, "shift must be > 0, got 0.0"),
        ("flow", {"shift": "3"}, "shift must be finite, got '3'"),
        ("linaer", {}, "unknown schedule 'linaer': did you mean 'linear'"),
        ("karas", {}, "did you mean 'karras'"),
        ("linear", {"beta_stop": 1}, "schedule 'linear': .*unexpected keyword argument 'beta_stop'"),
        *((name, {"T": 0}, "T must be a whole number, at least 1, got 0") for name in schedules.names()),
        ("linear", {"T": 10.5}, "T must be a whole number, at least 1, got 10.5"),
    ],
)
def test_bad_arguments(name: str, options: dict[str, Any], message: str) -> None:
    """Each wrong argument gets one line that names it; a wrong name gets the nearest one."""
    with pytest.raises(InputError, match=message) as caught:
        schedules.make(name, **options)
    assert "\n" not in str(caught.value)


def test_bad_conversions() -> None:
    """What has no other form says why."""
    with pytest.raises(InputError, match="unknown system 'vpe': did you mean"):
        schedules.from_lambda(0.0, "vpe")
    with pytest.raises(InputError, match="snr must be >= 0"):
        schedules.from_snr([1.0, -1.0])
    with pytest.raises(InputError, match="zero terminal SNR has no variance-exploding form: drop its last level"):
        schedules.linear(10).zero_terminal_snr().to_variance_exploding()
    with pytest.raises(InputError, match="sigma_data must be > 0 and finite, got 0.0"):
        schedules.linear(10).with_unit_input(0.0)
    for schedule in (schedules.karras(10), schedules.flow(10), schedules.linear(1)):
        with pytest.raises(InputError, match="needs a variance-preserving schedule of at least 2 levels"):
            schedule.zero_terminal_snr()


@pytest.mark.parametrize("array", ["alpha", "sigma", "time", "scale_in"])
def test_arrays_are_read_only_copies(array: str) -> None:
    """Nothing can change a schedule: neither through its arrays nor through those that it was made from."""
    given_arrays = {key: np.array([0.5]) for key in ("alpha", "sigma", "time", "scale_in")}
    schedule = Schedule(**given_arrays)
    given_arrays[array][0] = 7.0
    assert getattr(schedule, array)[0] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        getattr(schedule, array)[0] = 7.0
    assert getattr(schedule, array).dtype == np.float64
