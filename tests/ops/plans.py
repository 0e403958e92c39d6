"""Plans for the tests of the ops: any set of columns, all of them, and the sets that have a C++ kernel of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan

ROWS = 3
NUMBERS: st.SearchStrategy[Any] = st.floats(-2, 2, width=32)
VALUES = {"clip": st.sampled_from([0.5, 1.0, np.inf]), "slot": st.integers(-1, HISTORY_SLOTS - 1)}
STORES = ["x0", "eps"]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans with any set of columns."""
    names = sorted(draw(st.sets(st.sampled_from(sorted(NEUTRAL)))))
    columns = {name: draw(st.lists(VALUES.get(name, NUMBERS), min_size=ROWS, max_size=ROWS)) for name in names}
    return Plan.build("any", np.arange(ROWS)[::-1], columns, stores=draw(st.sampled_from(STORES)))


def plan_of(columns: set[str], stores: str = "x0") -> Plan:
    """A plan with these columns, different in every row."""
    values: dict[str, Any] = {name: 0.3 + 0.02 * k * np.arange(1, ROWS + 1) for k, name in enumerate(NEUTRAL)}
    values["slot"] = [0, 3, -1]
    return Plan.build("columns", np.arange(ROWS)[::-1], {name: values[name] for name in columns}, stores=stores)


def specialised() -> list[set[str]]:
    """The sets of columns for which csrc/cpu/step_kernel.h compiles a kernel."""
    source = Path(__file__).parents[2] / "csrc" / "cpu" / "step_kernel.h"
    found = re.findall(r"= Formula<set_of\((.*?)\)>;", source.read_text())
    return [set(columns.lower().split(", ")) for columns in found]


def table(plan: Plan, dtype: torch.dtype = torch.float32) -> Tensor:
    """A plan's table as a step takes it."""
    return torch.from_numpy(plan.table.copy()).to(dtype)
