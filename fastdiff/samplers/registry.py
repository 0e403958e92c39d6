"""The registry: what `sampler` marks is known by its function's name, and its plans are called after it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ParamSpec

import numpy as np

from fastdiff.errors import InputError, lookup
from fastdiff.plan import Plan
from fastdiff.samplers.rows import Options
from fastdiff.schedules import Schedule

P = ParamSpec("P")

# Every sampler by its name; the proofs in tests/samplers run for each that stands here.
SAMPLERS: dict[str, Callable[..., Plan]] = {}
# What a plan itself shows, and what need not be in its name.
_SHOWN = ("steps", *Options.__annotations__)


def sampler(build: Callable[P, Plan], closed: Collection[str] = ()) -> Callable[P, Plan]:
    """Register a sampler under the name of its function, and name its plans as `named` does."""
    SAMPLERS[build.__name__] = made = named(build, closed)
    return made


def variant(
    build: Callable[..., Plan], name: str, doc: str, defaults: Mapping[str, Any] = MappingProxyType({}), **fixed: Any
) -> Callable[..., Plan]:
    """Register a sampler that is another one with some options fixed and other defaults; `doc` is its docstring."""
    made = functools.partial(build, **defaults, **fixed)
    vars(made).update(
        __name__=name, __doc__=f"{doc}\n\n    Arguments, rows and errors are those of `{build.__name__}`."
    )
    return sampler(made, closed=fixed)


def named(build: Callable[P, Plan], closed: Collection[str] = ()) -> Callable[P, Plan]:
    """Name a sampler's plans after it and its own options, if they are not the default: "ddim(eta=1.0)".

    An option that it does not take, or a closed one, raises InputError with the nearest one that it does take.
    """
    signature, name = inspect.signature(build), build.__name__
    own = [option for option in signature.parameters if option not in ("schedule", "options", *closed)]
    known = dict.fromkeys([*own, *Options.__annotations__])

    @functools.wraps(build)
    def made(*args: P.args, **kwargs: P.kwargs) -> Plan:
        for option in kwargs:
            if option != "schedule":
                lookup(f"option of {name}", option, known)
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InputError(f"{name}: {error}") from None
        plan = build(*args, **kwargs)
        chosen = [
            f"{option}={_shown(given[option])}"
            for option in own
            if option in given
            and option not in _SHOWN
            and not np.array_equal(given[option], signature.parameters[option].default)
        ]
        return replace(plan, name=f"{name}({', '.join(chosen)})" if chosen else name)

    return made


def _shown(value: Any) -> str:
    """Return an option's value as a name shows it: numbers without their type, functions by their name."""
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_shown, value))})"
    return str(getattr(value, "__name__", value))


def make(name: str, schedule: Schedule, /, **options: Any) -> Plan:
    """Build a plan by the sampler's name. Raises InputError for an unknown name or an option it does not take."""
    return lookup("sampler", name, SAMPLERS)(schedule, **options)
