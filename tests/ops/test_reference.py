"""The eager step against the equations of `fastdiff.plan`, written again in float64 NumPy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.ops import reference
from fastdiff.ops.reference import NoiseKey
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan

# One float32 rounding is 6e-8; a row has at most 30 of them on numbers of size up to 30.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-4}
ROWS = 3


def numpy_step(plan, row, x, out, uncond, w, v, y, h, z):
    """The equations, one sample, float64. Returns x', y', h, x0."""
    c = {name: plan.column(name)[row] for name in NEUTRAL}
    if uncond is not None:
        out = uncond + w * (out - uncond)
    x0 = np.clip(c["px"] * x + c["po"] * out, -c["clip"], c["clip"])
    eps = c["ex"] * x + c["eo"] * out + c["e0"] * x0
    x_next = c["cx"] * x + c["cy"] * y + c["c0"] * x0 + c["ce"] * eps + c["cz"] * np.exp(c["cv"] * v) * z
    y_next = c["dx"] * x + c["dy"] * y + c["d0"] * x0 + c["de"] * eps + c["dz"] * z
    h = h.copy()
    for k in range(len(h)):
        x_next = x_next + c[f"ch{k}"] * h[k]
        y_next = y_next + c[f"dh{k}"] * h[k]
    if c["slot"] >= 0:
        h[int(c["slot"])] = x0 if plan.stores == "x0" else eps
    return x_next, y_next, h, x0


@st.composite
def plans(draw):
    """Plans of 3 rows with any set of columns in use."""
    numbers = st.floats(-2, 2, width=32)
    free = sorted(set(NEUTRAL) - {"slot", "clip"})
    names = draw(st.sets(st.sampled_from(free)))
    columns = {name: draw(st.lists(numbers, min_size=ROWS, max_size=ROWS)) for name in sorted(names)}
    if draw(st.booleans()):
        columns["clip"] = draw(st.lists(st.sampled_from([0.5, 1.0, np.inf]), min_size=ROWS, max_size=ROWS))
    if draw(st.booleans()):
        columns["slot"] = draw(st.lists(st.integers(-1, HISTORY_SLOTS - 1), min_size=ROWS, max_size=ROWS))
    return Plan.build("any", np.arange(ROWS)[::-1], columns, stores=draw(st.sampled_from(["x0", "eps"])))


@settings(deadline=None, max_examples=150)
@given(plan=plans(), guided=st.booleans(), seed=st.integers(0, 2**32 - 1), double=st.booleans())
def test_every_set_of_columns(plan, guided, seed, double):
    """Samples of one batch at different rows, with their own w and noise, follow the equations."""
    shape, dtype = (4, 2, 3, 5), torch.float64 if double else torch.float32
    generator = torch.Generator().manual_seed(seed)
    x, out, uncond, v, y, z = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(6))
    h = torch.randn((HISTORY_SLOTS, *shape), generator=generator, dtype=dtype)
    w = torch.tensor([0.0, 1.0, 2.5, -1.0], dtype=dtype)
    row = torch.tensor([0, 2, 1, 2])
    expected = [
        numpy_step(
            plan,
            int(row[b]),
            *(a[b].double().numpy() for a in (x, out)),
            uncond[b].double().numpy() if guided else None,
            float(w[b]),
            *(a[b].double().numpy() for a in (v, y)),
            h[:, b].double().numpy(),
            z[b].double().numpy(),
        )
        for b in range(len(row))
    ]
    model_input, x0 = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    reference.step(
        x,
        out,
        torch.from_numpy(plan.table.copy()).to(dtype),
        plan.columns,
        row,
        uncond=uncond if guided else None,
        w=w if guided else None,
        variance=v,
        y=y,
        history=h,
        stores=plan.stores,
        z=z,
        model_input=model_input,
        x0_out=x0,
    )
    # float64 differs from NumPy by the order of a few sums.
    close = {"rtol": 1e-12, "atol": 1e-12} if double else FLOAT32
    for b, (x_next, y_next, h_next, x0_now) in enumerate(expected):
        np.testing.assert_allclose(x[b], x_next, **close)
        np.testing.assert_allclose(y[b], y_next, **close)
        np.testing.assert_allclose(h[:, b], h_next, **close)
        np.testing.assert_allclose(x0[b], x0_now, **close)
        following = min(int(row[b]) + 1, ROWS - 1)
        np.testing.assert_allclose(model_input[b], plan.column("scale_in")[following] * x_next, **close)


def test_noise_is_that_of_the_row():
    """Without z, the step draws the stream "step" at the row of each sample, with its seed and index."""
    plan = Plan.build("noise", [1.0, 0.0], {"cz": [1.0, 2.0]})
    seed, index, row = torch.tensor([5, 6]), torch.tensor([0, 3]), torch.tensor([1, 0])
    x = torch.zeros(2, 7)
    table = torch.from_numpy(plan.table.copy()).float()
    reference.step(x, torch.zeros_like(x), table, plan.columns, row, key=NoiseKey(seed, index))
    z = fd.noise.normal((2, 7), seed=seed, index=index, step=row, stream="step")
    assert torch.equal(x, torch.stack([2 * z[0], z[1]]))


def test_low_precision_outputs_are_widened_first():
    """bf16 outputs enter float32 arithmetic: the result equals that of the same numbers given as float32."""
    plan = fd.samplers.ddim(fd.schedules.linear(), steps=2, clip=None)
    table = torch.from_numpy(plan.table.copy()).float()
    out, x = torch.randn(3, 4).bfloat16(), torch.randn(3, 4)
    given, widened = x.clone(), x.clone()
    row = torch.zeros(3, dtype=torch.int64)
    reference.step(given, out, table, plan.columns, row)
    reference.step(widened, out.float(), table, plan.columns, row)
    assert torch.equal(given, widened)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_marks_what_is_not_finite(bad):
    """first_bad keeps the earliest row, 2 row for an output and 2 row + 1 for a state."""
    plan = fd.samplers.ddim(fd.schedules.linear(), steps=4)
    table = torch.from_numpy(plan.table.copy()).float()
    first_bad = torch.full((3,), 8)
    for row in range(4):
        x, out = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
        if row >= 1:
            out[1, 0, 1] = bad
        if row >= 2:
            x[2, 1, 1] = bad
        reference.step(x, out, table[:, 4:], plan.columns[4:], torch.full((3,), row), first_bad=first_bad)
    # Without the columns of x0, the state is 1/sigma x and only a bad state makes a bad state.
    assert first_bad[0] == 8
    assert first_bad[1] == 2


@pytest.mark.parametrize("column", ["cz", "cv", "cy", "ch1", "dx", "dz"])
def test_a_column_without_its_tensor_is_refused(column):
    """A plan that uses noise, variance, anchor or history is not carried out without it."""
    plan = Plan.build("lacks", [0.0], {"cz": 1.0, column: 0.5} if column == "cv" else {column: 0.5})
    x, z = torch.zeros(1, 2), torch.zeros(1, 2)
    table = torch.from_numpy(plan.table.copy()).float()
    with pytest.raises(fd.InputError, match="was not given"):
        reference.step(x, x.clone(), table, plan.columns, torch.tensor([0]), z=z if column == "cv" else None)


def test_empty_batch():
    """A batch of none is stepped without complaint."""
    plan = fd.samplers.ddpm(fd.schedules.linear(), steps=2)
    none = torch.zeros(0, 3, 4, 4)
    key = NoiseKey(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64))
    table = torch.from_numpy(plan.table.copy()).float()
    reference.step(none, none.clone(), table, plan.columns, torch.zeros(0, dtype=torch.int64), key=key)
    assert none.shape == (0, 3, 4, 4)
