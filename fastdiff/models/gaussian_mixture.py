"""A mixture of Gaussians as data: what the best network would say of it, in closed form."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastdiff import noise as noises
from fastdiff import prediction as predictions
from fastdiff.errors import InputError
from fastdiff.schedules import Array, Schedule

Scale = float | Tensor

# Of a covariance: how far it may be from symmetric, and its variances below 0.
_ROUNDING = 1e-12


class GaussianMixture(nn.Module):
    """Clean data of density `sum_k w_k N(m_k, C_k)`; noised, component k is `N(alpha m_k, alpha^2 C_k + sigma^2 I)`.

    In its methods x is [B, D]; alpha and sigma are numbers or [B], sigma > 0 where a C_k is singular; and y, int64
    [B], says of which component a sample is, its class 0..K-1, or K, the null token, for any. Results are float64.

    Attributes:
        means: float64 [K, D].
        weights: float64 [K], of sum 1.
        axes, variances: `C_k = axes_k diag(variances_k) axes_k^T`, float64 [K, D, D] and [K, D].
    """

    means: Tensor
    weights: Tensor
    axes: Tensor
    variances: Tensor

    def __init__(self, means: npt.ArrayLike, spread: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> None:
        """Describe the components.

        Args:
            means: [K, D].
            spread: standard deviations [K], the same in every direction, or covariances [K, D, D]; 0 is a point.
            weights: [K], positive, of any sum; None for equal ones.

        Raises:
            InputError: shapes do not match, or a number is not finite or out of range.
        """
        super().__init__()
        mean = _finite("means", means)
        weight = np.ones(mean.shape[:1]) if weights is None else _finite("weights", weights)
        if mean.ndim != 2 or not mean.size or weight.shape != mean.shape[:1] or not (weight > 0).all():
            raise InputError("a mixture needs means [K, D] and as many positive weights [K]")
        covariances = _covariances(_finite("spread", spread), *mean.shape)
        variances, axes = np.linalg.eigh(covariances)
        if (variances < -_ROUNDING * np.abs(variances).max(axis=1, keepdims=True)).any():
            raise InputError("spread: a covariance must have no negative variance in any direction")
        parts = {"means": mean, "weights": weight / weight.sum(), "axes": axes, "variances": np.maximum(variances, 0)}
        for name, part in parts.items():
            self.register_buffer(name, torch.from_numpy(part))

    def sample(self, count: int, seed: int = 0) -> Tensor:
        """Draw clean data, float64 [count, D]: sample i depends on the seed and i alone."""
        K, D = self.means.shape
        z = noises.normal((count, D + 1), seed, stream="extra", device=self.means.device).double()
        k = torch.searchsorted(self.weights.cumsum(0), torch.special.ndtr(z[:, D])).clamp(max=K - 1)
        return self.means[k] + torch.einsum("bde,be->bd", self.axes[k], self.variances[k].sqrt() * z[:, :D])

    def log_density(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0, y: Tensor | None = None) -> Tensor:
        """Return the log-density of noised data, [B]."""
        return self._at(x, _column(alpha, x), _column(sigma, x), y).log_weights.logsumexp(dim=0)

    def score(self, x: Tensor, alpha: Scale = 1.0, sigma: Scale = 0.0, y: Tensor | None = None) -> Tensor:
        """Return the gradient of the log-density, [B, D]."""
        at = self._at(x, _column(alpha, x), _column(sigma, x), y)
        return -self._expected(at, at.pull)

    def eps(self, x: Tensor, alpha: Scale, sigma: Scale, y: Tensor | None = None) -> Tensor:
        """Return `E[eps | x] = -sigma score`, [B, D]."""
        return self.target(x, alpha, sigma, 0.0, 1.0, y)

    def x0(self, x: Tensor, alpha: Scale, sigma: Scale, y: Tensor | None = None) -> Tensor:
        """Return `E[x0 | x]`, [B, D], also where alpha is 0."""
        return self.target(x, alpha, sigma, 1.0, 0.0, y)

    def target(self, x: Tensor, alpha: Scale, sigma: Scale, t0: Scale, te: Scale, y: Tensor | None = None) -> Tensor:
        """Return `E[t0 x0 + te eps | x]`, [B, D]: what a network learns; t0 and te are numbers or [B]."""
        a, s, t0, te = (_column(scale, x) for scale in (alpha, sigma, t0, te))
        at = self._at(x, a, s, y)
        # Along an axis, alpha (x0 - m) and sigma eps share the offset as they share the variance.
        share = t0 * a * self.variances[:, None] + te * s
        return self._expected(at, t0 * self._centres + share * at.pull)

    def network(self, schedule: Schedule, prediction: str = "eps") -> GaussianMixtureNetwork:
        """Return the best network for a schedule and a prediction of `fastdiff.prediction`."""
        return GaussianMixtureNetwork(self, schedule, prediction)

    def _at(self, x: Tensor, alpha: Tensor, sigma: Tensor, y: Tensor | None) -> _Noised:
        K, D = self.means.shape
        if x.ndim != 2 or x.shape[1] != D:
            raise InputError(f"x must be [B, {D}], got {tuple(x.shape)}")
        offset = x.double() @ self.axes - alpha * self._centres
        variance = alpha.square() * self.variances[:, None] + sigma.square()
        pull = offset / variance
        log_weights = self.weights.log()
        if y is not None:
            alone = torch.eye(K, dtype=torch.float64, device=x.device).log()
            log_weights = torch.cat([alone, log_weights[None]])[y]
        log_density = -0.5 * ((offset * pull).sum(dim=2) + (2 * math.pi * variance).log().sum(dim=2))
        return _Noised(log_weights.view(-1, K).T + log_density, pull)

    @property
    def _centres(self) -> Tensor:
        """The means along the axes, [K, 1, D]."""
        return self.means[:, None] @ self.axes

    def _expected(self, at: _Noised, vectors: Tensor) -> Tensor:
        """Return the mean over components of vectors [K, B, D], each along its component's axes, as [B, D]."""
        weighted = at.log_weights.softmax(dim=0)[..., None] * vectors
        return (weighted @ self.axes.mT).sum(dim=0)


