"""Where the tests of the Triton kernels run: interpreted on the CPU, or on the GPU where there is one."""

from __future__ import annotations

import pytest
import torch

ON_GPU = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(scope="session", params=[ON_GPU if torch.cuda.is_available() else "cpu"])
def device(request: pytest.FixtureRequest) -> torch.device:
    """The device on which the kernels run."""
    return torch.device(request.param)
