"""The epsilon-decoder of progressive VAEs: each step takes off the noise of one level."""

from __future__ import annotations

from typing_extensions import Unpack

from fastdiff.plan import Plan
from fastdiff.samplers.ddpm import ddpm
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.rows import Options
from fastdiff.schedules import Schedule


@sampler
def epsilon_decoder(
    schedule: Schedule, steps: int | None = None, variance: str = "large", **options: Unpack[Options]
) -> Plan:
    """`z_{l-1} = (z_l - sigma_l eps_step) / sqrt(1 - sigma_l^2)` and noise: `ddpm` with a network of one step's noise.

    With `eps_step = sigma_l / sqrt(1 - alpha_l^2) eps` the mean is that of Ho et al. 2020, eq. 11.

    Args:
        schedule: the noise levels the network was trained on, such as `schedules.progressive_vae`.
        steps: how many levels; None is every one.
        variance: of the noise, "large" (sigma_l^2), "small" (beta~) or "none"; none in the last step.
        options: what most samplers take; see `Options`. The defaults here are prediction="eps_step" and clip=None.

    Returns:
        A plan of one row a level.

    Raises:
        InputError: an argument is out of range or a name is unknown.
    """
    options.setdefault("prediction", "eps_step")
    options.setdefault("clip", None)
    return ddpm(schedule, steps, variance, **options)
