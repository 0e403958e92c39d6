"""Langevin dynamics: at one level, annealed (Song & Ermon 2019), and as a corrector (Song et al. 2021)."""

from __future__ import annotations

import math

from typing_extensions import Unpack

from fastdiff.errors import lookup, number, whole
from fastdiff.plan import Plan
from fastdiff.samplers.levels import Level, step_variance
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options, Rows
from fastdiff.samplers.stages import Step, add_euler, ancestral
from fastdiff.schedules import Schedule


@sampler
def langevin(
    schedule: Schedule,
    steps: int = 100,
    sigma: float | None = None,
    step_size: float = 0.1,
    denoise: bool = False,
    **options: Unpack[Options],
) -> Plan:
    """Langevin dynamics at one level: `x <- x + delta score(x) + sqrt(2 delta) z`, `delta = step_size sigma^2`.

    In units of sigma^2 the step is the same in all coordinates. A point's Gaussian stays, but for its variance, which
    becomes `sigma^2 / (1 - step_size / 2)`: the bias of steps that are not infinitely small.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many steps, each with one network evaluation.
        sigma: the level, by its sigma / alpha; None is the noisiest one, or what a spacing
            of one level picks.
        step_size: delta / sigma^2, in 0..2, without both.
        denoise: whether one more row goes from there to the level to land on: clean data, x + sigma^2 score.
        options: what most samplers take; see `Options`.

    Returns:
        A plan of `steps` rows, and one more to denoise.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    if sigma is not None:
        options["sigmas"] = [sigma]
    rows = Rows(schedule, 1, **options)
    _anneal(rows, whole("steps", steps, 1), step_size, denoise)
    return rows.plan()


@sampler
def annealed_langevin(
    schedule: Schedule,
    steps: int | None = 10,
    per_level: int = 100,
    step_size: float = 0.1,
    denoise: bool = True,
    **options: Unpack[Options],
) -> Plan:
    """Annealed Langevin dynamics, level after level (Song & Ermon 2019, Algorithm 1).

    The paper's `x <- x + (a_i / 2) score + sqrt(a_i) z` with `a_i = a sigma_i^2 / sigma_L^2` is that of `langevin` with
    `step_size = a / (2 sigma_L^2)`: its a = 2e-5 at sigma_L = 0.01 is 0.1.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many levels; None is every one.
        per_level: steps at each level, T in the paper, at least 1.
        step_size: delta / sigma^2 at every level, in 0..2, without both.
        denoise: whether one more row goes from the last level to the one to land on: clean data, x + sigma^2 score.
        options: what most samplers take; see `Options`. The default spacing is "exponential", the paper's.

    Returns:
        A plan of `per_level` rows for each level, and one more to denoise.

    Raises:
        InputError: an argument is out of range or a name is unknown, or the first level is pure noise.
    """
    options.setdefault("spacing", "exponential")
    rows = Rows(schedule, steps, **options)
    rows.need_signal("annealed_langevin")
    _anneal(rows, whole("per_level", per_level, 1), step_size, denoise)
    return rows.plan()


@sampler
def predictor_corrector(
    schedule: Schedule,
    steps: int | None = 20,
    corrector_steps: int = 1,
    snr: float = 0.16,
    predictor: str = "reverse_diffusion",
    **options: Unpack[Options],
) -> Plan:
    """Langevin steps at each level, then a step of the reverse SDE to the next (Song et al. 2021, Algorithms 2 to 5).

    The corrector's step, `delta = 2 a (snr |z| / |score|)^2`, takes the norms' expectation here, |z| / |score| = sigma,
    so that it is known beforehand; a is 1 - beta of the predictor's step (1 in variance-exploding coordinates). A level
    is corrected before it is left, as in the authors' code.

    Args:
        schedule: the noise levels the network was trained on.
        steps: how many levels; None is every one.
        corrector_steps: Langevin steps at each level, at least 0.
        snr: signal-to-noise ratio of a Langevin step, r in the paper, in 0..1, without both.
        predictor: "reverse_diffusion" (eq. 46: discretised like the forward process) or "ancestral" (appendix F, of
            variance beta~: `ddpm`).
        options: what most samplers take; see `Options`.

    Returns:
        A plan of `corrector_steps` + 1 rows for each level. The last row draws no noise where it lands on clean data.

    Raises:
        InputError: an argument is out of range or a name is unknown, or the first level is pure noise.
    """
    snr = number("snr", snr, 0, 1, above=True, below=True)
    corrector_steps = whole("corrector_steps", corrector_steps, 0)
    add_predictor = lookup("predictor", predictor, _PREDICTORS)
    rows = Rows(schedule, steps, **options)
    rows.need_signal("predictor_corrector")
    for now, after in rows.steps():
        for _ in range(corrector_steps):
            _add_langevin(rows, now, now, 2 * (snr * now.alpha / after.alpha) ** 2)
        add_predictor(rows, now, after)
    return rows.plan()


def _add_reverse_diffusion(rows: Rows, now: Level, after: Level) -> None:
    # The forward step is x = a x' + sqrt(beta) z: its drift is subtracted, at the place where the step begins.
    beta = step_variance(now, after)
    rows.add(
        now,
        cx=2 - now.alpha / after.alpha,
        ce=-beta / now.sigma,
        cz=math.sqrt(beta) if after.sigma else 0.0,
    )


def _add_ancestral(rows: Rows, now: Level, after: Level) -> None:
    add_euler(rows, ancestral(rows, Step(now, after, after), eta=1.0))


_PREDICTORS = {"reverse_diffusion": _add_reverse_diffusion, "ancestral": _add_ancestral}


def _anneal(rows: Rows, per_level: int, step_size: float, denoise: bool) -> None:
    step_size = number("step_size", step_size, 0, 2, above=True, below=True)  # from 2 on Langevin dynamics diverges
    *levels, end = rows.levels
    for level, following in zip(levels, [*levels[1:], levels[-1]], strict=True):
        for after in [*[level] * (per_level - 1), following]:
            _add_langevin(rows, level, after, step_size)
    if denoise:
        add_euler(rows, Step(levels[-1], end, end))


def _add_langevin(rows: Rows, now: Level, after: Level, step_size: float) -> None:
    """Add the row of a Langevin step of `delta = step_size sigma^2`, where the score is -eps / sigma.

    x / alpha goes on to another level as it is.
    """
    scale = 1.0 if after is now else after.alpha / now.alpha
    step = scale * now.sigma
    rows.add(now, None, after, cx=scale, ce=-step * step_size, cz=step * math.sqrt(2 * step_size))
