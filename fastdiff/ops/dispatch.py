"""Which implementation of the ops runs: by device, or by the name that the caller gave."""

from __future__ import annotations

from types import ModuleType

import torch

from fastdiff.errors import BackendError, lookup
from fastdiff.ops import reference

# Why a backend cannot run here; None if it can.
_NOT_YET = "this version of fastdiff has no {} kernels; use backend='eager' or 'auto'"
_MISSING: dict[str, str | None] = {
    "eager": None,
    "cpu": _NOT_YET.format("C++"),
    "triton": _NOT_YET.format("Triton"),
    "cuda": _NOT_YET.format("CUDA C++"),
}


def missing() -> dict[str, str | None]:
    """Return for each backend's name why it cannot run here, or None if it can."""
    return dict(_MISSING)


def resolve(name: str, device: torch.device) -> str:
    """Return the name of the backend that runs on `device`: "auto" picks the fastest one there is.

    Raises:
        InputError: the name is unknown.
        BackendError: the backend was named and is not available; the message says what is missing.
    """
    if name == "auto":
        return "eager"
    reason = lookup("backend", name, {"auto": None, **_MISSING})
    if reason is not None:
        raise BackendError(f"backend {name!r} is not available: {reason}")
    return name


def backend(name: str, device: torch.device) -> ModuleType:
    """Return the module whose `normal`, `q_sample` and `step` run on `device`. Raises as `resolve` does."""
    return _MODULES[resolve(name, device)]


_MODULES: dict[str, ModuleType] = {"eager": reference}
