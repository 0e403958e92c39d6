"""Plans with any set of columns, for hypothesis."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan
from tests.ops.plans import ROWS, STORES

NUMBERS: st.SearchStrategy[Any] = st.floats(-2, 2, width=32)
VALUES = {"clip": st.sampled_from([0.5, 1.0, np.inf]), "slot": st.integers(-1, HISTORY_SLOTS - 1)}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans with any set of columns."""
    names = sorted(draw(st.sets(st.sampled_from(sorted(NEUTRAL)))))
    columns = {name: draw(st.lists(VALUES.get(name, NUMBERS), min_size=ROWS, max_size=ROWS)) for name in names}
    return Plan.build("any", np.arange(ROWS)[::-1], columns, stores=draw(st.sampled_from(STORES)))
