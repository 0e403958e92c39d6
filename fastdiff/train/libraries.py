"""Optional libraries: imported when they are needed, or named with the way to get them."""

from __future__ import annotations

import importlib
from typing import Any

from fastdiff.errors import MissingDependencyError


def require(module: str, extra: str) -> Any:
    """Import an optional library.

    Raises:
        MissingDependencyError: it is not installed; the message says which extra of the package has it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        message = f"this needs {module} ({error}): pip install 'fastdiff-sampler[{extra}]'"
        raise MissingDependencyError(message) from error
