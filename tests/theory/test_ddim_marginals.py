"""Section 4 of math.md: every eta has the marginals of the forward process, and what that means for samples."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff import prediction
from fastdiff.ops import reference
from fastdiff.plan import Plan
from fastdiff.samplers import ddim, ddpm, spacing
from tests.samplers.levels import Levels, levels

Array = npt.NDArray[np.float64]

LINEAR = fd.schedules.linear(1000)
SCHEDULES = {
    "linear": LINEAR,
    "cosine": fd.schedules.cosine(1000),
    "karras": fd.schedules.karras(1000),
    "flow": fd.schedules.flow(1000),
}
# A row's coefficients are of the size of alpha and sigma and are rounded a few times.
ATOL = 1e-13


def response(plan: Plan, at: Levels, name: str) -> tuple[Array, Array, Array]:
    """How x' of each row depends on the true x0, the true eps and the drawn z: three coefficients for each row.

    The row is carried out on unit vectors: x = alpha x0 + sigma eps, and the network says the truth.
    """
    basis = np.eye(3)
    x0, eps, z = basis[:, 0], basis[:, 1], basis[:, 2]
    c = prediction.coefficients(name, at.alpha, at.sigma)
    x = torch.from_numpy(np.outer(at.alpha, x0) + np.outer(at.sigma, eps))
    out = torch.from_numpy(np.outer(c.t0, x0) + np.outer(c.te, eps))
    table = torch.from_numpy(plan.table.copy())
    reference.step(x, out, table, plan.layout, torch.arange(len(plan)), z=torch.from_numpy(z).expand_as(x))
    by_x0, by_eps, by_z = x.numpy().T
    return by_x0, by_eps, by_z


@settings(deadline=None)
@given(
    schedule=st.sampled_from(sorted(SCHEDULES)),
    steps=st.integers(1, 100),
    name=st.sampled_from(spacing.names()),
    predicted=st.sampled_from(["x0", "v", "flow"]),
    eta=st.floats(0, 1),
)
def test_marginal_is_that_of_the_forward_process(
    schedule: str, steps: int, name: str, predicted: str, eta: float
) -> None:
    """If x_t ~ q(x_t | x0), then x_prev ~ q(x_prev | x0) = N(alpha_prev x0, sigma_prev^2), for every eta in [0, 1].

    x_prev = A x0 + B eps + C z with independent eps and z, so that A = alpha_prev and B^2 + C^2 = sigma_prev^2
    (Song et al. 2020, lemma 1).
    """
    plan = ddim(SCHEDULES[schedule], steps, eta, name, clip=None, prediction=predicted)
    at = levels(SCHEDULES[schedule], steps, name)
    by_x0, by_eps, by_z = response(plan, at, predicted)
    np.testing.assert_allclose(by_x0, at.alpha_prev, rtol=ATOL, atol=ATOL)
    np.testing.assert_allclose(np.hypot(by_eps, by_z), at.sigma_prev, rtol=ATOL, atol=ATOL)
    # s = eta sqrt(beta~), the share of it that is new noise.
    np.testing.assert_allclose(by_z, eta * np.sqrt(at.posterior_variance), rtol=ATOL, atol=ATOL)


@settings(deadline=None)
@given(schedule=st.sampled_from(sorted(SCHEDULES)), steps=st.integers(1, 50), seed=st.integers(0, 99))
def test_marginals_of_any_s(schedule: str, steps: int, seed: int) -> None:
    """From x_T ~ q(x_T | x0) down, x_t ~ N(alpha_t x0, sigma_t^2) at every level, for any s of each row.

    x_prev = alpha_prev x0 + sqrt(sigma_prev^2 - s^2) (x_t - alpha_t x0) / sigma_t + s z, with s in 0..sigma_prev: also
    beyond eta = 1.
    """
    at = levels(SCHEDULES[schedule], steps, "trailing")
    s = at.sigma_prev * np.random.default_rng(seed).uniform(0, 1, steps)
    of_x = np.sqrt(at.sigma_prev**2 - s**2) / at.sigma
    of_x0 = at.alpha_prev - of_x * at.alpha
    mean, variance, found = at.alpha[0], at.sigma[0] ** 2, []
    for by_x, by_x0, by_z in zip(of_x, of_x0, s, strict=True):
        mean, variance = by_x * mean + by_x0, by_x**2 * variance + by_z**2
        found.append((mean, variance))
    # At most 50 rows of a few roundings.
    np.testing.assert_allclose(found, np.stack([at.alpha_prev, at.sigma_prev**2], axis=1), rtol=100 * ATOL, atol=ATOL)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("name", spacing.names())
@pytest.mark.parametrize("steps", [7, 50])
def test_ddpm_small_has_the_marginals_and_the_larger_variances_do_not(schedule: str, name: str, steps: int) -> None:
    """DDPM with beta~ keeps the marginals; beta, and DDIM's sigma-hat, are wider by exactly beta - beta~."""
    at = levels(SCHEDULES[schedule], steps, name)
    plans = {
        "small": ddpm(SCHEDULES[schedule], steps, "small", name, clip=None, prediction="x0"),
        "large": ddpm(SCHEDULES[schedule], steps, "large", name, clip=None, prediction="x0"),
        "sigma-hat": ddim(SCHEDULES[schedule], steps, "sigma-hat", name, clip=None, prediction="x0"),
    }
    excess = np.append((at.step_variance - at.posterior_variance)[:-1], 0.0)
    assert (excess[:-1] > 0).all()
    for variance, plan in plans.items():
        by_x0, by_eps, by_z = response(plan, at, "x0")
        np.testing.assert_allclose(by_x0, at.alpha_prev, rtol=ATOL, atol=ATOL)
        wider = 0 * excess if variance == "small" else excess
        np.testing.assert_allclose(by_eps**2 + by_z**2, at.sigma_prev**2 + wider, rtol=2 * ATOL, atol=ATOL)


