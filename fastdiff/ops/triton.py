"""The `triton` backend: the kernels in `fastdiff.kernels`, registered as ops for GPUs.

Triton and the kernels are imported when the first of them runs. With TRITON_INTERPRET=1 they run on the CPU too,
slowly: that is how they are tested where there is no GPU.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable
from importlib import import_module
from types import NoneType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import BackendError
from fastdiff.ops import schema

# Each function of the backend, and the file of `fastdiff.kernels` that holds it.
FILES = {
    "step": "step",
    "normal_": "normal",
    "q_sample": "q_sample",
    "q_sample_out": "q_sample",
    "noise_loss": "noise_loss",
    "noise_loss_backward": "noise_loss",
    "guidance_rescale": "reductions",
    "inner_products": "reductions",
    "threshold": "reductions",
}
_PLAIN = {Tensor, int, NoneType}


def interpreted() -> bool:
    """Whether Triton interprets its kernels on the CPU instead of compiling them."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def missing() -> str | None:
    """Return why the backend cannot run here, or None."""
    if not _installed():
        return "Triton is not installed; pip install 'fastdiff-sampler[triton]', or use backend='auto'"
    if interpreted() or torch.cuda.is_available():
        return None
    return "torch sees no GPU; use backend='auto' (with TRITON_INTERPRET=1 the kernels run on the CPU, for tests)"


def step_directly(*arguments: Tensor | int | None) -> None:
    """Do what `reference.step_directly` does."""
    call = _function("step") if _PLAIN.issuperset(map(type, arguments)) else ops.step
    call(*arguments)


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


ops = SimpleNamespace(**schema.GPU_OPS["triton"], step_directly=step_directly)


@functools.cache
def _function(name: str) -> Callable[..., Any]:
    reason = missing()
    if reason is not None:
        raise BackendError(f"backend 'triton' is not available: {reason}")
    function: Callable[..., Any] = getattr(import_module(f"fastdiff.kernels.{FILES[name]}"), name)
    return function


def _kernel(name: str, interpreter_only: bool = False) -> Callable[..., Any]:
    """Return what runs as the op: the function of that name, imported when it is first called."""

    def run(*arguments: Any) -> Any:
        function = _function(name)
        if interpreter_only and not interpreted():
            raise BackendError(
                "backend 'triton' is not available: its kernels run on GPUs, and the tensors are on a CPU"
            )
        return function(*arguments)

    return run


def _register(op: str, function: Callable[..., Any], device: str) -> None:
    schema.LIBRARY.impl(op, function, device)  # type: ignore[no-untyped-call]


for _name, _op in schema.FUNCTIONS.items():
    _register(_op, _kernel(_name), "CUDA")
    _register(schema.overload(_op, "triton"), _kernel(_name), "CUDA")
    _register(schema.overload(_op, "triton"), _kernel(_name, interpreter_only=True), "CPU")
