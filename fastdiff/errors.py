"""Errors that a user can act on: one line that says what was wrong and what to do."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import TypeVar

import numpy as np

Value = TypeVar("Value")


class FastdiffError(Exception):
    """Base of every error the project raises on purpose; the command line prints its one line and no traceback."""


class InputError(FastdiffError, ValueError):
    """An argument is out of range, of the wrong shape, or names something that does not exist."""


class BackendError(FastdiffError, RuntimeError):
    """A backend was named that is not available here."""


class CheckpointError(FastdiffError, RuntimeError):
    """A checkpoint is missing, truncated, foreign, or could not be written."""


class NonFiniteError(FastdiffError, ArithmeticError):
    """NaN or infinity appeared in a state or in a model output."""


class MissingDependencyError(FastdiffError, ImportError):
    """An optional library is not installed."""


def lookup(kind: str, name: str, known: Mapping[str, Value]) -> Value:
    """Return `known[name]`; raise an `InputError` that names the nearest known name if there is none."""
    if not isinstance(name, str):
        raise InputError(f"{kind} must be a name, got {name!r}: known are {', '.join(known)}")
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise InputError(f"unknown {kind} {name!r}: did you mean {nearest!r}? known are {', '.join(known)}")


def whole(name: str, value: object, least: int, most: int | None = None) -> int:
    """Return a whole number in least..most, of any integer type but bool, as an int; else raise `InputError`."""
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        found = int(value)
        if least <= found and (most is None or found <= most):
            return found
    bounds = f", at least {least}" if most is None else f" in {least}..{most}"
    raise InputError(f"{name} must be a whole number{bounds}, got {value!r}")


def number(
    name: str,
    value: object,
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> float:
    """Return a finite number in least..most as a float; else, or for a bool, raise `InputError`.

    With `above` it must be more than least, with `below` less than most.
    """
    if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        within = (least < value if above else least <= value) and (value < most if below else value <= most)
        if within and math.isfinite(value):
            return float(value)
    low = f"{'>' if above else '>='} {least:g} and " if least > -math.inf else ""
    high = f"{'<' if below else '<='} {most:g}" if most < math.inf else "finite"
    raise InputError(f"{name} must be {low}{high}, got {value!r}")
