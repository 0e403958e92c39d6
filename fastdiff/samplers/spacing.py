"""Which levels of a schedule a sampler visits."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from fastdiff.errors import InputError, lookup, whole

Indices = npt.NDArray[np.int64]


def _leading(T: int, steps: int) -> Indices:
    return np.array([i * (T // steps) for i in range(steps)])


def _trailing(T: int, steps: int) -> Indices:
    return np.rint(np.arange(1, steps + 1) * T / steps).astype(np.int64) - 1


def _linspace(T: int, steps: int) -> Indices:
    return np.linspace(0, T - 1, steps).round().astype(np.int64) if steps > 1 else np.array([T - 1])


def _linear(T: int, steps: int) -> Indices:
    return np.array([i * T // steps - 1 for i in range(1, steps + 1)])


def _quadratic(T: int, steps: int) -> Indices:
    return np.array([max(i, i * i * T // steps**2) - 1 for i in range(1, steps + 1)])


_SPACINGS: dict[str, Callable[[int, int], Indices]] = {
    "leading": _leading,
    "trailing": _trailing,
    "linspace": _linspace,
    "linear": _linear,
    "quadratic": _quadratic,
}


def names() -> tuple[str, ...]:
    """Return the names of the known spacings."""
    return tuple(_SPACINGS)


def spaced(T: int, steps: int | None, spacing: str = "leading") -> Indices:
    """Return `steps` distinct indices of a schedule of T levels, noisiest first, int64 [steps].

    - leading: `i (T // steps)`, i = 0..steps-1; starts at the cleanest level (DDIM's code, diffusers).
    - trailing: `round(T - i T / steps) - 1`; starts at the noisiest level (Lin et al. 2023, Table 2).
    - linspace: evenly from the cleanest to the noisiest level, both included (Nichol & Dhariwal 2021).
    - linear: `tau_i = floor(c i)`, c = T / steps, i = 1..steps (Song et al. 2020, appendix D.2).
    - quadratic: `tau_i = floor(c i^2)`, c = T / steps^2 (same place); where that is below i, tau_i = i keeps the
      times distinct.

    `tau` counts from 1, so its index is tau - 1. steps=None visits every level.

    Raises:
        InputError: the spacing is unknown, or steps is not in 1..T.
    """
    steps = T if steps is None else whole("steps", steps, 1, T)
    return lookup("spacing", spacing, _SPACINGS)(T, steps)[::-1].astype(np.int64)


def distilled(T: int, steps: int, original_steps: int) -> Indices:
    """Return `steps` of the levels that a model was distilled on, noisiest first, int64 [steps] (Luo et al. 2023).

    These are `i (T // original_steps) - 1`, i = 1..original_steps, of which every `original_steps / steps`-th is
    taken, rounded towards the noisiest.

    Raises:
        InputError: original_steps is not in 1..T, or steps not in 1..original_steps.
    """
    whole("steps", steps, 1, whole("original_steps", original_steps, 1, T))
    original = np.arange(original_steps, 0, -1) * (T // original_steps) - 1
    return original[np.arange(steps) * original_steps // steps]


def custom(T: int, timesteps: Sequence[int] | npt.ArrayLike) -> Indices:
    """Check indices chosen by hand: integers in 0..T-1, falling strictly. Raises InputError if they are not."""
    try:
        given = np.asarray(timesteps, dtype=np.float64)
    except (TypeError, ValueError):
        given = np.empty(0)
    if given.ndim != 1 or given.size == 0 or not np.isfinite(given).all() or (given != np.rint(given)).any():
        raise InputError("timesteps must be a non-empty list of whole numbers")
    indices = given.astype(np.int64)
    if indices.min() < 0 or indices.max() >= T or (np.diff(indices) >= 0).any():
        raise InputError(f"timesteps must fall strictly within {T - 1}..0 (noisiest first)")
    return indices
