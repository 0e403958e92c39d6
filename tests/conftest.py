"""What every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from fastdiff.ops import native

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    # Triton reads it when a kernel is defined: the tests run the kernels on the CPU.
    os.environ["TRITON_INTERPRET"] = "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need one."""
    needs_gpu = pytest.mark.skip(reason="torch sees no GPU")
    for item in items:
        if not HAS_GPU and item.get_closest_marker("gpu"):
            item.add_marker(needs_gpu)


def pytest_sessionstart() -> None:
    """Tests that are to run under a sanitizer must not run the ordinary extension instead."""
    names, extension = os.environ.get("FASTDIFF_SANITIZE"), native.find()
    mark = b"__tsan_init" if names == "thread" else b"__asan_init"
    if names and (extension is None or mark not in extension.read_bytes()):
        pytest.exit(f"{extension} was not built with FASTDIFF_SANITIZE={names}: run make test-asan or test-tsan", 1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small run faster on one thread, the more so on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def extension() -> None:
    """The C++ kernels are registered, which loading does."""
    assert native.missing() is None


@pytest.fixture(scope="module", params=range(len(native.INSTRUCTION_SETS)), ids=native.INSTRUCTION_SETS)
def level(request: pytest.FixtureRequest, extension: None) -> Iterator[int]:
    """Each instruction set in turn: the C++ kernels use it while the test runs."""
    best = torch.ops.fastdiff.cpu_level()
    if request.param > best:
        pytest.skip(f"this machine has no {native.INSTRUCTION_SETS[request.param]}")
    torch.ops.fastdiff.cpu_level(request.param)
    yield request.param
    torch.ops.fastdiff.cpu_level(best)
