"""A diffusers scheduler that computes in float64 what it computes in float32, with our levels and our noise."""

from __future__ import annotations

import importlib
from itertools import count
from types import ModuleType
from typing import Any

import pytest

from fastdiff.schedules import Schedule
from tests.peers.loops import gaussian, in_float64


class Doubled:
    """A module whose float32 is float64."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, "float64" if name == "float32" else name)


def doubled(monkeypatch: pytest.MonkeyPatch, kind: str, name: str, schedule: Schedule, **config: Any) -> Any:
    """Return the scheduler `name` of diffusers' file `kind`; its noise is `gaussian(0)`, `gaussian(1)` and so on."""
    module = importlib.import_module(f"diffusers.schedulers.scheduling_{kind}")
    for library in {"np", "torch"} & vars(module).keys():
        if not isinstance(getattr(module, library), Doubled):
            monkeypatch.setattr(module, library, Doubled(getattr(module, library)))
    draws = count()
    monkeypatch.setattr(module, "randn_tensor", lambda *_, **__: gaussian(next(draws)), raising=False)
    return in_float64(getattr(module, name)(num_train_timesteps=len(schedule), **config), schedule)
