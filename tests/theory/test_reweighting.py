"""Sections 3 and 4 of math.md: the bounds of all DDIM processes are the same loss with other weights."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch

import fastdiff as fd
from fastdiff.models import GaussianMixture
from tests.samplers.levels import levels
from tests.theory.gaussian import log_density, nodes

Array = npt.NDArray[np.float64]
Network = Callable[[Array, int], Array]  # (x_t, row) -> eps_hat

AT = levels(fd.schedules.linear(3, 0.2, 0.6), None)
ROWS = range(3)  # from x_3 to x_2, x_2 to x_1 and x_1 to x_0
DATA = [-1.0, 0.2, 1.5]
# The variance of p(x_0 | x_1), where the posterior is a point and eta says nothing.
LAST_VARIANCE = 0.1
ETAS = [0.2, 0.6, 1.0, "random"]


def network(seed: int) -> Network:
    """A smooth network that is wrong everywhere, with parameters of its own for each level."""
    a, b, c, d = np.random.default_rng(seed).normal(size=(4, len(ROWS)))
    return lambda x, row: a[row] * np.sin(b[row] * x + c[row]) + d[row] * x


def zero(x: Array, row: int) -> Array:
    """The network that says 0."""
    return 0 * x


def deviations(eta: float | str) -> Array:
    """s of each row, [3]: eta sqrt(beta~), or any s in 0..sigma_prev."""
    if isinstance(eta, float):
        return eta * np.sqrt(AT.posterior_variance)
    return AT.sigma_prev * np.random.default_rng(0).uniform(0.2, 1, len(ROWS))


def x0_hat(eps_hat: Network, x: Array, row: int) -> Array:
    """What the network takes for x0: x_t = alpha x0_hat + sigma eps_hat."""
    return np.asarray((x - AT.sigma[row] * eps_hat(x, row)) / AT.alpha[row])


def mean(row: int, s: Array, x: Array, x0: Array | float) -> Array:
    """Mean of q_s(x_prev | x_t, x0) = N(alpha_prev x0 + sqrt(sigma_prev^2 - s^2) eps, s^2).

    Here eps = (x_t - alpha x0) / sigma. The generative p(x_prev | x_t) is the same with x0_hat(x_t) for x0
    (Song et al. 2020, eqs. 7 and 10).
    """
    eps = (x - AT.alpha[row] * x0) / AT.sigma[row]
    return np.asarray(AT.alpha_prev[row] * x0 + np.sqrt(AT.sigma_prev[row] ** 2 - s[row] ** 2) * eps)


def l_vlb(eps_hat: Network, s: Array) -> float:
    """E log q_s(x_{1:3} | x0) - log p(x_{0:3}), straight from the definition: an integral over every path.

    q_s draws x_3 ~ N(alpha x0, sigma^2) and then x_2 and x_1 from q_s(x_prev | x_t, x0), by 40 nodes each.
    """
    nodes_of_z, chances = nodes(40)
    first, *others = np.meshgrid(*[nodes_of_z] * 3, indexing="ij", sparse=True)
    total = 0.0
    for x0 in DATA:
        x = AT.alpha[0] * x0 + AT.sigma[0] * first
        log_ratio = log_density(x, AT.alpha[0] * x0, AT.sigma[0] ** 2) - log_density(x, 0.0, 1.0)
        for row, z in enumerate(others):
            truth, guess = mean(row, s, x, x0), mean(row, s, x, x0_hat(eps_hat, x, row))
            x = truth + s[row] * z
            log_ratio = log_ratio + log_density(x, truth, s[row] ** 2) - log_density(x, guess, s[row] ** 2)
        log_ratio = log_ratio - log_density(x0, x0_hat(eps_hat, x, ROWS[-1]), LAST_VARIANCE)
        total += np.einsum("ijk,i,j,k->", log_ratio, chances, chances, chances) / len(DATA)
    return float(total)


def gamma(s: Array) -> Array:
    """Weights of |eps - eps_hat|^2: with x0 - x0_hat = -sigma / alpha (eps - eps_hat), the gap of the means over 2 s^2.

    gamma_t = (alpha_prev sigma / alpha - sqrt(sigma_prev^2 - s^2))^2 / (2 s^2), and in the last row, whose mean is
    x0_hat, (sigma / alpha)^2 / (2 s^2).
    """
    ratio = AT.sigma / AT.alpha
    gaps = AT.alpha_prev[:-1] * ratio[:-1] - np.sqrt(AT.sigma_prev[:-1] ** 2 - s[:-1] ** 2)
    return np.append(gaps**2 / (2 * s[:-1] ** 2), ratio[-1] ** 2 / (2 * LAST_VARIANCE))


def errors(eps_hat: Network) -> Array:
    """E |eps - eps_hat(alpha x0 + sigma eps)|^2 of each row, [3]."""
    eps, chances = nodes(40)
    found = [
        [chances @ (eps - eps_hat(AT.alpha[row] * x0 + AT.sigma[row] * eps, row)) ** 2 for x0 in DATA] for row in ROWS
    ]
    return np.mean(found, axis=1)


@pytest.mark.parametrize("eta", ETAS)
def test_l_vlb_of_every_process_is_l_gamma_and_a_constant(eta: float | str) -> None:
    """L_VLB(s) = L_gamma + C (Song et al. 2020, theorem 1): for all networks the same C, whatever their errors.

    L_gamma = sum_t gamma_t E |eps - eps_hat(x_t, t)|^2. So a network trained with any weights serves every process.
    """
    s = deviations(eta)
    constants = [l_vlb(net, s) - gamma(s) @ errors(net) for net in (zero, *map(network, range(8)))]
    # C has the part of the network in none: L_T, and the entropy of p(x_0 | x_1).
    prior = np.mean([AT.alpha[0] ** 2 * x0**2 + AT.sigma[0] ** 2 - 1 - np.log(AT.sigma[0] ** 2) for x0 in DATA]) / 2
    expected = prior + np.log(2 * np.pi * LAST_VARIANCE) / 2
    # Measured: 6e-13, the rounding of bounds of up to 30.
    assert constants == pytest.approx([expected] * 9, abs=1e-11)


@pytest.mark.parametrize("eta", ETAS)
def test_the_weights_are_no_others(eta: float | str) -> None:
    """With those of the gap of x0 alone, sigma^2 / (2 s^2 alpha^2), the difference is another for every network.

    The direction's eps_hat errs, too, and takes from the gap of the means.
    """
    s = deviations(eta)
    of_x0 = np.append(s[:-1] ** 2, LAST_VARIANCE) ** -1 * (AT.sigma / AT.alpha) ** 2 / 2
    differences = [l_vlb(net, s) - of_x0 @ errors(net) for net in map(network, range(8))]
    assert np.ptp(differences) > 0.1


def test_gamma_at_eta_one_is_that_of_ddpm() -> None:
    """For eta = 1 the weights are those of DDPM's bound, beta^2 / (2 beta~ (1 - beta) (1 - abar))."""
    beta = (1 - (AT.alpha / AT.alpha_prev) ** 2)[:-1]
    expected = beta**2 / (2 * AT.posterior_variance[:-1] * (1 - beta) * (1 - AT.alpha[:-1] ** 2))
    np.testing.assert_allclose(gamma(deviations(1.0))[:-1], expected, rtol=1e-13)  # some roundings


def test_every_weight_has_the_same_best_network() -> None:
    """E[eps | x_t] minimises L_gamma for all positive gamma: any other network has larger errors at every level."""
    data = GaussianMixture(np.array(DATA)[:, None], [0.0] * len(DATA))

    def best(x: Array, row: int) -> Array:
        return np.asarray(data.eps(torch.from_numpy(x)[:, None], AT.alpha[row], AT.sigma[row])[:, 0])

    for seed in range(8):
        near = network(seed)
        assert (errors(lambda x, row, near=near: best(x, row) + 0.1 * near(x, row)) > errors(best)).all()
