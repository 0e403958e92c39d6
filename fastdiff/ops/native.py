"""The backends `cpu` and `cuda`: the kernels of the extension `fastdiff._C`, called through `torch.ops.fastdiff`."""

from __future__ import annotations

import functools
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch

from fastdiff.ops import schema

INSTRUCTION_SETS = ("scalar", "AVX2", "AVX-512")
# A backend: the functions of `reference`. Loading the extension puts its own step in the last one's place.
ops = SimpleNamespace(**schema.OPS, step_directly=schema.OPS["step"])
cuda_ops = SimpleNamespace(**schema.GPU_OPS["cuda"], step_directly=schema.GPU_OPS["cuda"]["step"])
_PACKAGE = Path(__file__).resolve().parents[1]


def find(folder: Path = _PACKAGE) -> Path | None:
    """Return the extension's file, or None."""
    candidates = (folder / f"_C{suffix}" for suffix in EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def load(path: Path | None) -> str | None:
    """Load the extension; return in one line why it cannot run, or None."""
    if path is None:
        return (
            "the C++ extension is not built (no C++ compiler, or FASTDIFF_NO_EXT was set); install fastdiff-sampler "
            "again with a compiler and without FASTDIFF_NO_EXT, or use backend='eager' or 'auto'"
        )
    try:
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError as error:
        reason = " ".join(str(error.__cause__ or error).split())
        return f"the C++ extension does not load ({reason}); install fastdiff-sampler again, or use backend='eager'"
    module = _step_past_the_dispatcher(path)
    ops.step_directly = getattr(module, "step", ops.step)
    cuda_ops.step_directly = getattr(module, "step_cuda", cuda_ops.step)
    return None


def _step_past_the_dispatcher(path: Path) -> ModuleType | None:
    """Return the module of the extension's own steps; None if it has none or torch lacks the table that they read."""
    exchange = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    loader = ExtensionFileLoader("fastdiff._C", str(path))
    spec = spec_from_loader(loader.name, loader)
    if exchange is None or spec is None:
        return None
    try:
        module = module_from_spec(spec)
    except ImportError:
        return None
    loader.exec_module(module)
    return module if module.bind(torch.Tensor, exchange, ops.step, cuda_ops.step) else None


@functools.cache
def missing() -> str | None:
    """Return why the backend cannot run here, or None; loads the extension on the first call."""
    return load(find())


def instruction_set() -> str | None:
    """Return which of `INSTRUCTION_SETS` the kernels use; None where the backend is missing."""
    return None if missing() else INSTRUCTION_SETS[torch.ops.fastdiff.cpu_level.default()]


def cuda_missing() -> str | None:
    """Return why the backend `cuda` cannot run here, or None."""
    reason = missing()
    if reason is not None:
        return reason
    if not torch._C._dispatch_has_kernel_for_dispatch_key("fastdiff::step.cuda", "CUDA"):
        return (
            "the extension was built without CUDA (no nvcc, or a torch without CUDA); install fastdiff-sampler again "
            "with both, or use backend='auto'"
        )
    return None if torch.cuda.is_available() else "torch sees no NVIDIA GPU; use backend='auto'"
