"""What a classifier of noised samples minimises."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Model
from fastdiff.schedules import Schedule
from fastdiff.train.batch import Batch
from fastdiff.train.objectives.loss import Loss


def cross_entropy(schedule: Schedule) -> Loss:
    """Return `-log p(class | x_t)` in nats (Dhariwal & Nichol 2021, section 4), of a network that gives logits."""
    time = functools.cache(torch.tensor(schedule.time, dtype=torch.float32).to)

    def loss(model: Model, batch: Batch) -> Tensor:
        x, t = q_sample(batch.x0, batch.t, schedule, scaled=True, **batch.whose_noise), batch.t
        logits = model(x, time(x.device)[t])
        return F.cross_entropy(logits.float(), batch.label, reduction="none")

    return loss