# --- Gaussian data: the exact network is linear, and a sample's mean and variance follow row by row


def propagate(plan: Plan, at: Levels, mean: float, sd: float) -> tuple[Array, Array]:
    """Mean and variance of the state after each row, for data N(mean, sd^2) and the exact E[x0 | x_t].

    E[x0 | x] = mean + k (x - alpha mean), k = alpha sd^2 / (alpha^2 sd^2 + sigma^2), and eps = (x - alpha x0) / sigma:
    each row is then affine, x' = a x + b + cz z. The start is exact, N(alpha mean, alpha^2 sd^2 + sigma^2).
    """
    k = at.alpha * sd**2 / (at.alpha**2 * sd**2 + at.sigma**2)
    cx, c0, ce, cz = (plan.column(column) for column in ("cx", "c0", "ce", "cz"))
    slope = cx + c0 * k + ce * (1 - at.alpha * k) / at.sigma
    offset = (c0 - ce * at.alpha / at.sigma) * (1 - at.alpha * k) * mean
    m, v, means, variances = at.alpha[0] * mean, at.alpha[0] ** 2 * sd**2 + at.sigma[0] ** 2, [], []
    for row in range(len(plan)):
        m, v = slope[row] * m + offset[row], slope[row] ** 2 * v + cz[row] ** 2
        means.append(m)
        variances.append(v)
    return np.array(means), np.array(variances)


@pytest.mark.parametrize("schedule", sorted(SCHEDULES))
@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_one_point_is_sampled_exactly(schedule: str, eta: float, steps: int) -> None:
    """For data of one point E[x0 | x_t] is the truth: every state has its marginal, and the last is the point."""
    at = levels(SCHEDULES[schedule], steps, "trailing")
    for plan in (
        ddim(SCHEDULES[schedule], steps, eta, "trailing", clip=None, prediction="x0"),
        ddpm(SCHEDULES[schedule], steps, spacing="trailing", clip=None, prediction="x0"),
    ):
        means, variances = propagate(plan, at, 0.7, 0.0)
        # Errors of each row, at the scale of sigma, add up over 50 rows.
        np.testing.assert_allclose(means, at.alpha_prev * 0.7, rtol=0, atol=100 * ATOL * at.sigma[0])
        np.testing.assert_allclose(variances, at.sigma_prev**2, rtol=1e-10, atol=100 * ATOL)
        assert (means[-1], variances[-1]) == (pytest.approx(0.7, abs=1e-15), 0.0)


