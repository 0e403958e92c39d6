"""The 2-D toys that lecture notes draw.

Each is a function (generator, count) -> points float64 [count, 2], labels int64 [count].
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

# The scales of the points are fixed numbers, never measured, so that both splits share them.


def swiss_roll(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """A spiral of one and a half turns: t in [1.5 pi, 4.5 pi] is angle and radius, noise 0.3; centred, over 7."""
    t = rng.uniform(1.5 * np.pi, 4.5 * np.pi, count)
    spiral = np.stack([t * np.cos(t), t * np.sin(t)], axis=1) + 0.3 * rng.standard_normal((count, 2))
    return (spiral - [2.0, 0.2]) / 7, np.zeros(count, np.int64)


def moons(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """Two interleaved half circles of radius 1, noise 0.05; centred, over (0.87, 0.5)."""
    label = rng.integers(2, size=count)
    t = rng.uniform(0, np.pi, count)
    upper = np.stack([np.cos(t), np.sin(t)], axis=1)
    moon = np.where(label[:, None] == 0, upper, [1.0, 0.5] - upper) + 0.05 * rng.standard_normal((count, 2))
    return (moon - [0.5, 0.25]) / [0.87, 0.5], label


def gaussian_mixture(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """Eight Gaussians of standard deviation 0.1 on a ring of radius sqrt(2), where each axis has variance 1.01."""
    label = rng.integers(8, size=count)
    angle = label * np.pi / 4
    centre = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return centre + 0.1 * rng.standard_normal((count, 2)), label


def checkerboard(rng: np.random.Generator, count: int) -> tuple[Floats, Ints]:
    """The black squares of a 4 x 4 board of side 2 sqrt(3), where each axis has variance 1."""
    column = rng.integers(4, size=count)
    row = 2 * rng.integers(2, size=count) + column % 2
    board = np.stack([column, row], axis=1) + rng.uniform(size=(count, 2))
    return (board - 2) * (np.sqrt(3) / 2), np.zeros(count, np.int64)
