"""The conditions of both branches of guidance as one batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from fastdiff.errors import InputError

Condition = Mapping[str, Any]
Model = Callable[..., Tensor]


def conditions(model: object, cond: Condition, uncond: Condition | None, branches: int, batch: int) -> dict[str, Any]:
    """Return the model's keyword arguments, with the unconditional branch behind the conditional one.

    Raises:
        InputError: the two branches differ in names or shapes, a batch is wrong, or the second branch is missing.
    """
    for name, value in {**cond, **(uncond or {})}.items():
        if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != batch):
            raise InputError(f"condition {name!r} must have the batch of {batch} first, got shape {tuple(value.shape)}")
    if branches == 1:
        return dict(cond)
    if uncond is None:
        if not hasattr(model, "unconditional"):
            raise InputError("guidance needs `uncond`, or a model with a method `unconditional(cond)`")
        uncond = model.unconditional(cond)
    if set(cond) != set(uncond):
        raise InputError(f"cond and uncond must have the same names, got {sorted(cond)} and {sorted(uncond)}")
    return {name: _join(name, value, uncond[name]) for name, value in cond.items()}


def first(condition: Condition, count: int) -> dict[str, Any]:
    """Return the condition of the first `count` samples, as views."""
    return {name: value[:count] if isinstance(value, Tensor) else value for name, value in condition.items()}


def _join(name: str, value: Any, other: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    if value.shape != other.shape:
        raise InputError(f"condition {name!r} differs in shape: {tuple(value.shape)} and {tuple(other.shape)}")
    return torch.cat([value, other])
