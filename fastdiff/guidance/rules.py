"""Rules of guidance: `out = w c + w' u` with weights of each sample, so that one kernel serves all of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastdiff.errors import InputError, number, whole
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
            sigma / alpha of the state before the row, which may be infinite. `scale` knows its other names.
        interval: guide only where low < sigma / alpha <= high (Kynkaanniemi et al. 2024, eq. 5); None is everywhere.
            Elsewhere, and in rows whose number w is 1, the unconditional branch is not evaluated.

    Raises:
        InputError: w is neither finite, nor a tensor, nor a function; or an attribute is out of range.
    """

    w: Scale
    interval: tuple[float, float] | None = None

    momentum = 0.0  # of a running mean of c - u

    def __post_init__(self) -> None:
        if not (isinstance(self.w, Tensor) or callable(self.w)):
            number("guidance", self.w)
        if self.interval is not None and not _rises(self.interval):
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
        zero_rows: how many rows begin with an output of 0. They evaluate both branches as the others do; a step of a
            sampler may take two rows.
    """

    zero_rows: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("zero_rows", self.zero_rows, 0)

    def ignores_w(self, row: int) -> bool:
        return row < self.zero_rows

    def combine(
        self, c: Tensor, u: Tensor, w: Tensor, row: Tensor, ops: Backend, mean: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        uu, ud, _ = ops.inner_products(u, c).unbind()  # d = u - c
        s = _ratio(uu - ud, uu)
        keep = row >= self.zero_rows
        return u, keep * w, keep * (1 - w) * s


@dataclass(frozen=True)
class APG(CFG):
    """Adaptive projected guidance on what the network predicts: `c + (w - 1) s (d - (1 - eta) d_parallel)`.

    d is c - u, or with momentum `d_t + momentum * (d of the row before)`; s = min(1, norm / |d|); d_parallel is the
    part of d along c. Where the network predicts x0 this is Algorithm 1 of Sadat et al. 2024, which projects
    x0-predictions. For eps, v or flow it is the form that diffusers has, and another method: it projects along those,
    its mean weighs rows otherwise, and the paper's values of `norm` do not carry over.

    Attributes:
        w, interval: as in `CFG`.
        eta: how much of the part along c stays, in 0..1; it is what over-saturates.
        norm: bound on |d|, > 0, in units of what the network predicts; None for none.
        momentum: in (-1, 1), negative in the paper; other than 0 it keeps one more tensor of the size of the state.
    """

    eta: float = 0.0
    norm: float | None = None
    momentum: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        number("eta", self.eta, 0, 1)
        if self.norm is not None:
            number("norm", self.norm, 0, above=True)
        if abs(number("momentum", self.momentum)) >= 1:
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


def _rises(interval: tuple[float, float]) -> bool:
    try:
        low, high = interval
        return 0 <= low < high
    except (TypeError, ValueError):
        return False


def as_rule(guidance: Scale | CFG) -> CFG:
    """Return guidance as a rule; a scale alone is classifier-free guidance. Raises InputError as `CFG` does."""
    return guidance if isinstance(guidance, CFG) else CFG(guidance)


def w_of_rows(
    rule: CFG, plan: Plan, batch: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, frozenset[int]]:
    """Return w of each row and sample, [rows, batch], and the rows that evaluate the conditional branch alone.

    Raises:
        InputError: w has another shape or is not finite at a level, or it or the interval depends on the noise levels
            of a plan without any. What tensors hold is not read.
    """
    rows = range(len(plan))
    inside = [rule.interval is None or rule.interval[0] < level <= rule.interval[1] for level in _levels(rule, plan)]
    if isinstance(rule.w, Tensor):
        shapes = (), (batch,), (len(plan), 1), (len(plan), batch)
        if rule.w.shape not in shapes:
            wanted = f"[B], [rows, 1] or [rows, B] with B = {batch} and rows = {len(plan)}"
            raise InputError(f"guidance must be a number or a tensor {wanted}, got shape {tuple(rule.w.shape)}")
        given = rule.w.to(device=device, dtype=dtype).resolve_neg()
        w = torch.where(torch.tensor(inside, device=device)[:, None], given, 1)
        plain = {row for row in rows if not inside[row]}
    else:
        chosen = [
            _finite(rule.w, level) if within else 1.0 for level, within in zip(_levels(rule, plan), inside, strict=True)
        ]
        w = torch.tensor(chosen, device=device, dtype=dtype)[:, None]
        plain = {row for row in rows if chosen[row] == 1}
    return w.expand(len(plan), batch), frozenset(row for row in plain if not rule.ignores_w(row))


def _finite(w: float | Callable[[float], float], level: float) -> float:
    return number(f"guidance at sigma / alpha = {level:g}", w(level)) if callable(w) else float(w)


def _levels(rule: CFG, plan: Plan) -> list[float]:
    """Return sigma / alpha of each row, where the rule asks for it."""
    if rule.interval is None and not callable(rule.w):
        return [math.nan] * len(plan)
    if not plan.sigma.size:
        raise InputError("this plan does not know its noise levels: give guidance as a tensor [rows, 1], no interval")
    pairs = zip(plan.sigma[:-1].tolist(), plan.alpha[:-1].tolist(), strict=True)
    return [sigma / alpha if alpha else math.inf for sigma, alpha in pairs]
