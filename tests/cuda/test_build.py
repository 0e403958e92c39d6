"""An extension built with CUDA loads into a torch without it, and says so."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc: the CUDA kernels cannot be compiled"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler: no extension can be built"),
]


def run(*command: str | Path, cwd: Path, **env: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "FASTDIFF_NO_EXT", "FASTDIFF_SANITIZE")}
    done = subprocess.run(
        command, cwd=cwd, env=inherited | env, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package, for one GPU so that it compiles sooner, built in place with CUDA."""
    tree = tmp_path_factory.mktemp("cuda") / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "results")
    tree.mkdir()
    for folder in ("csrc", "fastdiff", "kernels", "bench"):
        shutil.copytree(ROOT / folder, tree / folder, symlinks=True, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    log = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=tree, FASTDIFF_CUDA="1", FASTDIFF_GPUS="90")
    assert "is built without" not in log, log
    return tree


@pytest.fixture(scope="module")
def library(tree: Path) -> Path:
    (library,) = tree.glob("fastdiff/_C*.so")
    return library


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm")
def test_nothing_of_a_torch_with_cuda_is_linked(library: Path) -> None:
    """Of torch only the functions of its stable C interface, and of CUDA nothing that must be there."""
    undefined = run("nm", "-D", "--undefined-only", library, cwd=library.parent).split("\n")
    names = {line.split()[-1].split("@")[0] for line in undefined if line}
    assert any(name.startswith("aoti_torch_") for name in names)
    foreign = [name for name in names if re.search(r"cuda|c10|3c10|at4|5torch", name, re.IGNORECASE)]
    assert set(foreign) <= {"aoti_torch_device_type_cuda"}


def test_a_torch_without_cuda_imports_it_and_says_why_the_backend_is_missing(tree: Path) -> None:
    script = """
import torch, fastdiff as fd
from fastdiff.ops import native
print(fd.noise.normal((1, 1), seed=3, backend="cpu").item() == fd.noise.normal((1, 1), seed=3, backend="eager").item())
print(torch._C._dispatch_has_kernel_for_dispatch_key("fastdiff::step.cuda", "CUDA"), native.cuda_missing())
"""
    printed = run(sys.executable, "-c", script, cwd=tree).splitlines()
    assert printed[-2] == "True"
    expected = "None" if torch.cuda.is_available() else "torch sees no NVIDIA GPU; use backend='auto'"
    assert printed[-1] == f"True {expected}"


@pytest.mark.parametrize("broken", ["launch.cu", "ops.cpp"])
def test_cuda_sources_that_do_not_compile_leave_the_cpu_backend(tree: Path, tmp_path: Path, broken: str) -> None:
    """One line says so; what runs on the CPU is built all the same."""
    copy = shutil.copytree(tree, tmp_path / "tree", symlinks=True, ignore=shutil.ignore_patterns("*.so", "build"))
    for source in copy.glob("csrc/cuda/*.cu"):
        if source.name != "launch.cu":
            source.unlink()
    (copy / "csrc" / "cuda" / broken).write_text("#error wrong\n")
    log = run(sys.executable, "setup.py", "build_ext", "--inplace", cwd=copy, FASTDIFF_CUDA="1", FASTDIFF_GPUS="90")
    warnings = [line for line in log.splitlines() if line.startswith("warning: fastdiff is built without")]
    assert len(warnings) == 1 and "without its CUDA kernels" in warnings[0] and "#error wrong" in log
    script = "from fastdiff.ops import native; print(native.missing(), native.cuda_missing())"
    assert run(sys.executable, "-c", script, cwd=copy).startswith("None the extension was built without CUDA")
