"""What a resumed run needs beside the averaged weights: trained weights and optimiser moments, as named tensors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from fastdiff.checkpoint import read_tensors
from fastdiff.errors import CheckpointError

_MODEL, _OPTIMIZER = "model.", "optimizer."


def collect(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return weights as `model.NAME` and moments as `optimizer.PARAMETER.NAME`."""
    moments = optimizer.state_dict()["state"]
    return {f"{_MODEL}{name}": value for name, value in model.state_dict().items()} | {
        f"{_OPTIMIZER}{number}.{name}": value for number, state in moments.items() for name, value in state.items()
    }


def load(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Put what `collect` returned, saved in a file, back. Raises CheckpointError if the file does not fit."""
    tensors = read_tensors(file)
    weights = {name.removeprefix(_MODEL): value for name, value in tensors.items() if name.startswith(_MODEL)}
    with _fitting(file):
        model.load_state_dict(weights)
        parameters = list(model.parameters())
        moments: dict[int, dict[str, Tensor]] = {}
        for name in tensors.keys() - {_MODEL + key for key in weights}:
            number, key = name.removeprefix(_OPTIMIZER).split(".")
            moments.setdefault(int(number), {})[key] = _laid_out_like(parameters[int(number)], tensors[name])
        optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


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
    except (RuntimeError, ValueError, IndexError):
        raise CheckpointError(f"{file} does not hold the tensors of this run's network") from None
