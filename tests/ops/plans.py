"""Plans for the tests of the ops: of chosen columns, and the sets of columns that have a C++ kernel of their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastdiff.plan import NEUTRAL, Plan

ROWS = 3
STORES = ["x0", "eps"]


def plan_of(columns: set[str], stores: str = "x0") -> Plan:
    """A plan with these columns, different in every row."""
    values: dict[str, Any] = {name: 0.3 + 0.02 * k * np.arange(1, ROWS + 1) for k, name in enumerate(NEUTRAL)}
    values["slot"] = [0, 3, -1]
    return Plan.build("columns", np.arange(ROWS)[::-1], {name: values[name] for name in columns}, stores=stores)


def specialised() -> list[set[str]]:
    """The sets of columns for which csrc/common/formulas.h compiles a kernel."""
    source = Path(__file__).parents[2] / "csrc" / "common" / "formulas.h"
    found = re.findall(r"= Formula<set_of\((.*?)\)>;", source.read_text())
    return [set(columns.lower().split(", ")) for columns in found]


def table(plan: Plan, dtype: torch.dtype = torch.float32) -> Tensor:
    """A plan's table as a step takes it."""
    return torch.from_numpy(plan.table.copy()).to(dtype)
