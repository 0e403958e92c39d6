"""The density of the probability-flow ODE: the likelihood of what a deterministic sampler draws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from fastdiff import noise as noises
from fastdiff import prediction as predictions
from fastdiff.errors import InputError, NonFiniteError, lookup, number, whole
from fastdiff.guidance.branches import Model, conditions, part
from fastdiff.likelihood.data import checked, dequantised
from fastdiff.plan import Plan
from fastdiff.samplers.levels import at_index, start_scale
from fastdiff.schedules import Array, Schedule

TRACES = {"exact": "one derivative for each element of a sample", "hutchinson": "one for each probe"}
_METHOD = "DOP853"  # of order 8: Hairer, Norsett & Wanner 1993


def log_likelihood(
    model: Model,
    x0: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    trace: str = "exact",
    probes: int = 1,
    probe: str = "rademacher",
    rtol: float = 1e-5,
    atol: float = 1e-5,
    levels: int | None = None,
    plan: Plan | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    batch: int = 64,
    progress: bool = False,
) -> Tensor:
    """Return the log-likelihood of data under the probability-flow ODE, in nats, float64 [B].

    In `u = x / alpha` and `s = log(sigma / alpha)` the ODE is `du/ds = (sigma / alpha) eps_hat(alpha u, s)`, and along
    it `d log p(u)/ds = -tr(d/du du/ds)` (Song et al. 2021, appendix D.2). It runs from x0, taken to have the noise of
    the schedule's cleanest level, to the noisiest, where p is the Gaussian that sampling begins with. So the density is
    that of data with the cleanest level's noise. A schedule that ends in pure noise, which u does not reach, is left
    one level before. SciPy's DOP853 solves it in float64; the network computes in the dtype of its parameters.

    The tolerance is on the root mean square of the errors that one step makes in all elements and log-densities of a
    batch. On 2-D mixtures the largest error of a sample was 13 rtol nats in a batch of 40, and 47 rtol alone.

    Args:
        model: the network, as it should be evaluated, of samples that do not depend on each other.
        x0: clean data [B, ...], B >= 1.
        schedule: the levels that the network was trained on.
        prediction: what it predicts.
        trace: "exact", by as many derivatives as a sample has elements, or "hutchinson", an unbiased estimate of the
            log-likelihood by `v^T (d/du du/ds) v` with the same v all the way (Grathwohl et al. 2019).
        probes: how many v are averaged over.
        probe: what they are drawn from, "rademacher" or "gaussian".
        rtol, atol: relative and absolute tolerance of a step.
        levels: how many values, evenly from -1 to 1, an element of x0 can have. Uniform noise then spreads each over
            its share of the line, and the result is a lower bound on the log-probability of x0 (Theis et al. 2016):
            `log p(u) + D log(2 / (levels - 1))`, or in bits per element `-log_2 p(u) / D + log_2((levels - 1) / 2)`.
        plan: a deterministic sampler whose first level and start are to be the noisy end.
        cond: keyword arguments of the model; tensors have the batch first.
        seed, index: whose probes and uniform noise to draw; see `fastdiff.noise.normal`.
        batch: samples in one ODE.
        progress: show a bar where the output is a terminal.

    Raises:
        InputError: a name is unknown, a number out of range, x0 or a condition has another batch or form than needed,
            the prediction is known at the schedule's own levels alone, or the plan draws noise or has no levels.
        NonFiniteError: the network gives NaN or infinity, or no step is small enough for the tolerance.
        MissingDependencyError: SciPy is not installed.
    """
    lookup("trace", trace, TRACES)
    drawn_from = lookup("probe", probe, noises.PROBES)
    tolerance = {"rtol": number("rtol", rtol, 0, above=True), "atol": number("atol", atol, 0, above=True)}
    whole("probes", probes, 1)
    data = checked(x0, levels).double()
    noisiest, start = _noisy_end(schedule, plan)
    flow = _Flow(model, schedule, prediction)
    condition = conditions(model, cond or {}, None, 1, len(data))
    _, who = noises.key(seed, index, len(data), data.device)
    if levels is not None:
        data = dequantised(data, levels, seed, who)
    found = []
    firsts = range(0, len(data), whole("batch", batch, 1))
    for first in tqdm(firsts, desc="likelihood", unit="batch", disable=None if progress else True):
        some = slice(first, first + batch)
        x = data[some]
        if trace == "exact":
            vectors = _unit_vectors(x)
        else:
            drawn = (drawn_from(x.shape, seed, who[some], k, stream="probe", device=x.device) for k in range(probes))
            vectors = [v.double() / math.sqrt(probes) for v in drawn]
        u, lost = flow.integrate(x, vectors, noisiest, part(condition, some), tolerance)
        found.append(_normal_density(u, start) + lost)
    result = torch.cat(found)
    return result if levels is None else result + data[0].numel() * math.log(2 / (levels - 1))


class _Flow:
    """The ODE of one network."""

    def __init__(self, model: Model, schedule: Schedule, prediction: str) -> None:
        self.model, self.schedule, self.prediction = model, schedule, prediction
        self.cleanest = -float(schedule.lambda_[0])
        tensors = itertools.chain(model.parameters(), model.buffers()) if isinstance(model, nn.Module) else ()
        self.dtype = next((tensor.dtype for tensor in tensors if tensor.is_floating_point()), torch.float64)
        self._level(self.cleanest)  # raises InputError for what would fail later

    def integrate(
        self,
        x0: Tensor,
        vectors: Sequence[Tensor],
        noisiest: float,
        cond: Mapping[str, Any],
        tolerance: Mapping[str, float],
    ) -> tuple[Tensor, Tensor]:
        """Carry x0 up to `s = noisiest`; return where it arrives and how much log-density it lost on the way, [B]."""
        from fastdiff.train.libraries import require  # fastdiff.train imports this package

        size = x0.numel()

        def slope(s: float, state: Array) -> Array:
            u = torch.from_numpy(state[:size]).view(x0.shape).to(x0.device)
            moved, trace = self._slope(u, s, vectors, cond)
            values = torch.cat([moved.flatten(), trace]).cpu().numpy()
            if not np.isfinite(values).all():
                raise NonFiniteError(f"NaN or infinity in the network's output or slope at log(sigma / alpha) = {s:g}")
            return values

        first = np.concatenate([x0.cpu().numpy().ravel(), np.zeros(len(x0))])
        solve = require("scipy.integrate", "train").solve_ivp
        solved = solve(slope, (self.cleanest, noisiest), first, method=_METHOD, t_eval=[noisiest], **tolerance)
        if not solved.success:
            raise NonFiniteError("no step is small enough for the tolerance: raise rtol and atol")
        last = torch.from_numpy(solved.y[:, -1].copy()).to(x0.device)
        return last[:size].view(x0.shape), last[size:]

    def _slope(self, u: Tensor, s: float, vectors: Sequence[Tensor], cond: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Return du/ds and the sum over v of `v^T (d/du du/ds) v`, [B]."""
        time, alpha, sigma, scale_in, ex, eo = self._level(s)
        t = torch.full((len(u),), time, dtype=self.dtype, device=u.device)
        with torch.enable_grad():
            u = u.detach().requires_grad_()
            out = self.model((scale_in * alpha * u).to(self.dtype), t, **cond)
            mean = out[:, : u.shape[1]].double()  # behind it, what a learned variance is found from
            slope = sigma / alpha * (ex * alpha * u + eo * mean)
            trace = u.new_zeros(len(u))
            for v in vectors:
                (along,) = torch.autograd.grad(slope, u, v, retain_graph=True)
                trace = trace + (along * v).flatten(1).sum(dim=1)
        return slope.detach(), trace

    def _level(self, s: float) -> tuple[float, ...]:
        """Return time, alpha, sigma and scale_in where log(sigma / alpha) is s, and what finds eps in (x, out)."""
        time, alpha, sigma, scale_in = self.schedule.at_lambda(-s)
        found = predictions.coefficients(self.prediction, alpha, sigma)
        return tuple(float(value) for value in (time, alpha, sigma, scale_in, found.ex, found.eo))


