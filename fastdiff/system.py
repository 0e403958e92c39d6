"""What is here: versions, devices, and which backends can run."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass

import torch

from fastdiff.ops import dispatch, native

_LIBRARIES = ("fastdiff-sampler", "torch", "triton", "numpy", "accelerate", "safetensors", "scikit-learn", "diffusers")


@dataclass(frozen=True)
class Info:
    """What is here.

    Attributes:
        versions: by library; None: not installed.
        devices: what torch can compute on.
        backends: why each is missing; None: available.
        instruction_set: what the cpu backend's kernels use, "scalar", "AVX2" or "AVX-512"; None: it is missing.
    """

    versions: dict[str, str | None]
    devices: tuple[str, ...]
    backends: dict[str, str | None]
    instruction_set: str | None

    def __str__(self) -> str:
        sections = {
            "versions": {name: version or "not installed" for name, version in self.versions.items()},
            "devices": dict.fromkeys(self.devices, ""),
            "backends": {name: reason or self._available(name) for name, reason in self.backends.items()},
        }
        lines = []
        for title, entries in sections.items():
            lines += [title, *(f"  {name:<18}{value}".rstrip() for name, value in entries.items())]
        return "\n".join(lines)

    __repr__ = __str__

    def _available(self, backend: str) -> str:
        return f"available ({self.instruction_set})" if backend == "cpu" else "available"


def info() -> Info:
    """Return the versions, devices and backends of this machine; `print` it to read it."""
    versions = {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}
    return Info(versions, _devices(), dispatch.missing(), native.instruction_set())


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[str, ...]:
    cpu = f"cpu ({platform.machine()}, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()})"
    gpus = (f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count()))
    return (cpu, *gpus)
