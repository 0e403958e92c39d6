"""The cuda backend as a program of the host, compiled once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.cuda import build


@pytest.fixture(scope="session")
def cuda(tmp_path_factory: pytest.TempPathFactory, extension: None) -> SimpleNamespace:
    """The ops of the cuda backend on CPU tensors."""
    if not build.has_compiler():
        pytest.skip("no C++ compiler: the kernels cannot be compiled for the host")
    return build.load(build.build(tmp_path_factory.mktemp("cuda_on_host")))
