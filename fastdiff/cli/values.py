"""What texts on the command line mean."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import torch

from fastdiff.errors import InputError, lookup

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def device(name: str) -> torch.device:
    """Return a device by name; "auto" is a GPU if there is one. Raises InputError if it cannot be used."""
    lookup("device", name.partition(":")[0], dict.fromkeys(("auto", "cpu", "cuda", "mps", "xpu")))
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from None
    return found


def options(texts: list[str]) -> dict[str, Any]:
    """Return what several name=value say of a sampler. Raises InputError for what has an option of its own."""
    if not all("=" in text for text in texts):
        raise InputError(f"--option must be name=value, got {', '.join(texts)}")
    pairs = (text.partition("=") for text in texts)
    found = {name.strip().replace("-", "_"): parsed(value) for name, _, value in pairs}
    for name in ("steps", "spacing", "eta"):
        if name in found:
            raise InputError(f"--option {name}: give it as --{name}")
    for name in ("name", "schedule"):
        if name in found:
            raise InputError(f"--option {name}: no sampler takes it from the command line")
    return found


def parsed(text: str) -> Any:
    """Return what a text says: a number, a list, true, false or null, or else the text."""
    for read in (int, float, json.loads):
        with contextlib.suppress(ValueError):
            return read(text)
    return text


def positive(name: str, value: int) -> int:
    """Return a number of an option that must be at least 1. Raises InputError if it is not."""
    if value < 1:
        raise InputError(f"--{name} must be at least 1, got {value}")
    return value


def numbers(name: str, text: str) -> tuple[int, ...]:
    """Return whole numbers with commas between, as `joined` writes them. Raises InputError for other texts."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--{name} must be whole numbers with commas between, got {text!r}") from None


def joined(found: tuple[int, ...]) -> str:
    """Return whole numbers or truth values with commas between."""
    return ",".join(str(int(number)) for number in found)