def _noisy_end(schedule: Schedule, plan: Plan | None) -> tuple[float, float]:
    """Return log(sigma / alpha) of the noisiest level, and the deviation of the noise in u that sampling begins with.

    Raises InputError if the plan draws noise, or does not know its levels or begins in pure noise.
    """
    if plan is None:
        with_signal = np.flatnonzero(schedule.alpha)
        if not len(with_signal):
            raise InputError("no level of this schedule has signal: there is no likelihood")
        last = at_index(schedule, int(with_signal[-1]))
        return -last.lambda_, start_scale(schedule, last) / last.alpha
    if plan.draws_noise:
        raise InputError(
            f"{plan.name} draws noise, and only a deterministic sampler has an ODE: use ddim, or likelihood.bound, "
            "which is for ancestral sampling"
        )
    if not len(plan.alpha) or not plan.alpha[0] or not plan.sigma[0]:
        raise InputError(f"{plan.name} does not begin at a level of both signal and noise: leave the sampler out")
    return math.log(plan.sigma[0] / plan.alpha[0]), plan.init_scale / float(plan.alpha[0])


def _unit_vectors(x: Tensor) -> Sequence[Tensor]:
    """Return the unit vectors of a sample, each [B, ...], which between them make the exact trace."""
    return [unit.view(1, *x.shape[1:]).expand_as(x) for unit in torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)]


def _normal_density(u: Tensor, deviation: float) -> Tensor:
    """Return log N(u; 0, deviation^2 I) of each sample, [B]."""
    square = (u / deviation).flatten(1).square().sum(dim=1)
    return -0.5 * square - u[0].numel() * (math.log(deviation) + 0.5 * math.log(2 * math.pi))
