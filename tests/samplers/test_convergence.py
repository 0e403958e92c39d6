"""Deterministic samplers approach the exact path to the data, and as fast as their order says."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import fastdiff as fd
from fastdiff.models import GaussianMixture
from tests.samplers.claims import claim, convergent

# Two modes of unequal weight and shape, so near that paths bend on their way.
MIXTURE = GaussianMixture(
    means=[[1.0, 0.3], [-1.0, -0.2]],
    spread=[[[0.16, 0.06], [0.06, 0.09]], [[0.09, 0.0], [0.0, 0.25]]],
    weights=[0.7, 0.3],
)
# Equal steps in log sigma are equal steps in time, so that methods for equal steps are at home here, too.
SCHEDULE = fd.schedules.geometric(1000, sigma_min=0.05, sigma_max=5.0)


@functools.cache
def paths() -> tuple[Tensor, Tensor]:
    """Where 32 paths begin, at the noisiest level, and where they end, at the cleanest, to about eleven digits."""
    start = MIXTURE.sample(32) + SCHEDULE.sigma[-1] * fd.noise.normal((32, 2)).double()

    def derivative(log_sigma: float, x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        sigma = math.exp(log_sigma)  # dx / dsigma = eps
        return (sigma * MIXTURE.eps(torch.from_numpy(x).view(-1, 2), 1.0, sigma)).flatten().numpy()

    span = np.log(SCHEDULE.sigma[[-1, 0]])
    solved = solve_ivp(derivative, span, start.flatten().numpy(), method="DOP853", rtol=1e-12, atol=1e-13)
    return start, torch.from_numpy(solved.y[:, -1]).view(-1, 2)


def error(name: str, steps: int, spacing: str, **options: Any) -> float:
    """Median distance of a sampler's ends from the exact ones: some path always runs along the border of two modes."""
    start, end = paths()
    sampler = getattr(fd.samplers, name)
    plan = sampler(SCHEDULE, steps=steps, spacing=spacing, final="sigma_min", clip=None, **options)
    if plan.sigma[0] < plan.sigma[-1]:  # inversion
        start, end = end, start
    got = fd.sample(MIXTURE.network(SCHEDULE), plan, start.shape, x_init=start, dtype=torch.float64)
    return float((got - end).norm(dim=1).median())


def slope(name: str, spacing: str, **options: Any) -> float:
    """The order that two errors show: in the limit, halving the steps divides the error by 2^order."""
    # Both numbers are multiples of 3, the stages of a step of dpmpp_3s.
    return math.log2(error(name, 60, spacing, **options) / error(name, 120, spacing, **options))


@pytest.mark.parametrize("spacing", ["exponential", "karras"])
@pytest.mark.parametrize("name", convergent(noise=False))
def test_order_of_convergence(name: str, spacing: str) -> None:
    """Of every deterministic sampler, over equal steps of log sigma and over others."""
    # The error's next term is a few steps of 0.04 to 0.08 times the first, and lms still shows its later steps' order.
    assert claim(name).order - 0.2 < slope(name, spacing) < claim(name).order + 0.5


@pytest.mark.parametrize(
    ("name", "options", "order"),
    [
        ("deis", {"order": 1}, 1),
        ("deis", {"warm_up": "runge_kutta"}, 3),
        ("deis", {"warm_up": "runge_kutta", "basis": "rho"}, 3),
        ("deis", {"warm_up": "runge_kutta", "order": 4}, 4),
        ("dpm_solver", {"order": 3}, 3),
        ("dpm_solver_single", {"order": 3}, 3),
        ("dpmpp", {"order": 1}, 1),
        ("dpmpp", {"solver": "heun"}, 2),
        ("dpmpp_2m_sde", {"eta": 0.0}, 2),
        ("dpmpp_2s_ancestral", {"eta": 0.0}, 2),
        ("dpmpp_3m_sde", {"eta": 0.0}, 2),
        ("dpmpp_3m_sde", {"eta": 0.0, "third": "exact"}, 3),
        ("dpmpp_sde", {"eta": 0.0}, 2),
        ("euler_ancestral", {"eta": 0.0}, 1),
        ("kdpm2_ancestral", {"eta": 0.0}, 2),
        ("lms", {"order": 1}, 1),
        ("restart", {"intervals": ()}, 2),
        ("sa_solver", {"tau": 0.0}, 2),
        ("sa_solver", {"tau": 0.0, "predictor_order": 1, "corrector_order": 0}, 1),
        ("sigma_space", {"mu": 0.0}, 1),
        ("tcd", {"gamma": 0.0}, 1),
        ("unipc", {"order": 1}, 2),
        ("unipc", {"solver": "bh1"}, 3),
        ("unipc", {"disable_corrector": range(120)}, 2),
        ("unipc", {"order": 3}, 3),
        ("unipc", {"order": 3, "solver": "bh1"}, 3),
        ("unipc", {"order": 3, "predicts": "eps"}, 3),
    ],
)
def test_order_with_options(name: str, options: dict[str, Any], order: int) -> None:
    """Of other orders, and of stochastic samplers without their noise; some are faster than they claim."""
    # As above, and the higher the order, the more there is of the next term.
    assert slope(name, "karras", **options) > order - 0.3
