"""The ops of the cuda backend without a GPU: its kernels as a program of the host, behind the same checks and launches.

`csrc/cuda` is compiled once more, by the C++ compiler and with FASTDIFF_CUDA_ON_HOST: a launch then runs the threads of
its blocks one after another. The arithmetic is that of the host (csrc/common/portable.h); what only a GPU has, its
approximate functions and its order of threads, is left to the tests on one.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fastdiff.ops import schema

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "c++")
NAMESPACE = "fastdiff_cuda_on_host"
TORCH = Path(torch.__file__).parent
OPTIONS = (
    *("-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-fvisibility=hidden"),
    *("-DFASTDIFF_CUDA_ON_HOST", "-DTORCH_TARGET_VERSION=0x020a000000000000"),
    *(f"-I{CSRC}", f"-I{TORCH / 'include'}"),
)


def has_compiler() -> bool:
    return shutil.which(COMPILER) is not None


def run(*command: str | Path) -> str:
    """Run a compiler; return what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def build(folder: Path) -> Path:
    """Compile the kernels, and the ops that launch them, as a library for torch."""

    def compiled(source: Path) -> Path:
        to = folder / f"{source.parent.name}_{source.name}.o"
        run(COMPILER, *OPTIONS, "-x", "c++", "-c", source, "-o", to)
        return to

    sources = [*CSRC.glob("cuda/*.cu"), *CSRC.glob("cuda/*.cpp"), *CSRC.glob("tensors/*.cpp")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sources))
    library = folder / "cuda_on_host.so"
    run(COMPILER, "-shared", "-o", library, *objects, f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10")
    return library


def load(library: Path) -> SimpleNamespace:
    """Return the library's ops as a backend. It can be loaded once in a process."""
    definitions = torch.library.Library(NAMESPACE, "DEF")
    for definition in schema.SCHEMAS:
        name, parenthesis, arguments = definition.partition("(")
        if name in schema.FUNCTIONS.values():
            definitions.define(schema.overload(name, "cuda") + parenthesis + arguments)
    torch.ops.load_library(library)
    ops: dict[str, Any] = {
        function: functools.reduce(getattr, schema.overload(op, "cuda").split("."), getattr(torch.ops, NAMESPACE))
        for function, op in schema.FUNCTIONS.items()
    }
    return SimpleNamespace(**ops, definitions=definitions)