@pytest.mark.parametrize("name", spacing.names())
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_unit_gaussian_by_ddim(name: str, steps: int) -> None:
    """For data N(0, 1) deterministic DDIM turns x by the angle between levels: x' = cos(theta - theta_prev) x.

    With alpha = cos theta, E[x0 | x] = alpha x and E[eps | x] = sigma x. A sample is too narrow by the product of
    the cosines, 1 - O(1 / steps).
    """
    at = levels(LINEAR, steps, name)
    plan = ddim(LINEAR, steps, 0.0, name, clip=None)
    _, variances = propagate(plan, at, 0.0, 1.0)
    turned = np.arctan2(at.sigma, at.alpha) - np.arctan2(at.sigma_prev, at.alpha_prev)
    np.testing.assert_allclose(variances, np.cumprod(np.cos(turned) ** 2), rtol=1e-12)  # 50 rows, a few roundings each


@pytest.mark.parametrize("name", spacing.names())
@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_unit_gaussian_by_ddpm_with_the_large_variance(name: str, steps: int) -> None:
    """For data N(0, 1) the reverse step has variance beta exactly, however long: each state is N(0, 1).

    The last row draws no noise and returns E[x0 | x_1] = alpha_1 x_1, of variance abar_1.
    """
    at = levels(LINEAR, steps, name)
    _, variances = propagate(ddpm(LINEAR, steps, "large", name, clip=None), at, 0.0, 1.0)
    np.testing.assert_allclose(variances[:-1], 1.0, rtol=1e-11)  # 1000 rows, a few roundings each, none forgotten
    assert variances[-1] == pytest.approx(at.alpha[-1] ** 2, rel=1e-11)


@pytest.mark.parametrize("mean", [0.0, 0.7])
@pytest.mark.parametrize("sd", [0.2, 1.0, 2.0])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_samples_converge_to_the_data(mean: float, sd: float, eta: float) -> None:
    """For data N(m, s^2) the sample's mean and variance approach m and s^2, with an error of order 1 / steps.

    On a flow of many levels, where every halving of the step is possible.
    """
    schedule = fd.schedules.flow(8192)
    errors = []
    for steps in (512, 1024, 2048):
        at = levels(schedule, steps, "trailing")
        plan = ddim(schedule, steps, eta, "trailing", clip=None, prediction="v")
        means, variances = propagate(plan, at, mean, sd)
        # The start, pure noise, is exact too.
        assert at.alpha[0] == 0
        errors.append(abs(means[-1] - mean) + abs(math.sqrt(variances[-1]) - sd))
    assert errors[-1] < 0.01
    # First order: halving the step halves the error, up to a relative error of the order of the step.
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.1)


def test_propagation_agrees_with_samples() -> None:
    """Row by row, the mean and variance of real samples are those that `propagate` predicts."""
    mean, sd, n = 0.7, 0.4, 10_000
    at = levels(LINEAR, 7, "trailing")
    plan = ddim(LINEAR, 7, 0.5, "trailing", clip=None, prediction="x0")
    alpha, sigma = (torch.from_numpy(scale.copy()) for scale in (LINEAR.alpha, LINEAR.sigma))

    def exact(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a, s = alpha[t.long()][:, None], sigma[t.long()][:, None]
        return mean + a * sd**2 / (a**2 * sd**2 + s**2) * (x - a * mean)

    drawn = np.random.default_rng(0).standard_normal((8, n, 1))
    start = at.alpha[0] * mean + math.hypot(at.alpha[0] * sd, at.sigma[0]) * drawn[7]
    states: list[Array] = []
    fd.sample(
        exact,
        plan,
        (n, 1),
        dtype=torch.float64,
        x_init=torch.from_numpy(start),
        noise=lambda stream, row, shape: torch.from_numpy(drawn[row]),
        callback=lambda row, x, x0: states.append(x.numpy().copy()),
    )
    means, variances = propagate(plan, at, mean, sd)
    for state, m, v in zip(states, means, variances, strict=True):
        # Five standard errors of a mean and of a variance of n Gaussians.
        assert abs(state.mean() - m) <= 5 * math.sqrt(v / n)
        assert abs(state.var() - v) <= 5 * v * math.sqrt(2 / n)