class _Noised(NamedTuple):
    """What x is to noised components.

    Attributes:
        log_weights: logs of their weighted densities, [K, B].
        pull: along their axes, the offset of x from their mean over their variance, [K, B, D].
    """

    log_weights: Tensor
    pull: Tensor


class GaussianMixtureNetwork(nn.Module):
    """`model(x, t, y=None) -> out`: the best prediction, x and out [B, D] in any dtype, computed in float64.

    Times between the schedule's levels are those of `Schedule.at_time`, and beyond them the first or last counts.
    """

    def __init__(self, mixture: GaussianMixture, schedule: Schedule, prediction: str) -> None:
        super().__init__()
        self.mixture, self.schedule, self.prediction = mixture, schedule, prediction
        self._levels(torch.tensor(schedule.time[:1]))  # raises InputError for what would fail later

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        alpha, sigma, t0, te, scale_in = self._levels(t)
        return self.mixture.target(x.double() / scale_in[:, None], alpha, sigma, t0, te, y).to(x.dtype)

    def unconditional(self, cond: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition with every label replaced by the null token."""
        return {**cond, "y": torch.full_like(cond["y"], len(self.mixture.means))}

    def _levels(self, t: Tensor) -> Tensor:
        """Return alpha, sigma, t0, te (of `prediction.Prediction`), scale_in: float64 [5, B], [5, 1] for one t."""
        distinct, which = torch.unique(t, return_inverse=True)
        schedule = self.schedule
        time = distinct.cpu().numpy().clip(schedule.time[0], schedule.time[-1])
        alpha, sigma, scale_in = schedule.at_time(time)
        step_sigma = np.interp(time, schedule.time, schedule.step_sigma)
        found = predictions.coefficients(self.prediction, alpha, sigma, step_sigma)
        levels = torch.from_numpy(np.stack([alpha, sigma, found.t0, found.te, scale_in])).to(t.device)
        return levels[:, which] if len(distinct) > 1 else levels


def _covariances(spread: Array, K: int, D: int) -> Array:
    """Return [K, D, D] from standard deviations or covariances."""
    if spread.shape == (K,):
        return spread[:, None, None] ** 2 * np.eye(D)
    if spread.shape != (K, D, D) or not np.allclose(spread, spread.mT, rtol=_ROUNDING, atol=0.0):
        raise InputError("spread must be standard deviations [K] or symmetric covariances [K, D, D]")
    return spread


def _finite(name: str, values: npt.ArrayLike) -> Array:
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers") from None
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite")
    return array


def _column(scale: Scale, x: Tensor) -> Tensor:
    """Return a number as [1, 1], or one for each sample as [B, 1]."""
    return torch.as_tensor(scale, dtype=torch.float64, device=x.device).reshape(-1, 1)
