"""The Plan: a sampler as a table, one row per network evaluation, one column per coefficient of the step.

    out  = u + w (c - u)                                                  guidance
    x0   = clip(px x + po out)                                            |x0| <= clip
    eps  = ex x + eo out + e0 x0
    x'   = cx x + cy y + c0 x0 + ce eps + sum_k chk h_k + cz exp(cv v) z  next state
    y'   = dx x + dy y + d0 x0 + de eps + sum_k dhk h_k + dz z            next anchor
    x'   = x' + mask (k0 known + kz z - x')                               what is known is put back
    h_slot = x0 or eps                                                    history, written after it was read

`z` is a standard normal, `v` the extra output of a network that learns its variance, `known` an image of which `mask`
says where it is known (1: here, 0: not), and the network is given `scale_in x` and `t`. docs/step.md says in which
order a step rounds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastdiff.errors import InputError, lookup
from fastdiff.files import write_text
from fastdiff.schedules import Array, frozen

HISTORY_SLOTS = 4

# Every column and the value that makes it do nothing: a column that is neutral in every row is not in the table.
NEUTRAL: dict[str, float] = {
    "scale_in": 1.0,
    "px": 0.0,
    "po": 0.0,
    "clip": math.inf,
    **dict.fromkeys(("ex", "eo", "e0", "cx", "cy", "c0", "ce"), 0.0),
    **{f"ch{k}": 0.0 for k in range(HISTORY_SLOTS)},
    **dict.fromkeys(("cz", "cv", "dx"), 0.0),
    "dy": 1.0,
    **dict.fromkeys(("d0", "de"), 0.0),
    **{f"dh{k}": 0.0 for k in range(HISTORY_SLOTS)},
    **dict.fromkeys(("dz", "k0", "kz"), 0.0),
    "slot": -1.0,
}
# In a step's layout, behind the columns and what the history keeps: noise by the hardware's log, sine and cosine.
FAST_NORMALS = 1 << len(NEUTRAL) + 1
_STORES = {"x0": "the x0-prediction", "eps": "the predicted noise"}
_SHOWN_ROWS = 16


@dataclass(frozen=True, eq=False)
class Plan:
    """A sampler's table. Build one with `Plan.build` or a function of `fastdiff.samplers`.

    Attributes:
        name: what made it, for people: "ddim(steps=50, eta=0.0)".
        t: what the network is given in each row, float64 [rows].
        columns: names of the columns in use, in the order of `NEUTRAL`.
        table: their values, float64 [rows, columns].
        init_scale: standard deviation of the state before the first row.
        stores: what the history keeps, "x0" or "eps".
        alpha, sigma: the level of the state before each row and after the last, float64 [rows + 1]; empty if unknown.
    """

    name: str
    t: Array
    columns: tuple[str, ...]
    table: Array
    init_scale: float = 1.0
    stores: str = "x0"
    alpha: Array = field(default_factory=lambda: frozen([]))
    sigma: Array = field(default_factory=lambda: frozen([]))

    @classmethod
    def build(
        cls,
        name: str,
        t: npt.ArrayLike,
        columns: Mapping[str, npt.ArrayLike],
        *,
        init_scale: float = 1.0,
        stores: str = "x0",
        alpha: npt.ArrayLike = (),
        sigma: npt.ArrayLike = (),
    ) -> Plan:
        """Make a plan from named columns, each a number or float64 [rows]; columns that do nothing are left out.

        Raises:
            InputError: a column is unknown or has the wrong length, a value is not finite (`clip` may be inf),
                a slot is not -1..3, `t` is empty, or there is not one level more than rows, or none, in both alpha
                and sigma.
        """
        times = frozen(t)
        if times.ndim != 1 or times.size == 0:
            raise InputError(f"a plan needs at least one row: t must be a non-empty 1-D array, got shape {times.shape}")
        if not (np.isfinite(times).all() and math.isfinite(init_scale)):
            raise InputError("t and init_scale must be finite")
        lookup("history content", stores, _STORES)
        values = {column: _column(column, value, times.size) for column, value in columns.items()}
        used = tuple(column for column in NEUTRAL if column in values and (values[column] != NEUTRAL[column]).any())
        table = np.stack([values[column] for column in used], axis=1) if used else np.empty((times.size, 0))
        levels = frozen(alpha), frozen(sigma)
        as_many = levels[0].shape == levels[1].shape in ((0,), (times.size + 1,))
        if not (as_many and np.isfinite(levels).all()):
            raise InputError(f"alpha and sigma must be finite, one before each of {times.size} rows and one behind")
        return cls(name, times, used, frozen(table), float(init_scale), stores, *levels)

    def __len__(self) -> int:
        return int(self.t.size)

    @property
    def nfe(self) -> int:
        """Network evaluations that the plan takes: one a row."""
        return len(self)

    def column(self, name: str) -> Array:
        """Return one column, float64 [rows], also if it is not in use. Raises InputError for an unknown name."""
        neutral = lookup("column", name, NEUTRAL)
        if name in self.columns:
            return self.table[:, self.columns.index(name)]
        return np.full(len(self), neutral)

    @property
    def history_slots(self) -> int:
        """How many history slots the plan reads or writes, 0..4."""
        read = [int(name[2:]) + 1 for name in self.columns if name.startswith(("ch", "dh"))]
        return max([0, *read, int(self.column("slot").max()) + 1])

    @property
    def layout(self) -> int:
        """The table's columns as bits, in the order of `NEUTRAL`, and behind them whether the history keeps eps."""
        used = sum(1 << k for k, name in enumerate(NEUTRAL) if name in self.columns)
        return used | (self.stores == "eps") << len(NEUTRAL)

    @property
    def has_anchor(self) -> bool:
        """Whether any row reads or writes the anchor state y."""
        return any(name == "cy" or name.startswith("d") for name in self.columns)

    @property
    def draws_noise(self) -> bool:
        """Whether any row draws noise."""
        return not {"cz", "dz", "kz"}.isdisjoint(self.columns)

    @property
    def learns_variance(self) -> bool:
        """Whether the network's output holds a variance channel beside every image channel."""
        return "cv" in self.columns

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        return self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.name, self.columns, len(self)))

    def __str__(self) -> str:
        head = f"{self.name}: {len(self)} rows, {self.nfe} network evaluations, init_scale {self.init_scale:g}"
        title = "".join(f"{name:>12}" for name in ("row", "t", *self.columns))
        return "\n".join([head, title, *self._lines()])

    def _lines(self) -> list[str]:
        lines = [
            f"{row:>12}" + "".join(f"{value:>12.6g}" for value in (self.t[row], *self.table[row]))
            for row in range(len(self))
        ]
        if len(lines) <= _SHOWN_ROWS:
            return lines
        half = _SHOWN_ROWS // 2
        return [*lines[:half], f"{'...':>12}", *lines[-half:]]

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready data; numbers survive the round trip to the last bit."""
        return {
            "name": self.name,
            "t": self.t.tolist(),
            "columns": {column: self.table[:, i].tolist() for i, column in enumerate(self.columns)},
            "init_scale": self.init_scale,
            "stores": self.stores,
            "alpha": self.alpha.tolist(),
            "sigma": self.sigma.tolist(),
        }

    def save(self, path: str | Path) -> None:
        """Write the plan as JSON (to a temporary file that then takes the name `path`)."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan that `save` wrote. Raises InputError if the file holds none."""
        try:
            return cls.build(**json.loads(Path(path).read_text()))
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{path} is no saved plan: {error}") from None


def _column(name: str, value: npt.ArrayLike, rows: int) -> Array:
    lookup("column", name, NEUTRAL)
    array = np.asarray(value, dtype=np.float64)
    if array.shape not in ((), (rows,)):
        raise InputError(
            f"column {name!r} must be a number or have one value for each of {rows} rows, got {array.shape}"
        )
    if np.isnan(array).any() or (name != "clip" and np.isinf(array).any()):
        raise InputError(f"column {name!r} has values that are not finite")
    if name == "slot" and not np.isin(array, np.arange(-1, HISTORY_SLOTS)).all():
        raise InputError(f"slot must be -1 (none) or 0..{HISTORY_SLOTS - 1}")
    return np.broadcast_to(array, (rows,))
