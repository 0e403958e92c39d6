"""The variational bound on the log-likelihood of data, term by term."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fastdiff import noise as noises
from fastdiff.errors import whole
from fastdiff.forward import q_sample
from fastdiff.guidance.branches import Model, conditions, part
from fastdiff.likelihood.data import checked
from fastdiff.likelihood.terms import Terms, prior
from fastdiff.schedules import Schedule


class Estimate(NamedTuple):
    """A mean over samples and its standard error, NaN for a single sample."""

    mean: float
    standard_error: float


def estimate(values: Tensor) -> Estimate:
    """Return the mean of one number per sample, [B], and its standard error: the deviation over sqrt(B)."""
    spread = float(values.std()) if len(values) > 1 else math.nan
    return Estimate(float(values.mean()), spread / math.sqrt(len(values)))


@dataclass(frozen=True)
class Bound:
    """The variational bound on -log p(x0) of each sample.

    Attributes:
        terms: nats, float64 [B, T + 1] on the CPU: column k is L_k, so that 0 is the reconstruction, T the prior, and
            between them stands what each step down from a level k costs.
        dimensions: elements of a sample.
    """

    terms: Tensor
    dimensions: int

    @property
    def nats(self) -> Tensor:
        """The bound of each sample, float64 [B]."""
        return self.terms.sum(dim=1)

    @property
    def bits_per_dim(self) -> Tensor:
        """The bound of each sample in bits per element, float64 [B]; for continuous data bits of a density."""
        return self.nats / (math.log(2) * self.dimensions)

    @property
    def mean(self) -> float:
        """Mean over samples, in bits per element."""
        return estimate(self.bits_per_dim).mean

    @property
    def standard_error(self) -> float:
        """Standard error of `mean`; NaN for a single sample."""
        return estimate(self.bits_per_dim).standard_error


@torch.no_grad()
def bound(
    model: Model,
    x0: Tensor,
    schedule: Schedule,
    *,
    prediction: str = "eps",
    variance: str = "small",
    levels: int | None = None,
    clip: float | None = None,
    cond: Mapping[str, Any] | None = None,
    seed: int = 0,
    index: Sequence[int] | Tensor | None = None,
    batch: int = 256,
    progress: bool = False,
) -> Bound:
    """Estimate the variational bound of ancestral sampling, every level once for every sample.

    `-log p(x0) <= L_T + sum_k L_k + L_0` (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, section 2.1); `Terms` says
    what each is. The noise at level k is that of `fastdiff.q_sample(x0, k, schedule, seed, index=index, step=k)`: the
    estimate does not depend on `batch`. It is unbiased; its noise is part of the spread over samples.

    Args:
        model: the network, as it should be evaluated; see `nn.Module.eval`.
        x0: clean data [B, ...], B >= 1. Arithmetic is float32, or float64 for float64.
        schedule: the levels that the network was trained on.
        prediction: what it predicts.
        variance: of the steps: "small", "large" or "learned_range", as for `samplers.ddpm`.
        levels: how many values, evenly from -1 to 1, an element of x0 can have: 256 for images of bytes. None is for
            continuous data, whose bound is on the density.
        clip: bound on |x0_hat|, as for samplers; None for none.
        cond: keyword arguments of the model; tensors have the batch first.
        seed, index: whose noise to draw; see `fastdiff.noise.normal`.
        batch: samples in one network evaluation; there are B T / batch.
        progress: show a bar where the output is a terminal.

    Raises:
        InputError: a name is unknown, a number out of range, x0 or a condition has another batch or form than needed,
            x0 is not at `levels`, or the network does not learn the variance that it is asked for.
    """
    data = checked(x0, levels)
    terms = Terms(schedule, prediction, variance, levels, clip)
    condition = conditions(model, cond or {}, None, 1, len(data))
    T = len(schedule)
    _, samples = noises.key(seed, index, len(data), data.device)
    found = torch.empty(len(data) * T, dtype=torch.float64)
    pairs = range(0, len(found), whole("batch", batch, 1))
    for first in tqdm(pairs, desc="bound", unit="batch", disable=None if progress else True):
        pair = torch.arange(first, min(first + batch, len(found)), device=data.device)
        sample, t = pair // T, pair % T
        clean, who = data[sample], samples[sample]
        x, eps = q_sample(clean, t, schedule, seed, index=who, step=t, scaled=True, return_noise=True)
        found[first : first + batch] = terms(model, clean, x, eps, t, part(condition, sample))
    return Bound(torch.cat([found.view(-1, T), prior(data, schedule).cpu()[:, None]], dim=1), data[0].numel())
