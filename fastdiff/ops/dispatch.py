"""Which implementation of the ops runs: by device and dtype, or by the name that the caller gave."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import torch

from fastdiff.errors import BackendError, lookup
from fastdiff.ops import native, reference, triton

Backend = ModuleType | SimpleNamespace  # a namespace of the functions that `reference` has


def _available() -> None:
    return None


# Each backend, and how to ask why it cannot run here (None: it can).
_REASONS: dict[str, Callable[[], str | None]] = {
    "eager": _available,
    "cpu": native.missing,
    "triton": triton.missing,
    "cuda": native.cuda_missing,
}
_BACKENDS: dict[str, Backend] = {
    "eager": reference,
    "cpu": native.ops,
    "triton": triton.ops,
    "cuda": native.cuda_ops,
}
# What "auto" prefers on each kind of device; where none of it can run, it is "eager".
_PREFERRED = {"cpu": ("cpu",), "cuda": ("triton", "cuda")}


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
        return next((kind for kind in _PREFERRED.get(device.type, ()) if _reason(kind, device, dtype) is None), "eager")
    lookup("backend", name, {"auto": _available, **_REASONS})
    reason = _reason(name, device, dtype)
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return name


def backend(name: str, device: torch.device, dtype: torch.dtype = torch.float32) -> Backend:
    """Return the ops, named as in `reference`, that run on `device` with a state of `dtype`. Raises as `resolve`."""
    return _BACKENDS[resolve(name, device, dtype)]


def _reason(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why a backend cannot run with such a state, or None."""
    return _REASONS[name]() or (None if name == "eager" else _unfit(name, device, dtype))


def _unfit(name: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if device.type not in _device_types(name):
        return f"it cannot run on {device}; use backend='eager' or 'auto'"
    if dtype != torch.float32:
        return f"its state is float32, not {str(dtype).removeprefix('torch.')}; use backend='eager' or 'auto'"
    return None


def _device_types(name: str) -> tuple[str, ...]:
    """Return the kinds of devices on which a backend of kernels runs; those of AMD are "cuda" to torch, too."""
    if name == "triton":
        return ("cuda", "cpu") if triton.interpreted() else ("cuda",)
    return (name,)
