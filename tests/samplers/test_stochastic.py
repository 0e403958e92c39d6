"""Stochastic samplers draw from the mixture, or from a law of their own: 100,000 samples within sampling error."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from scipy.special import ndtr
from torch import Tensor

import fastdiff as fd
from fastdiff.bench import wasserstein
from fastdiff.models import GaussianMixture
from fastdiff.plan import Plan
from fastdiff.samplers import SAMPLERS
from tests.samplers.claims import claim, convergent
from tests.samplers.propagate import marginals

SAMPLES = 100_000
MIXTURE = GaussianMixture(means=[[1.0, 0.3], [-1.0, -0.2]], spread=[0.1, 0.15], weights=[0.7, 0.3])
# From where the modes are one to where they are two; where no mode is wider than the noise, steps are nearly exact.
SCHEDULE = fd.schedules.geometric(1000, sigma_min=0.2, sigma_max=1.5)
# At the end of a plan that lands on the cleanest level.
NOISE = float(SCHEDULE.sigma[0])
STANDARD_ERRORS = 5


def noised(sigma: float, seed: int) -> Tensor:
    """Exact samples of the mixture with noise of variance sigma^2, float64 [SAMPLES, 2]."""
    z = fd.noise.normal((SAMPLES, 2), seed, stream="q_sample").double()
    return MIXTURE.sample(SAMPLES, seed) + sigma * z


@functools.cache
def exact(seed: int) -> Tensor:
    """Exact samples of what the plans land on."""
    return noised(NOISE, seed)


@functools.cache
def null_distance() -> float:
    """Root mean square of the sliced Wasserstein distance between sets of exact samples."""
    pairs = ((1, 2), (2, 3), (3, 1))
    return math.sqrt(sum(wasserstein.sliced(exact(a), exact(b), projections=16) ** 2 for a, b in pairs) / len(pairs))


def in_first_mode(x: Tensor) -> Tensor:
    """Whether each sample is more likely of the first component than of the second, as 0 or 1."""
    log_odds = [MIXTURE.log_density(x, 1.0, NOISE, torch.full((len(x),), k)) for k in (0, 1)]
    return (log_odds[0] > log_odds[1]).double()


def check(x: Tensor) -> None:
    """Mean, covariance, mode weights and sliced Wasserstein distance are those of exact samples."""
    x, n = x.double(), len(x)
    mean, covariance = moments()
    centred = x - mean
    products = centred[:, :, None] * centred[:, None]
    assert ((x.mean(dim=0) - mean).abs() <= STANDARD_ERRORS * x.std(dim=0) / math.sqrt(n)).all()
    assert ((products.mean(dim=0) - covariance).abs() <= STANDARD_ERRORS * products.std(dim=0) / math.sqrt(n)).all()
    share, expected = (float(in_first_mode(points).mean()) for points in (x, exact(1)))
    assert abs(share - expected) <= STANDARD_ERRORS * math.sqrt(2 * expected * (1 - expected) / n)
    # Its square is mostly that of one Gaussian number, the mode weights' error, of which 1 in 400 exceeds 3 deviations.
    assert wasserstein.sliced(x, exact(1), projections=16) <= 3 * null_distance()


def moments() -> tuple[Tensor, Tensor]:
    """Mean and covariance of what the plans land on."""
    w, m, axes = MIXTURE.weights, MIXTURE.means, MIXTURE.axes
    mean = w @ m
    within = torch.einsum("k,kde,ke,kfe->df", w, axes, MIXTURE.variances, axes)
    between = torch.einsum("k,kd,ke->de", w, m - mean, m - mean)
    return mean, within + between + NOISE**2 * torch.eye(2, dtype=torch.float64)


def test_the_check_itself() -> None:
    """Exact samples pass; samples with a mode too heavy by 2 %, or wider by 2 %, do not."""
    x = exact(4)
    check(x)
    first = in_first_mode(x).bool()
    heavier = torch.cat([x[first], x[first][: len(x) // 50], x[~first]])[:SAMPLES]
    for wrong in (heavier, 1.02 * x):
        with pytest.raises(AssertionError):
            check(wrong)


@pytest.mark.parametrize("name", convergent(noise=True))
def test_samples(name: str) -> None:
    """From an exact start, in so many steps that what their order leaves of the error is below the sampling error."""
    steps = {1: 64, 2: 16}[claim(name).order]
    levels = {"spacing": "exponential", "final": "sigma_min", "clip": None, "prediction": "eps"}
    plan = fd.samplers.make(name, SCHEDULE, steps=steps, **levels, **claim(name).options(steps))
    check(fd.sample(MIXTURE.network(SCHEDULE), plan, (SAMPLES, 2), x_init=noised(plan.sigma[0], seed=0).float()))


# Langevin dynamics and the distilled samplers, whose error stays.
LAWS_OF_THEIR_OWN = [name for name in SAMPLERS if claim(name).noise and claim(name).order is None]


@pytest.mark.parametrize("name", LAWS_OF_THEIR_OWN)
def test_laws_of_their_own(name: str) -> None:
    """For Gaussian data every state is Gaussian, with a mean and deviation that follow exactly from the plan."""
    m, s, n = 0.7, 0.5, SAMPLES
    model = GaussianMixture([[m]], [s]).network(SCHEDULE)
    steps, few = (10, {"per_level": 10}) if name == "annealed_langevin" else (20, {})
    plan = fd.samplers.make(name, SCHEDULE, steps=steps, final="sigma_min", clip=None, **few)
    start = math.hypot(s, plan.sigma[0])
    mean, deviation = (law[-1] for law in marginals(plan, model, m, start))
    x = fd.sample(model, plan, (n, 1), x_init=m + start * fd.noise.normal((n, 1), seed=1)).double()
    assert abs(x.mean() - mean) <= STANDARD_ERRORS * deviation / math.sqrt(n)
    assert abs(x.std() - deviation) <= STANDARD_ERRORS * deviation / math.sqrt(2 * n)


# --- Langevin dynamics on the mixture of Song & Ermon 2019, section 3.2.2

FAR_MODES = GaussianMixture(means=[[-5.0, -5.0], [5.0, 5.0]], spread=[1.0, 1.0], weights=[0.2, 0.8])
WIDE = fd.schedules.geometric(100, sigma_min=0.5, sigma_max=10.0)


def share_of_heavy_mode(plan: Plan) -> float:
    """Share of 4,000 samples nearer to (5, 5) than to (-5, -5), from a wide start between the two."""
    start = 8 * fd.noise.normal((4000, 2))
    return float((fd.sample(FAR_MODES.network(WIDE), plan, start.shape, x_init=start).sum(dim=1) > 0).double().mean())


def test_langevin_knows_the_weights_of_modes_only_where_noise_joins_them() -> None:
    """Under little noise a mode's share stays that of the start; under much, and by annealing, it becomes right."""
    little = fd.samplers.langevin(WIDE, 100, sigma=0.5, clip=None)
    much = fd.samplers.langevin(WIDE, 100, sigma=10.0, clip=None)
    annealed = fd.samplers.annealed_langevin(WIDE, 20, per_level=20, spacing="exponential", clip=None)
    # Noise of deviation 10, which steps of a tenth widen to 10 / sqrt(1 - 0.05), hides on which side of 0 a mode is.
    hidden = ndtr(-5 * math.sqrt(2) / math.hypot(1.0, 10 / math.sqrt(0.95)))
    for plan, share in ((little, 0.5), (much, 0.8 * (1 - hidden) + 0.2 * hidden), (annealed, 0.8)):
        assert abs(share_of_heavy_mode(plan) - share) <= STANDARD_ERRORS * math.sqrt(share * (1 - share) / 4000)
