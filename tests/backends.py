"""Which backends the tests compare here: without the extension only where that was asked for, Triton interpreted."""

import os

import pytest

from fastdiff.ops import triton

WITHOUT_EXTENSION = os.environ.get("FASTDIFF_NO_EXT", "0") not in ("", "0")
BACKENDS = ["eager", *([] if WITHOUT_EXTENSION else ["cpu"]), *(["triton"] if triton.interpreted() else [])]

needs_extension = pytest.mark.skipif(WITHOUT_EXTENSION, reason="FASTDIFF_NO_EXT is set: there is no extension to test")
needs_interpreter = pytest.mark.skipif(not triton.interpreted(), reason="Triton compiles its kernels for the GPU here")
each_backend = pytest.mark.parametrize("backend", BACKENDS)
