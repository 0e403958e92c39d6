"""Samplers: functions (schedule, steps, ...) -> Plan. None has a kernel, a loop or a class of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fastdiff.errors import InputError, lookup
from fastdiff.plan import Plan
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.ddpm import ddpm
from fastdiff.schedules import Schedule

__all__ = ["SAMPLERS", "ddim", "ddpm", "make"]

SAMPLERS: dict[str, Callable[..., Plan]] = {"ddim": ddim, "ddpm": ddpm}


def make(name: str, schedule: Schedule, **options: Any) -> Plan:
    """Build a plan by the sampler's name. Raises InputError for an unknown name or an option it does not take."""
    sampler = lookup("sampler", name, SAMPLERS)
    try:
        inspect.signature(sampler).bind(schedule, **options)
    except TypeError as error:
        raise InputError(f"sampler {name!r}: {error}") from None
    return sampler(schedule, **options)
