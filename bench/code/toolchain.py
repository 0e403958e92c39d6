"""Compilers and disassemblers: a kernel for a GPU that need not be there."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fastdiff.bench.code.listing import Listing, amdgcn, sass
from fastdiff.bench.code.measure import Resources
from fastdiff.errors import BackendError
from fastdiff.ops import triton as triton_backend

NVIDIA = ("sm_80", "sm_90", "sm_100")
TARGETS = {"triton": (*NVIDIA, "gfx942"), "cuda": NVIDIA}
_RESERVED_SHARED = 1024  # bytes that the system adds to those of a kernel that takes any, from sm_90 on


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel; `warps` of a block where the compiler knows them."""

    listing: Listing
    resources: Resources
    warps: int = 0


def threads_of_warp(target: str) -> int:
    """Return how many threads of a target run in step."""
    return 64 if target.startswith("gfx") else 32


def check_triton() -> None:
    """Raises BackendError if Triton cannot compile here."""
    if triton_backend.interpreted():
        raise BackendError("the kernels are interpreted, not compiled: unset TRITON_INTERPRET")
    try:
        import triton  # noqa: F401
    except ImportError:
        raise BackendError("Triton is not installed: pip install 'fastdiff-sampler[triton]'") from None


def compile_triton(launch: Any, target: str) -> Kernel:
    """Compile what a launch of `fastdiff.kernels.launch` would run."""
    import triton
    from triton.backends.compiler import GPUTarget

    from fastdiff.kernels.launch import options, source

    amd = target.startswith("gfx")
    device = GPUTarget("hip", target, 64) if amd else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    compiled = triton.compile(source(launch), target=device, options=options(launch))
    metadata = compiled.metadata
    if amd:
        text = compiled.asm["amdgcn"]
        return Kernel(amdgcn(text)[metadata.name], _amd_resources(text, metadata.shared), metadata.num_warps)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(compiled.asm["cubin"])
        kernel = disassemble(cubin, target)[metadata.name]
    return replace(kernel, resources=replace(kernel.resources, shared=metadata.shared), warps=metadata.num_warps)


def _amd_resources(text: str, shared: int) -> Resources:
    number = {name: int(value) for name, value in re.findall(r"^; (\w+): (\d+)", text, re.MULTILINE)}
    return Resources(number["TotalNumVgprs"], number["ScratchSize"], shared)


def disassemble(cubin: Path, target: str) -> dict[str, Kernel]:
    """Return the kernels in a cubin by their mangled names."""
    tool, reserved = _cuobjdump(), 0 if target == "sm_80" else _RESERVED_SHARED
    listings = sass(_output(tool, "-sass", cubin))
    usage = re.findall(
        r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", _output(tool, "-res-usage", cubin)
    )
    found = {name: tuple(map(int, numbers)) for name, *numbers in usage}
    return {
        name: Kernel(
            listing, Resources(found[name][0], found[name][1] + found[name][3], max(found[name][2] - reserved, 0))
        )
        for name, listing in listings.items()
    }


def _cuobjdump() -> str:
    """Return the disassembler of CUDA, or the one that Triton brings along. Raises BackendError if there is none."""
    found = shutil.which("cuobjdump")
    if found is not None:
        return found
    try:
        from triton import knobs
    except ImportError:
        raise BackendError("cuobjdump is missing: install Triton or put CUDA's bin folder into PATH") from None
    return str(knobs.nvidia.cuobjdump.path)


def version(backend: str) -> str:
    """Return the version of a backend's compiler: nvcc's or Triton's, which brings its own assemblers along."""
    if backend == "cuda":
        return str(re.findall(r"V([\d.]+)", _output(_nvcc(), "--version"))[0])
    import triton

    return str(triton.__version__)


def compile_cuda(source: Path, target: str, flags: Sequence[str]) -> dict[str, Kernel]:
    """Compile a .cu file with nvcc and return its kernels by their mangled names."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder, "kernels.cubin")
        _output(_nvcc(), *flags, f"-arch={target}", "-cubin", "-o", cubin, source)
        return disassemble(cubin, target)


def _nvcc() -> str:
    found = shutil.which("nvcc")
    if found is None:
        raise BackendError("nvcc is missing: put CUDA's bin folder into PATH")
    return found


def _output(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BackendError(f"{Path(command[0]).name} failed: {' '.join(done.stderr.split())}")
    return done.stdout
