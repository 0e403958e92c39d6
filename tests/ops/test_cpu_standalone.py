"""The C++ kernels without torch's library: csrc/tests/bits.cpp, which `make test-aarch64` runs on another processor."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "c++")
SOURCES = ["tests/bits.cpp", "cpu/scalar.cpp", "cpu/avx2.cpp", "cpu/avx512.cpp", "cpu/operand.cpp"]

pytestmark = pytest.mark.skipif(not shutil.which(COMPILER), reason="no C++ compiler: the program cannot be built")


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def compiled(source: str, folder: Path, *options: str) -> Path:
    """Compile a source of csrc/, quickly rather than well; return the object file."""
    to = folder / Path(source).with_suffix(".o").name
    headers = (f"-I{CSRC}", f"-I{Path(torch.__file__).parent / 'include'}")
    done = run(COMPILER, "-std=c++17", "-O1", "-ffp-contract=off", *headers, *options, "-c", CSRC / source, "-o", to)
    assert done.returncode == 0, done.stderr
    return to


def linked(objects: list[Path], program: Path) -> Path:
    done = run(COMPILER, *objects, "-o", program)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("objects")
    return [compiled(source, folder) for source in SOURCES]


def test_kernels_need_no_torch_library_and_agree(objects: list[Path], tmp_path: Path) -> None:
    """Known noise, the same bits from each instruction set of this machine, and a checksum of its own for each case."""
    done = run(linked(objects, tmp_path / "bits"))
    assert done.returncode == 0, done.stderr
    checksums = [line.split()[0] for line in done.stdout.splitlines()]
    assert checksums and len(set(checksums)) == len(checksums)


def test_one_more_rounding_is_noticed(objects: list[Path], tmp_path: Path) -> None:
    """With `a * b + c` for each fma of plain C++, the program reports its noise and fails."""
    wrong = compiled("cpu/scalar.cpp", tmp_path, "-D__builtin_fmaf(a,b,c)=((a)*(b)+(c))")
    done = run(linked([wrong if each.name == wrong.name else each for each in objects], tmp_path / "bits"))
    assert done.returncode == 1
    assert "the noise of plain C++ is not that of tests/truth/noise.json" in done.stderr
