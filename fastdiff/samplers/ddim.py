"""DDIM (Song et al. 2020): from deterministic (eta = 0) to ancestral (eta = 1) on any subsequence of the levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from typing_extensions import Unpack

from fastdiff.errors import InputError, lookup, number
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level, posterior_variance, step_variance
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Common, Rows
from fastdiff.schedules import Schedule

SIGMA_HAT = "sigma-hat"
_NAMED_ETAS = {SIGMA_HAT: "the direction of eta = 1, and noise of the larger variance"}


@sampler
def ddim(
    schedule: Schedule,
    steps: int | None = 50,
    eta: float | str = 0.0,
    spacing: str | None = "leading",
    timesteps: Sequence[int] | None = None,
    gaps: str = "visited",
    **options: Unpack[Common],
) -> Plan:
    """DDIM: `x_prev = alpha_prev x0 + sqrt(sigma_prev^2 - s^2) eps + s z` (Song et al. 2020, eq. 12).

    Written in (alpha, sigma), so it holds for every schedule, variance preserving or not: on `schedules.flow` it is
    Euler's method of flow matching. "leading", its default, begins below the noisiest level: where that is pure noise
    (a flow, zero terminal SNR) take "trailing" (Lin et al. 2023).

    Args:
        schedule: the noise levels the network was trained on.
        steps: network evaluations, 1..T; None takes every level.
        eta: `s = eta sqrt(beta~)` (eq. 16): 0 is deterministic, 1 is DDPM with the small variance. "sigma-hat" keeps
            the direction of eta = 1 and draws noise of the larger variance beta (the last row of the paper's Table 1,
            appendix D.3); its marginals are wider than the forward process's, and beta, unlike beta~, depends on the
            coordinates: a variance-exploding schedule gives another sampler.
        spacing: which levels to visit; see `fastdiff.samplers.spacing` and `fastdiff.samplers.sigmas`.
        timesteps: schedule indices to visit instead, falling strictly; `steps` and `spacing` are then not used.
        gaps: "visited" steps to the next level that is visited. "uniform" steps T // steps levels down, as diffusers
            does: where steps does not divide T, the network is asked at another level than the state's. With
            final="sigma_min" and timesteps one above those of "leading" it is Stable Diffusion's configuration.
        options: what every sampler takes; see `Common`. With `rederive_eps` (the authors' way) eps follows the clip.

    Returns:
        A plan of `steps` rows whose last row lands on x0 without noise.

    Raises:
        InputError: an argument is out of range, a name is unknown, or eta asks for more noise than a level holds.
    """
    rows = Rows(schedule, steps, spacing=spacing, timesteps=timesteps, **options)
    at = rows.levels[0]
    for now, after in rows.steps(gaps):
        add_ddim(rows, at, now, after, eta)
        at = after
    return rows.plan()


def add_ddim(rows: Rows, at: Level, now: Level, after: Level, eta: float | str) -> None:
    """Add the row of a step from a state at the level `at`, as if it were at `now`, to another; see `ddim`."""
    direction, noise = _variances(now, after, eta)
    keeps = math.sqrt(max(after.sigma**2 - direction, 0.0))
    rows.add(at, now, after, c0=after.alpha, ce=keeps, cz=math.sqrt(noise))


def _variances(now: Level, after: Level, eta: float | str) -> tuple[float, float]:
    """Return the variance that the direction term makes room for, and the variance of the noise drawn."""
    small = posterior_variance(now, after)
    if isinstance(eta, str) and lookup("eta", eta, _NAMED_ETAS):
        return small, step_variance(now, after) if after.sigma else 0.0
    variance = number("eta", eta, 0) ** 2 * small
    # Rounding may put s a last digit above sigma_prev; more than that is a wrong eta.
    if variance > after.sigma**2 * (1 + 1e-9):
        raise InputError(f"eta={eta} asks for more noise than the next level holds: use a smaller eta")
    return variance, variance
