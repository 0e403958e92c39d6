"""Networks that the library diffusers saved in local folders. Nothing is ever downloaded or unpickled."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from fastdiff.errors import CheckpointError, MissingDependencyError


def diffusers_class(name: str) -> Any:
    """Return a class of diffusers. Raises MissingDependencyError if it is not installed."""
    try:
        return getattr(importlib.import_module("diffusers"), name)
    except ImportError as error:
        message = f"this needs diffusers ({error}): pip install 'fastdiff-sampler[diffusers]'"
        raise MissingDependencyError(message) from None


def class_name(folder: Path) -> str:
    """Return the class that a folder's config.json names, or "" for none.

    Raises CheckpointError if the file cannot be read.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}") from None
    return str(config.get("_class_name", "")) if isinstance(config, dict) else ""


def pretrained(name: str, folder: Path, **options: Any) -> Any:
    """Return a network of the class `name`, in evaluation mode, with all its weights from safetensors files.

    Args:
        name: of the class in diffusers.
        folder: holds config.json and the weights.
        options: of the class's `from_pretrained`.

    Raises:
        CheckpointError: the weights are missing, damaged, pickled or not those that config.json describes.
        MissingDependencyError: diffusers is not installed.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no safetensors file: save the {name} as one")
    kind = diffusers_class(name)
    try:
        network, found = kind.from_pretrained(
            folder, use_safetensors=True, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{folder} does not hold the weights that its config.json describes: {reason}") from None
    lacking = [*found["missing_keys"], *found["mismatched_keys"]]
    if lacking:
        raise CheckpointError(f"{folder} does not hold the weights that its config.json describes: no {lacking[0]}")
    return network
