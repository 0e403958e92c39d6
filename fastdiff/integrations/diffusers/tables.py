"""A plan as `fastdiff::step` reads it, on one device, for schedulers that are asked for one row at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastdiff import noise as noises
from fastdiff.loop import for_each_sample
from fastdiff.ops import dispatch
from fastdiff.plan import Plan


class Table:
    """A plan's table on a device.

    Attributes:
        plan: the plan.
        layout: the columns of a step as bits.
        dtype: that of the state, float32 or float64.
        draws: for each row, whether it adds noise.
        ever_draws, learns_variance: whether any does, and whether by a learned variance.
    """

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype, values: Tensor | None = None) -> None:
        """Put a plan on a device; `values` [rows, columns] are its numbers where those are known there alone."""
        # The step's own copy in another dtype is the state; the model's input is the scheduler's to scale.
        columns = {name: plan.column(name) for name in plan.columns if name != "scale_in"}
        steps = Plan.build(plan.name, plan.t, columns, stores=plan.stores)
        self.plan, self.layout = plan, steps.layout
        self.draws = ((plan.column("cz") != 0) | (plan.column("dz") != 0)).tolist()
        self.ever_draws, self.learns_variance = plan.draws_noise, plan.learns_variance
        numbers = torch.from_numpy(steps.table.copy()) if values is None else values
        self._values = numbers.to(device=device, dtype=dtype)
        self.dtype, self._ops = dtype, dispatch.backend("auto", device, dtype)
        self._rows: dict[int, tuple[Tensor, ...]] = {}
        self._keys: dict[tuple[int | tuple[int, ...], int], Tensor] = {}

    def rows(self, row: int, batch: int) -> Tensor:
        """Return a row for each sample of a batch, int64 [batch]."""
        if batch not in self._rows:
            numbers = torch.arange(len(self.plan), device=self._values.device)[:, None]
            self._rows[batch] = for_each_sample(numbers, batch).unbind()
        return self._rows[batch][row]

    def key(self, seed: int | Sequence[int], batch: int) -> Tensor:
        """Return whose noise to draw, int64 [2, batch]."""
        which = (seed if isinstance(seed, int) else tuple(seed)), batch
        if which not in self._keys:
            self._keys[which] = noises.key(seed, None, batch, self._values.device)
        return self._keys[which]

    def step(
        self,
        x: Tensor,
        out: Tensor,
        row: Tensor,
        *,
        key: Tensor | None = None,
        z: Tensor | None = None,
        copy: Tensor | None = None,
        variance: Tensor | None = None,
        y: Tensor | None = None,
        history: Tensor | list[Tensor] | None = None,
        x0: Tensor | None = None,
        threshold: tuple[float, float] | None = None,
    ) -> None:
        """Carry out rows in place, as the op `step`; `copy` takes the new state too, in its own dtype.

        `threshold` is the quantile of |x0| beyond which x0 is cut and scaled back, and the largest such bound. Steps in
        float64 are plain torch, and can be differentiated.
        """
        ops, limit = self._ops, None
        if threshold is not None:
            unguided = (None, None, None, None)
            limit = ops.threshold(x, out, self._values, self.layout, row, *unguided, threshold[0])
            limit.clamp_(max=threshold[1])
        plain = type(x) is type(out) is Tensor
        (ops.step_directly if plain else ops.step)(
            *(x, out, self._values, self.layout, row, None, None, key, copy, None),
            *(variance, None, limit, y, history, z, x0),
        )
