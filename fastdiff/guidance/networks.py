"""Models made of models: a worse network as the other branch, and a classifier's gradient."""

from __future__ import annotations

import functools
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import prediction as predictions
from fastdiff.errors import InputError
from fastdiff.guidance.branches import Condition, Model, part
from fastdiff.schedules import Array, Schedule


class Wrapper(nn.Module):
    """A model around another one, whose weights are its own and whose null condition it passes on.

    Raises:
        InputError: the model evaluates the branches of guidance in its own way, which would be lost.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        if hasattr(model, "both_branches"):
            raise InputError(f"put {type(model).__name__} around {type(self).__name__}, not into it")
        self.model = model
        if hasattr(model, "unconditional"):
            self.unconditional = model.unconditional


class Autoguidance(nn.Module):
    """Guidance by a worse version of the network (Karras et al. 2024): u is what that one says of the same condition.

    It goes around other wrappers, not into them; w is the `guidance` of `fastdiff.sample`.

    Args:
        model: the network.
        worse: a smaller or less trained network with the same prediction and conditions.
    """

    def __init__(self, model: Model, worse: Model) -> None:
        super().__init__()
        self.model, self.worse = model, worse

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Evaluate the network alone."""
        return self.model(x, t, **cond)

    def both_branches(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Evaluate the network on the first half of the batch and the worse one on the second."""
        batch = len(x) // 2
        halves = (self.model, slice(batch)), (self.worse, slice(batch, None))
        return torch.cat([model(x[half], t[half], **part(cond, half)) for model, half in halves])

    def unconditional(self, cond: Condition) -> Condition:
        """Return the condition: both networks are given the same one, unless `uncond` says otherwise."""
        return cond


def both_branches(model: Model) -> Model:
    """Return what evaluates both branches of guidance in one batch: the model, unless it has a way of its own."""
    return cast(Model, getattr(model, "both_branches", model))


class ClassifierGuidance(Wrapper):
    """Classifier guidance, `eps - omega sigma grad log p(c | x_t)` (Dhariwal & Nichol 2021, Algorithm 2).

    In any prediction: the output moves as it does where eps moves by that and x0 with it. Between the levels of the
    schedule alpha is interpolated, and the factor of the gradient times alpha. Where alpha is 0 nothing is added: the
    gradient is 0 there, and what it is to be divided by too, so the first row of a flow or a zero-SNR plan is unguided.

    Args:
        model: the network.
        log_probability: `log_probability(x, t, **cond) -> [B]`, log p(c | x_t) up to a constant, differentiable in x;
            it is given the same x, t and conditions as the network, with a `guidance` also the unconditional ones.
        schedule: the noise levels of both.
        prediction: what the network predicts.
        omega: strength; 0 is none.

    Raises:
        InputError: the prediction is unknown.
    """

    def __init__(
        self, model: Model, log_probability: Model, schedule: Schedule, prediction: str = "eps", omega: float = 1.0
    ) -> None:
        super().__init__(model)
        self.log_probability = log_probability
        columns = np.stack([schedule.time, schedule.alpha, omega * _of_gradient(schedule, prediction)])
        table = torch.from_numpy(columns.take(np.argsort(schedule.time), axis=1))
        self._table = functools.cache(lambda device, dtype: table.to(device, dtype))

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        """Return the guided output, as the network does; x, t and cond as the network has them."""
        out = self.model(x, t, **cond)
        # Also inside `no_grad` and inference mode, whose tensors cannot take part in a gradient: their copies can.
        with torch.inference_mode(False), torch.enable_grad():
            given = x.clone().requires_grad_()
            known = {name: value.clone() if isinstance(value, Tensor) else value for name, value in cond.items()}
            (gradient,) = torch.autograd.grad(self.log_probability(given, t.clone(), **known).sum(), given)
        alpha, product = _interpolate(t, *self._table(t.device, t.dtype))
        factor = torch.where(alpha > 0, product / alpha, 0).view(-1, *[1] * (x.ndim - 1))
        moved = (out[:, : x.shape[1]] + factor * gradient).to(out.dtype)
        return torch.cat([moved, out[:, x.shape[1] :]], dim=1)  # a learned variance stays as it is


def _of_gradient(schedule: Schedule, prediction: str) -> Array:
    """Return by how much of the gradient in the network's input an output moves for omega = 1, times alpha, [T]."""
    alpha, sigma = np.maximum(schedule.alpha, 1e-12), schedule.sigma  # what eps says of x0 has no value at alpha = 0
    found = predictions.coefficients(prediction, alpha, sigma, schedule.step_sigma)
    of_eps = alpha * found.te - sigma * found.t0  # alpha d out / d eps with x = alpha x0 + sigma eps kept
    return -sigma * schedule.scale_in * of_eps


def _interpolate(t: Tensor, times: Tensor, *values: Tensor) -> list[Tensor]:
    """Return each of values, [T] at rising times, at t [B]: linearly between, and beyond the last one as there."""
    after = torch.searchsorted(times, t).clamp(max=len(times) - 1)
    before = (after - 1).clamp(min=0)
    gap = times[after] - times[before]
    weight = torch.where(gap > 0, (t - times[before]) / gap, 1).clamp(0, 1)
    return [torch.lerp(value[before], value[after], weight) for value in values]
