"""Every case by name: what is done, and on which shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fastdiff.bench.speed.loop import LoopWork
from fastdiff.bench.speed.noise_loss import NoiseLossWork
from fastdiff.bench.speed.normal import NormalWork
from fastdiff.bench.speed.q_sample import QSampleWork
from fastdiff.bench.speed.samplers import SAMPLERS
from fastdiff.bench.speed.step import StepWork
from fastdiff.bench.speed.train_step import TrainStepWork
from fastdiff.bench.speed.work import Work

Shape = tuple[int, ...]

SHAPES: tuple[Shape, ...] = ((1, 4, 64, 64), (16, 4, 64, 64), (16, 3, 256, 256), (64, 3, 256, 256))
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Case:
    """How to make the work of a case, given shape, dtype and device, and the only shape that it takes, if any."""

    work: Callable[..., Work]
    shape: Shape | None = None


def _steps() -> dict[str, Case]:
    return {
        name + suffix: Case(partial(StepWork, name, guided))
        for name in SAMPLERS
        for suffix, guided in (("", False), ("-cfg", True))
    }


CASES: dict[str, Case] = {
    **_steps(),
    "q_sample": Case(QSampleWork),
    "noise_loss": Case(NoiseLossWork),
    "train-step": Case(TrainStepWork),
    "normal": Case(NormalWork),
    "call": Case(partial(StepWork, "ddim", False), shape=(1, 1, 4, 4)),
    "loop": Case(LoopWork, shape=(1, 3, 32, 32)),
}
STEP_CASES = tuple(
    name for name in CASES if name != "loop"
)  # what does the work of one step, not of fifty and a network
