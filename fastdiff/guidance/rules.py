"""Rules of guidance: `out = w c + w' u` with weights of each sample, so that one kernel serves all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdiff.errors import InputError
from fastdiff.ops.dispatch import Backend
from fastdiff.plan import Plan

Scale = float | Tensor | Callable[[float], float]


def scale(
    *, w: float | Tensor | None = None, omega: float | Tensor | None = None, lambda_: float | Tensor | None = None
) -> float | Tensor:
    """Return w of `u + w (c - u)` from the name that it was given by.

    Args:
        w: the scale itself: 1 is no guidance.
        omega: of `(1 + omega) c - omega u` (Ho & Salimans 2022, eq. 6): 0 is no guidance.
        lambda_: of `lambda c + (1 - lambda) u`: 1 is no guidance.

    Raises:
        InputError: not one of the three is given.
    """
    given = [value for value in (w, None if omega is None else 1 + omega, lambda_) if value is not None]
    if len(given) != 1:
        raise InputError("give the guidance scale by one of its names: w, omega or lambda_")
    return given[0]


@dataclass(frozen=True)
class CFG:
    """Classifier-free guidance, `out = u + w (c - u)` (Ho & Salimans 2022).

    Attributes:
        w: a number; a tensor of shape (), [B], [rows, 1] or [rows, B]; or a function of the noise level
            sigma / alpha. `scale` knows its other names.
        interval: guide only where low < sigma / alpha <= high (Kynkaanniemi et al. 2024, eq. 5); None is everywhere.
            Elsewhere, and in rows whose number w is 1, the unconditional branch is not evaluated.
    """

    w: Scale
    interval: tuple[float, float] | None = None

    momentum = 0.0  # of a running mean of c - u

    def __post_init__(self) -> None:
        if self.interval is not None and not 0 <= self.interval[0] < self.interval[1]:
            raise InputError(f"interval must be (low, high) with 0 <= low < high, got {self.interval}")

    @property
    def method(self) -> CFG:
        """The rule without its scale: rules of one method shape a loop alike."""
        return replace(self, w=1.0, interval=None)

    def ignores_w(self, row: int) -> bool:
        """Whether a row is not the conditional branch even where w is 1."""
        return False

    def combine(
        self, c: Tensor, u: Tensor, w: Tensor, row: Tensor, ops: Backend, mean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return what takes the place of u, and the weights of c and of it, [B]; None for the weight 1 - w.

        Args:
            c, u: the two branches, [B, ...].
            w: scale of each sample, [B].
            row: row of each sample, [B].
            ops: the backend.
            mean: running mean of c - u, [B, ...], for a rule with momentum; this brings it up to date.
        """
        return u, w, None


UNGUIDED = CFG(1.0)


