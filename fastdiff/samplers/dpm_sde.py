"""Two-stage DPM-Solver++ with noise, as k-diffusion has it: DPM++ SDE and DPM++ 2S ancestral."""

from __future__ import annotations

import math

from typing_extensions import Unpack

from fastdiff.errors import number
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.stages import Step, ancestral, straight
from fastdiff.schedules import Schedule


@sampler
def dpmpp_sde(
    schedule: Schedule,
    steps: int | None = 20,
    eta: float = 1.0,
    r: float = 0.5,
    **options: Unpack[Options],
) -> Plan:
    """DPM-Solver++ of two stages for the SDE (k-diffusion's DPM++ SDE, diffusers' DPMSolverSDE).

    Both stages begin at the step's own state, and their noises are those of one Brownian motion in sigma / alpha.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        eta: amount of noise, >= 0, as in `euler_ancestral`.
        r: where the first stage ends, as a share of the step in lambda, within 0..1.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of two rows a step, but one for a step onto clean data.

    Raises:
        InputError: an argument is out of range or a name is unknown, or the first level is pure noise.
    """
    r = number("r", r, 0, 1, above=True, below=True)
    rows = Rows(schedule, steps, **options)
    rows.need_signal("dpmpp_sde")
    for step in straight(rows.levels):
        now, after = step.now, step.after
        add_stochastic(
            rows, step, rows.between(now.ratio ** (1 - r) * after.ratio**r) if after.sigma else after, eta, r
        )
    return rows.plan()


def add_stochastic(
    rows: Rows, step: Step, middle: Level, eta: float = 1.0, r: float = 0.5, one_path: bool = True
) -> None:
    """Add the rows of a step of `dpmpp_sde`: two, but one onto clean data.

    Args:
        rows: where to.
        step: the step, straight down, with the scale of its noise.
        middle: the level where its first stage ends.
        eta, r: as `dpmpp_sde` has them.
        one_path: whether the draws of the two rows are independent, and make up one Brownian motion; else the second
            row's is the noise of the whole step.
    """
    now, after = step.now, step.after
    if not after.sigma:
        rows.add(now, c0=after.alpha)
        return
    shared = (now.ratio - middle.ratio) / (now.ratio - after.ratio) if one_path else 0.0
    stages = ancestral(rows, Step(now, middle, middle, step.noise_scale), eta), ancestral(rows, step, eta)
    _add_stages(rows, *stages, 1 / (2 * r), shared)


@sampler
def dpmpp_2s_ancestral(
    schedule: Schedule, steps: int | None = 20, eta: float = 1.0, **options: Unpack[Options]
) -> Plan:
    """DPM-Solver++ 2S (Lu et al. 2022b, Algorithm 1) to below the next level, then noise up to it (k-diffusion).

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps; None is one for every level.
        eta: amount of noise, >= 0, as in `euler_ancestral`; 0 is 2S with its stages between the levels.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of two rows a step, but one for a step that follows the ODE down to clean data.

    Raises:
        InputError: an argument is out of range or a name is unknown, or the first level is pure noise.
    """
    rows = Rows(schedule, steps, **options)
    rows.need_signal("dpmpp_2s_ancestral")
    for step in (ancestral(rows, step, eta) for step in straight(rows.levels)):
        now, down = step.now, step.down
        if not down.sigma:
            rows.add(now, c0=step.after.alpha, cz=step.noise)
            continue
        middle = rows.between(math.sqrt(now.ratio * down.ratio))
        _add_stages(rows, Step(now, middle, middle), step, weight=1.0)
    return rows.plan()


def _add_stages(rows: Rows, stage: Step, step: Step, weight: float, shared: float = 0.0) -> None:
    """Add the rows of a step that takes `weight` of the x0 at the stage's end and the rest of the first one.

    A share of the variance of the step's noise is that of the stage's, and waits for the second row in the anchor.
    """
    carry, gain = _down(step)
    stage_carry, stage_gain = _down(stage)
    anchor = {"dx": carry, "dy": 0.0, "d0": (1 - weight) * gain, "dz": step.noise * math.sqrt(shared)}
    rows.add(step.now, cx=stage_carry, c0=stage_gain, cz=stage.noise, **anchor)
    rows.add(stage.after, cy=1.0, c0=weight * gain, cz=step.noise * math.sqrt(1 - shared))


def _down(step: Step) -> tuple[float, float]:
    """Return the coefficients of x and x0 of a first-order step, `x' / alpha' = s' / s x / alpha + (1 - s' / s) x0`."""
    share = step.down.ratio / step.now.ratio
    return step.after.alpha / step.now.alpha * share, step.after.alpha * (1 - share)
