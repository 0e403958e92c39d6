"""What every test of training shares."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from accelerate.state import AcceleratorState

from fastdiff.train.trainer import Trainer


@pytest.fixture(autouse=True)
def fresh_accelerate(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test is a program of its own to Accelerate, which keeps its state for the life of one; it uses the CPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    AcceleratorState._reset_state(reset_partial_state=True)
    with torch.random.fork_rng(devices=[]):
        yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are most of a tiny run's time: only tests that ask for them draw any."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr(Trainer, "_draw_samples", lambda self: None)


@pytest.fixture
def pictures() -> None:
    """Ask for pictures."""
