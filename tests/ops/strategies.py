"""Plans with any set of columns, and steps with any of their tensors, for hypothesis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st

from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan
from tests.ops.cpu import FLOATS, Call, Random, step_call
from tests.ops.plans import ROWS, STORES

NUMBERS: st.SearchStrategy[Any] = st.floats(-2, 2, width=32)
OPTIONAL = {
    *("uncond", "model_input", "first_bad", "scale", "threshold", "y", "history", "z", "x0_out"),
    *("w_uncond", "known", "mask"),
}
# Signed zeros, bounds of clip, infinities, NaN, and numbers that are subnormal or overflow in some dtype.
SPECIAL = [0.0, -0.0, 0.5, -1.0, torch.inf, -torch.inf, torch.nan, 1e-45, -1e-39, 6e-8, 65519.0, 65520.0, -3e38]
VALUES = {"clip": st.sampled_from([0.5, 1.0, np.inf]), "slot": st.integers(-1, HISTORY_SLOTS - 1)}


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Plans with any set of columns."""
    names = sorted(draw(st.sets(st.sampled_from(sorted(NEUTRAL)))))
    columns = {name: draw(st.lists(VALUES.get(name, NUMBERS), min_size=ROWS, max_size=ROWS)) for name in names}
    return Plan.build("any", np.arange(ROWS)[::-1], columns, stores=draw(st.sampled_from(STORES)))


@st.composite
def steps(draw: st.DrawFn, shapes: Sequence[tuple[int, ...]]) -> Call:
    """Any plan with the tensors that it needs and any of the others, and a few special values."""
    plan, shape, dtypes = draw(plans()), draw(st.sampled_from(shapes)), st.sampled_from(FLOATS)
    seed = draw(st.integers(0, 2**32 - 1))
    call = step_call(plan, shape, seed, draw(dtypes))
    branches = draw(st.integers(1, 3))
    call["model_input"] = torch.full((branches * shape[0], *shape[1:]), torch.nan, dtype=draw(dtypes))
    call["uncond"] = call["uncond"].to(draw(dtypes))
    call["history"] = call["history"][: draw(st.integers(max(1, plan.history_slots), HISTORY_SLOTS))]
    call["z"] = Random(seed + 1).normal(*shape)

    chosen = draw(st.sets(st.sampled_from(sorted(OPTIONAL))))
    inpaints = not {"k0", "kz"}.isdisjoint(plan.columns)
    needed = {"y": plan.has_anchor, "history": plan.history_slots > 0, "known": inpaints, "mask": inpaints}
    for name in OPTIONAL - chosen:
        if not needed.get(name):
            del call[name]
    if "clip" not in plan.columns:
        call.pop("threshold", None)

    read = sorted({"x", "out", "uncond", "variance", "y", "history", "z", "known", "mask"} & call.keys())
    for value in draw(st.lists(st.sampled_from(SPECIAL), max_size=4)):
        flat = call[draw(st.sampled_from(read))].view(-1)
        flat[draw(st.integers(0, len(flat) - 1))] = value
    return call
