"""Which levels a step trains: distributions of t by name.

Each draws the levels of a whole batch at once, so that any number of processes share the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

REMEMBERED = 10  # losses of each level: Nichol & Dhariwal 2021, section 3.3
_SPREAD = 1e-3  # share of importance sampling that stays uniform, so that no level is forgotten


class Times(Protocol):
    """A distribution of t, and what it has learnt.

    Attributes:
        learns: whether it is told the losses; then every step waits for the device.
        state: what a resumed run needs, named tensors.
    """

    learns: bool
    state: dict[str, Tensor]

    def draw(self, generator: np.random.Generator, batch: int) -> tuple[Ints, Floats]:
        """Return schedule indices [batch], and factors of the losses that make their mean that of uniform t."""

    def learn(self, t: Ints, loss: Floats) -> None:
        """Take note of the losses [B] at levels [B], those of the whole batch."""


class Fixed:
    """A distribution that stays as it is: a function (generator, T, batch) -> t [batch]."""

    learns = False

    def __init__(self, T: int, draw: Callable[[np.random.Generator, int, int], Ints]) -> None:
        self.T, self._draw = T, draw
        self.state: dict[str, Tensor] = {}

    def draw(self, generator: np.random.Generator, batch: int) -> tuple[Ints, Floats]:
        """See `Times`."""
        return self._draw(generator, self.T, batch), np.ones(batch)

    def learn(self, t: Ints, loss: Floats) -> None:
        """See `Times`."""


class Importance:
    """Levels in proportion to `sqrt(E[L_t^2])` of their last losses (Nichol & Dhariwal 2021, eq. 18).

    Uniform until every level has been seen `REMEMBERED` times.
    """

    learns = True

    def __init__(self, T: int) -> None:
        losses, seen = torch.zeros(T, REMEMBERED, dtype=torch.float64), torch.zeros(T, dtype=torch.int64)
        self.state = {"losses": losses, "seen": seen}

    def draw(self, generator: np.random.Generator, batch: int) -> tuple[Ints, Floats]:
        """See `Times`."""
        p = self.probabilities()
        t = generator.choice(len(p), size=batch, p=p)
        return t, 1 / (len(p) * p[t])

    def learn(self, t: Ints, loss: Floats) -> None:
        """See `Times`."""
        losses, seen = self.state["losses"].numpy(), self.state["seen"].numpy()
        for level, value in zip(t, loss, strict=True):
            losses[level, seen[level] % REMEMBERED] = value
            seen[level] += 1

    def probabilities(self) -> Floats:
        """Return the probability of each level, [T]."""
        losses, seen = self.state["losses"].numpy(), self.state["seen"].numpy()
        size = np.sqrt(np.mean(losses**2, axis=1))
        if seen.min() < REMEMBERED or not 0 < size.sum() < np.inf:
            return np.full(len(seen), 1 / len(seen))
        p: Floats = (1 - _SPREAD) * size / size.sum() + _SPREAD / len(seen)
        return p


def uniform(generator: np.random.Generator, T: int, batch: int) -> Ints:
    """Draw every level alike."""
    return generator.integers(0, T, batch)


def low_discrepancy(generator: np.random.Generator, T: int, batch: int) -> Ints:
    """Draw one point on a circle and spread the batch evenly from it (Kingma et al. 2021, appendix I.1)."""
    return _level((generator.random() + np.arange(batch) / batch) % 1, T)


def logit_normal(generator: np.random.Generator, T: int, batch: int) -> Ints:
    """Draw sigmoids of standard normals (Esser et al. 2024, eq. 19, with m = 0 and s = 1): mostly middle levels."""
    return _level(1 / (1 + np.exp(-generator.standard_normal(batch))), T)


def _level(u: Floats, T: int) -> Ints:
    return np.minimum(np.floor(u * T).astype(np.int64), T - 1)


TIMES: dict[str, Callable[[int], Times]] = {
    "uniform": lambda T: Fixed(T, uniform),
    "low_discrepancy": lambda T: Fixed(T, low_discrepancy),
    "logit_normal": lambda T: Fixed(T, logit_normal),
    "importance": Importance,
}
