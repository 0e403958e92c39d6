"""Errors that a user can act on: one line that says what was wrong and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

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
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
    raise InputError(f"unknown {kind} {name!r}: did you mean {nearest!r}? known are {', '.join(known)}")
