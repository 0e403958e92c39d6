"""Sections 3 and 8 of math.md: the KL divergence of Gaussians, and the Gaussian ELBO of a VAE."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.theory.gaussian import kl, log_density, nodes

Array = npt.NDArray[np.float64]

means = st.floats(-3, 3)
deviations = st.floats(0.2, 3)


@settings(deadline=None)
@given(m1=means, s1=deviations, m2=means, s2=deviations)
def test_kl_of_gaussians(m1: float, s1: float, m2: float, s2: float) -> None:
    """KL(N(m1, s1^2) || N(m2, s2^2)) = int p1 log(p1 / p2) = log(s2 / s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2."""
    x = np.linspace(m1 - 12 * s1, m1 + 12 * s1, 2001)
    log_p1, log_p2 = log_density(x, m1, s1**2), log_density(x, m2, s2**2)
    integral = float(np.exp(log_p1) @ (log_p1 - log_p2)) * (x[1] - x[0])
    # The trapezoidal rule is exact to rounding; the terms are at most (s1^2 + 36) / (2 s2^2) ~ 600.
    assert kl(m1, s1**2, m2, s2**2) == pytest.approx(integral, rel=1e-12, abs=1e-12)


@given(s1=deviations, s2=deviations)
def test_kl_divides_by_the_second_variance(s1: float, s2: float) -> None:
    """A KL is never negative; with the first variance in the denominator, as some notes print, it would be.

    For equal means that form is `log(s2 / s1)`, below 0 for every s2 < s1.
    """
    printed = np.log(s2 / s1) + s1**2 / (2 * s1**2) - 0.5
    assert kl(0.0, s1**2, 0.0, s2**2) >= -1e-15  # rounding, where s1 = s2
    assert printed == pytest.approx(np.log(s2 / s1), abs=1e-15)


# --- the KL term of a VAE: posterior N(mu, diag s^2), prior N(0, I_r)

MU, S = np.array([0.7, -1.2, 0.1]), np.array([0.3, 1.1, 2.0])


def closed_form(mu: Array, s: Array) -> float:
    """KL(N(mu, diag s^2) || N(0, I_r)): 2 KL = |mu|^2 + |s|^2 - r - sum log s_i^2."""
    return float((mu**2).sum() + (s**2).sum() - len(mu) - np.log(s**2).sum()) / 2


def log_ratio(z: Array) -> Array:
    """log N(z; MU, diag S^2) - log N(z; 0, I) for z [..., r]."""
    return np.asarray((log_density(z, MU, S**2) - log_density(z, 0.0, 1.0)).sum(axis=-1))


def test_kl_to_the_prior_by_quadrature() -> None:
    """2 KL(N(mu, diag s^2) || N(0, I_r)) = |mu|^2 + |s|^2 - r - sum log s_i^2: the sum of the one-dimensional ones.

    The expectation of log q / p over z = mu + s eps is exact with 2 nodes: it is quadratic.
    """
    eps, chances = nodes(2)
    z = MU + S * np.stack(np.meshgrid(eps, eps, eps, indexing="ij"), axis=-1)
    expected = np.einsum("ijk,i,j,k->", log_ratio(z), chances, chances, chances)
    assert closed_form(MU, S) == pytest.approx(expected, rel=1e-13)  # sums of 8 terms
    assert closed_form(MU, S) == pytest.approx(kl(MU, S**2, 0.0, 1.0).sum(), rel=1e-14)


def test_kl_to_the_prior_by_monte_carlo() -> None:
    """The same as a mean over draws z = mu + s eps, as training would estimate it."""
    n = 100_000
    draws = log_ratio(MU + S * np.random.default_rng(0).standard_normal((n, 3)))
    # Five standard errors.
    assert abs(draws.mean() - closed_form(MU, S)) <= 5 * draws.std() / n**0.5


# --- the ELBO, where p(x) is known: a linear decoder, D(z) = W z + b of one latent

W, B, NOISE, X = np.array([1.5, -0.4]), np.array([0.2, 0.1]), 0.6, np.array([0.9, -0.7])


def log_evidence() -> float:
    """log p(x) of p(x) = N(b, W W^T + s^2 I)."""
    covariance = np.outer(W, W) + NOISE**2 * np.eye(2)
    gap = X - B
    return float(-gap @ np.linalg.solve(covariance, gap) - np.linalg.slogdet(2 * np.pi * covariance)[1]) / 2


def posterior() -> tuple[float, float]:
    """Mean and variance of p(z | x), prior N(0, 1)."""
    variance = 1 / (1 + float(W @ W) / NOISE**2)
    return variance * float(W @ (X - B)) / NOISE**2, variance


def elbo(mu: float, variance: float) -> float:
    """E log p(x | z) - KL(q || N(0, 1)) for q(z) = N(mu, variance), log p = -1/2 |x - D_mu|^2 / s^2 - log(2 pi s^2)."""
    eps, chances = nodes(2)  # exact: the reconstruction is quadratic in z
    decoded = (mu + variance**0.5 * eps)[:, None] * W + B
    return float(chances @ log_density(X, decoded, NOISE**2).sum(axis=1) - kl(mu, variance, 0.0, 1.0))


@given(shift=st.floats(-2, 2), factor=st.floats(0.2, 5))
def test_elbo_falls_short_of_the_evidence_by_the_kl_of_the_encoder(shift: float, factor: float) -> None:
    """log p(x) - ELBO = KL(q(z | x) || p(z | x)) >= 0 for any Gaussian encoder, and 0 for the exact one."""
    mean, variance = posterior()
    mu, v = mean + shift, variance * factor
    assert elbo(mean, variance) == pytest.approx(log_evidence(), rel=1e-13)  # some roundings
    assert log_evidence() - elbo(mu, v) == pytest.approx(kl(mu, v, mean, variance), rel=1e-12, abs=1e-12)


def test_reconstruction_exponent_has_its_sign_and_its_half() -> None:
    """With the printed reconstruction term, `-log(2 pi) / 2 + |x - D_mu|^2`, the ELBO would be no lower bound.

    For s = 1, which that form means: a decoder that misses by 10 would have an ELBO of +95 per element, above any
    log-density of N(D_mu, 1), at most -log(2 pi) / 2.
    """
    miss, best = 10.0, -np.log(2 * np.pi) / 2
    printed = best + miss**2
    assert printed > best > log_density(miss, 0.0, 1.0) == pytest.approx(best - miss**2 / 2)
