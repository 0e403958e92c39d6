"""What a resumed run needs beside the averaged weights: trained weights and optimiser moments, as named tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdiff.checkpoint import read_tensors
from fastdiff.errors import CheckpointError

_MODEL, _OPTIMIZER, _TIMES = "model.", "optimizer.", "times."


def collect(model: nn.Module, optimizer: torch.optim.Optimizer, times: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights as `model.NAME`, moments as `optimizer.PARAMETER.NAME`, what the times learnt as `times.NAME`."""
    moments = optimizer.state_dict()["state"]
    return {
        **{f"{_MODEL}{name}": value for name, value in model.state_dict().items()},
        **{f"{_OPTIMIZER}{number}.{name}": value for number, state in moments.items() for name, value in state.items()},
        **{f"{_TIMES}{name}": value for name, value in times.items()},
    }


def load(model: nn.Module, optimizer: torch.optim.Optimizer, times: Mapping[str, Tensor], file: Path) -> None:
    """Put what `collect` returned, saved in a file, back. Raises CheckpointError if the file does not fit."""
    tensors = read_tensors(file)
    parameters = list(model.parameters())
    moments: dict[int, dict[str, Tensor]] = {}
    with _fitting(file):
        model.load_state_dict(_named(_MODEL, tensors))
        for name, value in _named(_OPTIMIZER, tensors).items():
            number, key = name.split(".")
            moments.setdefault(int(number), {})[key] = _laid_out_like(parameters[int(number)], value)
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
        learnt = _named(_TIMES, tensors)
        for name, value in times.items():
            value.copy_(learnt[name])


def _named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def load_weights(model: nn.Module, file: Path) -> None:
    """Load a network's weights from a file. Raises CheckpointError if the file does not fit."""
    tensors = read_tensors(file)
    with _fitting(file):
        model.load_state_dict(tensors)


def _laid_out_like(parameter: Tensor, value: Tensor) -> Tensor:
    # The fused optimiser walks parameter and moments side by side in memory: they must share one layout.
    return torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value


@contextmanager
def _fitting(file: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, ValueError, LookupError):
        raise CheckpointError(f"{file} does not hold the tensors of this run's network") from None
