"""Which implementation of the ops runs: by device and dtype, or by the name that the caller gave."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import torch

from fastdiff.errors import BackendError, lookup
from fastdiff.ops import native, reference

Backend = ModuleType | SimpleNamespace  # a namespace of the functions that `reference` has


def _not_yet(kind: str) -> str:
    return f"this version of fastdiff has no {kind} kernels; use backend='eager' or 'auto'"


def _available() -> None:
    return None


# Each backend, and how to ask why it cannot run here (None: it can).
_REASONS: dict[str, Callable[[], str | None]] = {
    "eager": _available,
    "cpu": native.missing,
    "triton": lambda: _not_yet("Triton"),
    "cuda": lambda: _not_yet("CUDA C++"),
}


def missing() -> dict[str, str | None]:
    """Return for each backend's name why it cannot run here, or None if it can."""
    return {name: reason() for name, reason in _REASONS.items()}


def resolve(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    """Return the name of the backend that runs on `device` with a state of `dtype`; "auto" picks the fastest one.

    Raises:
        InputError: the name is unknown.
        BackendError: the backend was named and cannot run; the message says why and what to use.
    """
    if name == "auto":
        return "cpu" if _unfit_for_cpu(device, dtype) is None and native.missing() is None else "eager"
    reason = lookup("backend", name, {"auto": _available, **_REASONS})()
    if reason is None and name == "cpu":
        reason = _unfit_for_cpu(device, dtype)
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return name


def backend(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """Return the ops, named as in `reference`, that run on `device` with a state of `dtype`. Raises as `resolve`."""
    return native.ops if resolve(name, device, dtype) == "cpu" else reference


def _unfit_for_cpu(device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type != "cpu":
        return f"it cannot run on {device}; use backend='eager' or 'auto'"
    if dtype != torch.float32:
        return f"its state is float32, not {str(dtype).removeprefix('torch.')}; use backend='eager' or 'auto'"
    return None
