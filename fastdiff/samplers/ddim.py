"""DDIM (Song et al. 2020): from deterministic (eta = 0) to ancestral (eta = 1) on any subsequence of the levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastdiff.errors import InputError
from fastdiff.plan import Plan
from fastdiff.samplers.rows import Levels, eps_columns, levels, x0_columns
from fastdiff.schedules import Array, Schedule

SIGMA_HAT = "sigma-hat"


def ddim(
    schedule: Schedule,
    steps: int | None = 50,
    eta: float | str = 0.0,
    spacing: str = "leading",
    timesteps: Sequence[int] | None = None,
    clip: float | None = 1.0,
    prediction: str = "eps",
    rederive_eps: bool = True,
) -> Plan:
    """DDIM: `x_prev = alpha_prev x0 + sqrt(sigma_prev^2 - s^2) eps + s z` (Song et al. 2020, eq. 12).

    Written in (alpha, sigma), so it holds for every schedule, variance preserving or not.

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations, 1..T; None takes every level.
        eta: `s = eta sqrt(beta~)` (eq. 16): 0 is deterministic, 1 is DDPM with the small variance. "sigma-hat" keeps
            the direction of eta = 1 and draws noise of the larger variance beta (the last row of the paper's Table 1,
            appendix D.3); its marginals are wider than the forward process's, and beta, unlike beta~, depends on the
            coordinates: a variance-exploding schedule gives another sampler.
        spacing: "leading", "trailing", "linspace", "linear" or "quadratic"; see `fastdiff.samplers.spacing.spaced`.
        timesteps: schedule indices to visit instead, falling strictly; `steps` and `spacing` are then not used.
        clip: bound on |x0|; None for none.
        prediction: "eps", "x0", "v", "score" or "flow".
        rederive_eps: find eps from the clipped x0 (as the authors' code does) rather than take the network's own.

    Returns:
        A plan of `steps` rows whose last row lands on x0 without noise.

    Raises:
        InputError: an argument is out of range, a name is unknown, or eta asks for more noise than a level holds.
    """
    at = levels(schedule, steps, spacing, timesteps)
    direction, noise = _noise(at, eta)
    columns = {
        **x0_columns(at, prediction, clip),
        **eps_columns(at, prediction, rederive=rederive_eps and clip is not None),
        "c0": at.alpha_prev,
        "ce": np.sqrt(np.maximum(at.sigma_prev**2 - direction, 0.0)),
        "cz": np.sqrt(noise),
    }
    return Plan.build(f"ddim(steps={len(at.time)}, eta={eta})", at.time, columns, init_scale=at.init_scale)


def _noise(at: Levels, eta: float | str) -> tuple[Array, Array]:
    """Return the variance that the direction term makes room for, and the variance of the noise drawn."""
    if eta == SIGMA_HAT:
        return at.posterior_variance, np.append(at.step_variance[:-1], 0.0)
    if not isinstance(eta, (int, float, np.floating)):
        raise InputError(f"eta must be a number >= 0 or {SIGMA_HAT!r}, got {eta!r}")
    if not 0 <= eta < math.inf:
        raise InputError(f"eta must be >= 0 and finite, got {eta}")
    variance = eta**2 * at.posterior_variance
    # Rounding may put s a last digit above sigma_prev; more than that is a wrong eta.
    if (variance > at.sigma_prev**2 * (1 + 1e-9)).any():
        raise InputError(f"eta={eta} asks for more noise than the next level holds: use a smaller eta")
    return variance, variance
