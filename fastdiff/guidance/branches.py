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
        InputError: the two branches differ in names, shapes, dtypes, or values that are no tensors; a batch is wrong,
            or the second branch is missing.
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


def part(condition: Condition, samples: slice | Tensor) -> dict[str, Any]:
    """Return the condition of some samples of the batch: as views those of a slice, as copies those of indices."""
    return {name: value[samples] if isinstance(value, Tensor) else value for name, value in condition.items()}


def alike(value: Any, other: Any) -> bool:
    """Whether two conditions can be in one batch: tensors of one shape and dtype, or equal values of another kind."""
    if isinstance(value, Tensor) and isinstance(other, Tensor):
        return (value.shape, value.dtype) == (other.shape, other.dtype)
    try:
        return value is other or bool(value == other and type(value) is type(other))
    except (RuntimeError, ValueError):  # arrays compare element by element
        return False


def _join(name: str, value: Any, other: Any) -> Any:
    if not alike(value, other):
        raise InputError(
            f"condition {name!r} of cond and uncond must be tensors of one shape and dtype, batch first, or equal "
            f"values of another kind: {_kind(value)} and {_kind(other)} are not"
        )
    return torch.cat([value, other]) if isinstance(value, Tensor) else value


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
