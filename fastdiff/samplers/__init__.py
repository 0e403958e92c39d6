"""Samplers: functions (schedule, steps, ...) -> Plan. None has a kernel, a loop or a class of its own."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from fastdiff.errors import lookup
from fastdiff.plan import Plan
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.ddpm import ddpm
from fastdiff.samplers.rows import Options
from fastdiff.schedules import Schedule

__all__ = ["SAMPLERS", "ddim", "ddpm", "make"]

# Every sampler by its name; the proofs in tests/samplers run for each that stands here.
SAMPLERS: dict[str, Callable[..., Plan]] = {"ddim": ddim, "ddpm": ddpm}


def make(name: str, schedule: Schedule, **options: Any) -> Plan:
    """Build a plan by the sampler's name. Raises InputError for an unknown name or an option it does not take."""
    sampler = lookup("sampler", name, SAMPLERS)
    known = dict.fromkeys([*inspect.signature(sampler).parameters, *Options.__annotations__])
    del known["schedule"], known["options"]
    for option in options:
        lookup(f"option of {name}", option, known)
    return sampler(schedule, **options)