@dataclass(frozen=True)
class CFGZero(CFG):
    """CFG-Zero* (Fan et al. 2025): `s u + w (c - s u)` with `s = <c, u> / |u|^2`, and 0 in the first rows.

    It is made for networks that predict the velocity of a flow ("flow"), where an output of 0 leaves the state alone.

    Attributes:
        w, interval: as in `CFG`; the first rows are 0 whatever they say.
        zero_rows: how many rows begin with an output of 0.
    """

    zero_rows: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_rows < 0:
            raise InputError(f"zero_rows must be at least 0, got {self.zero_rows}")

    def ignores_w(self, row: int) -> bool:
        return row < self.zero_rows

    def combine(
        self, c: Tensor, u: Tensor, w: Tensor, row: Tensor, ops: Backend, mean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        cc, cd, dd = ops.inner_products(c, u).unbind()  # d = c - u
        s = _ratio(cc - cd, cc - 2 * cd + dd)
        keep = row >= self.zero_rows
        return u, keep * w, keep * (1 - w) * s


@dataclass(frozen=True)
class APG(CFG):
    """Adaptive projected guidance (Sadat et al. 2024, Algorithm 1): `c + (w - 1) s (d - (1 - eta) d_parallel)`.

    d is c - u, or with momentum `d_t + momentum * (d of the row before)`; s = min(1, norm / |d|); d_parallel is the
    part of d along c. Projected is what the network predicts; the paper's form is that of a network that predicts x0.

    Attributes:
        w, interval: as in `CFG`.
        eta: how much of the part along c stays, in 0..1; it is what over-saturates.
        norm: bound on |d|, > 0; None for none.
        momentum: in (-1, 1), negative in the paper; other than 0 it keeps one more tensor of the size of the state.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise InputError(f"eta must be in 0..1, got {self.eta}")
        if self.norm is not None and not self.norm > 0:
            raise InputError(f"norm must be > 0, or None for no bound, got {self.norm}")
        if not -1 < self.momentum < 1:
            raise InputError(f"momentum must be in (-1, 1), got {self.momentum}")

    def combine(
        self, c: Tensor, u: Tensor, w: Tensor, row: Tensor, ops: Backend, mean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        if mean is None:
            cc, cd, dd = ops.inner_products(c, u).unbind()
        else:
            mean.mul_(self.momentum).add_(c).sub_(u)
            # With the mean in front its norm keeps its digits, however small it is beside c.
            dd, rest, others = ops.inner_products(mean, c).unbind()
            cc, cd = dd - 2 * rest + others, dd - rest
        push = w - 1
        if self.norm is not None:
            push = push * (self.norm / dd.sqrt()).clamp(max=1)
        along = push * (1 - self.eta) * _ratio(cd, cc)
        return (u, 1 - along + push, -push) if mean is None else (mean, 1 - along, push)


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """Return above / below, and 0 where below, a square, is 0."""
    return torch.where(below > 0, above / below, 0)


def rule(guidance: Scale | CFG) -> CFG:
    """Return guidance as a rule; a scale alone is classifier-free guidance."""
    return guidance if isinstance(guidance, CFG) else CFG(guidance)


def scales(
    rule: CFG, plan: Plan, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, frozenset[int]]:
    """Return w of each row and sample, [rows, batch], and the rows that evaluate the conditional branch alone.

    Raises:
        InputError: w has another shape, or it or the interval depends on the noise levels of a plan without any.
    """
    rows = range(len(plan))
    inside = [rule.interval is None or rule.interval[0] < level <= rule.interval[1] for level in _levels(rule, plan)]
    if isinstance(rule.w, Tensor):
        shapes = (), (batch,), (len(plan), 1), (len(plan), batch)
        if rule.w.shape not in shapes:
            raise InputError(f"guidance must be a number or have shape {shapes[1:]}, got {tuple(rule.w.shape)}")
        given = rule.w.to(device=device, dtype=dtype).resolve_neg()
        w = torch.where(torch.tensor(inside, device=device)[:, None], given, 1)
        plain = {row for row in rows if not inside[row]}
    else:
        chosen = [
            float(rule.w(level) if callable(rule.w) else rule.w) if within else 1.0
            for level, within in zip(_levels(rule, plan), inside, strict=True)
        ]
        w = torch.tensor(chosen, device=device, dtype=dtype)[:, None]
        plain = {row for row in rows if chosen[row] == 1}
    return w.expand(len(plan), batch), frozenset(row for row in plain if not rule.ignores_w(row))


def _levels(rule: CFG, plan: Plan) -> list[float]:
    """Return sigma / alpha of each row, where the rule asks for it."""
    if rule.interval is None and not callable(rule.w):
        return [math.nan] * len(plan)
    if not plan.sigma.size:
        raise InputError("this plan does not know its noise levels: give guidance as a tensor [rows, 1], no interval")
    pairs = zip(plan.sigma[:-1].tolist(), plan.alpha[:-1].tolist(), strict=True)
    return [sigma / alpha if alpha else math.inf for sigma, alpha in pairs]
