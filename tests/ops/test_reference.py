"""The eager ops against the equations of `fastdiff.plan` in float64 NumPy and, to the bit, against docs/step.md."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastdiff as fd
from fastdiff.ops import reference
from fastdiff.ops.exact import exp
from fastdiff.plan import HISTORY_SLOTS, NEUTRAL, Plan
from tests import rounding
from tests.ops.cpu import assert_products_close
from tests.ops.plans import ROWS, table
from tests.ops.strategies import plans

# One float32 rounding is 6e-8; a row has at most 30 of them on numbers of size up to 30.
FLOAT32 = {"rtol": 1e-5, "atol": 1e-4}
F = np.float32


def numpy_step(plan, row, x, out, uncond, w, w_uncond, v, y, h, z, known, mask):
    """The equations, one sample, float64. Returns x', y', h, x0."""
    c = {name: plan.column(name)[row] for name in NEUTRAL}
    if uncond is not None:
        out = uncond + w * (out - uncond) if w_uncond is None else w * out + w_uncond * uncond
    x0 = np.clip(c["px"] * x + c["po"] * out, -c["clip"], c["clip"])
    eps = c["ex"] * x + c["eo"] * out + c["e0"] * x0
    x_next = c["cx"] * x + c["cy"] * y + c["c0"] * x0 + c["ce"] * eps + c["cz"] * np.exp(c["cv"] * v) * z
    y_next = c["dx"] * x + c["dy"] * y + c["d0"] * x0 + c["de"] * eps + c["dz"] * z
    h = h.copy()
    for k in range(len(h)):
        x_next = x_next + c[f"ch{k}"] * h[k]
        y_next = y_next + c[f"dh{k}"] * h[k]
    if {"k0", "kz"} & {*plan.columns}:
        x_next = (1 - mask) * x_next + mask * (c["k0"] * known + c["kz"] * z)
    if c["slot"] >= 0:
        h[int(c["slot"])] = x0 if plan.stores == "x0" else eps
    return x_next, y_next, h, x0


@settings(deadline=None, max_examples=150)
@given(plan=plans(), weights=st.integers(0, 2), seed=st.integers(0, 2**32 - 1), double=st.booleans())
def test_every_set_of_columns(plan, weights, seed, double):
    """Samples of one batch at different rows, with their own w and noise, follow the equations."""
    shape, dtype = (4, 2, 3, 5), torch.float64 if double else torch.float32
    generator = torch.Generator().manual_seed(seed)
    x, out, uncond, v, y, z, known = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(7))
    mask = torch.randint(-1, 3, shape, generator=generator).clamp(0, 2).to(dtype) / 2
    h = torch.randn((HISTORY_SLOTS, *shape), generator=generator, dtype=dtype)
    w, w_uncond = torch.tensor([[0.0, 1.0, 2.5, -1.0], [0.5, -2.0, 1.0, 0.0]], dtype=dtype)
    row = torch.tensor([0, 2, 1, 2])
    expected = [
        numpy_step(
            plan,
            int(row[b]),
            *(a[b].double().numpy() for a in (x, out)),
            uncond[b].double().numpy() if weights else None,
            float(w[b]),
            float(w_uncond[b]) if weights == 2 else None,
            *(a[b].double().numpy() for a in (v, y)),
            h[:, b].double().numpy(),
            *(a[b].double().numpy() for a in (z, known, mask)),
        )
        for b in range(len(row))
    ]
    model_input, x0 = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    reference.step(
        x,
        out,
        table(plan, dtype),
        plan.layout,
        row,
        uncond=uncond if weights else None,
        w=w if weights else None,
        w_uncond=w_uncond if weights == 2 else None,
        variance=v,
        y=y,
        history=h,
        z=z,
        model_input=model_input,
        x0_out=x0,
        known=known,
        mask=mask,
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


def spec_step(c, following, x, out, uncond, w, w_uncond, scale, threshold, v, y, h, z, known, mask):
    """docs/step.md for one element with every column in use, float32. Returns x', y', x0, eps and the next input."""
    total = rounding.total
    if w_uncond is None:
        out = rounding.fma(w, F(out) - F(uncond), uncond)
    else:
        out = rounding.fma(w, out, F(w_uncond) * F(uncond))
    out = F(scale) * out
    s = max(threshold, c["clip"])
    ratio = F(1) if c["clip"] == math.inf else F(c["clip"]) / F(s)
    x0 = F(np.clip(total((c["px"], x), (c["po"], out)), -F(s), F(s))) * ratio
    eps = total((c["ex"], x), (c["eo"], out), (c["e0"], x0))
    g = F(exp(torch.tensor(c["cv"] * F(v)))) * F(z)  # the exponential has a test of its own

    def state(prefix, noise):
        history = [(c[f"{prefix}h{k}"], h[k]) for k in range(HISTORY_SLOTS)]
        here = [(c[prefix + name], value) for name, value in {"x": x, "y": y, "0": x0, "e": eps}.items()]
        return total(*here, *history, (c[prefix + "z"], noise))

    x_next, keep = state("c", g), total((c["k0"], known), (c["kz"], z))
    x_next = keep if mask == 1 else rounding.fma(mask, keep - x_next, x_next)
    return x_next, state("d", z), x0, eps, following["scale_in"] * x_next


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("stores", ["x0", "eps"])
def test_every_bit_of_a_step(stores, weighted):
    """0 bits from docs/step.md in exact rationals, with every column and every tensor of a step in use."""
    rng = np.random.default_rng(5)
    columns = {name: rng.normal(size=ROWS) for name in NEUTRAL if name not in ("clip", "slot")}
    # Bounds below, above and far above the threshold of 1.5.
    plan = Plan.build("all", [2, 1, 0], {**columns, "clip": [0.5, 2.0, np.inf], "slot": [0, 3, -1]}, stores=stores)
    assert plan.columns == tuple(NEUTRAL)
    row, shape = torch.tensor([0, 1, 2]), (ROWS, 4)
    x, out, uncond, v, y, z, known = torch.from_numpy(rng.normal(size=(7, *shape))).float()
    w, w_uncond, scale = torch.from_numpy(rng.normal(size=(3, ROWS))).float()
    mask = torch.tensor([0.0, 0.3, 1.0, 1.0]).expand(shape)
    h, threshold = torch.from_numpy(rng.normal(size=(HISTORY_SLOTS, *shape))).float(), torch.full((ROWS,), 1.5)
    values = table(plan)
    rows = [dict(zip(plan.columns, map(F, values[r].tolist()), strict=True)) for r in (0, 1, 2, 2)]
    expected = np.empty((5, *shape), dtype=F)
    for b, e in np.ndindex(shape):
        here = (t[b, e].item() for t in (x, out, uncond))
        own = w[b].item(), w_uncond[b].item() if weighted else None, scale[b].item(), threshold[b].item()
        before, behind = ([t[b, e].item() for t in tensors] for tensors in ((v, y), (z, known, mask)))
        expected[:, b, e] = spec_step(rows[b], rows[b + 1], *here, *own, *before, h[:, b, e].tolist(), *behind)
    x_next, y_next, x0, eps, scaled = torch.from_numpy(expected)
    h_next = h.clone()
    h_next[0, 0], h_next[3, 1] = (x0 if stores == "x0" else eps)[:2]

    model_input, x0_out = torch.full((2 * ROWS, 4), torch.nan), torch.full(shape, torch.nan)
    reference.step(
        *(x, out, values, plan.layout, row, uncond, w, None, model_input, None),
        *(v, scale, threshold, y, h, z, x0_out, w_uncond if weighted else None, known, mask),
    )
    for got, wanted in ((x, x_next), (y, y_next), (h, h_next), (x0_out, x0)):
        assert torch.equal(got, wanted)
    assert torch.equal(model_input, torch.cat([scaled, scaled]))


def test_noise_is_that_of_the_row():
    """Without z, the step draws the stream "step" at the row of each sample, with its seed and index."""
    plan = Plan.build("noise", [1.0, 0.0], {"cz": [1.0, 2.0]})
    seed, index, row = torch.tensor([5, 6]), torch.tensor([0, 3]), torch.tensor([1, 0])
    x = torch.zeros(2, 7)
    key = torch.stack([seed, index])
    reference.step(x, torch.zeros_like(x), table(plan), plan.layout, row, key=key)
    z = fd.noise.normal((2, 7), seed=seed, index=index, step=row, stream="step")
    assert torch.equal(x, torch.stack([2 * z[0], z[1]]))


def test_what_is_known_is_put_back():
    """Where the mask is 1 the state is known at the level after the row, whatever the network said; elsewhere a step.

    The noise is that of the step; history and anchor state know nothing of it.
    """
    columns = {"px": 1.0, "po": -0.5, "cx": 0.25, "c0": 0.5, "cz": 0.3, "dx": 0.5, "slot": 0.0}
    free, plan = (Plan.build("p", [1.0], {**columns, **known}) for known in ({}, {"k0": 0.8, "kz": 0.6}))
    x, out, known, z = torch.randn(4, 2, 50, generator=torch.Generator().manual_seed(0)).unbind()
    mask = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0]).repeat(10).expand(2, 50)
    out[:, 3] = torch.nan  # known: of no consequence

    def stepped(plan):
        state, y, history = x.clone(), x.clone(), torch.zeros(1, 2, 50)
        row = torch.zeros(2, dtype=torch.int64)
        given = {"y": y, "history": history, "z": z, "known": known, "mask": mask}
        reference.step(state, out, table(plan), plan.layout, row, **given)
        return state, y, history

    (without, *others), (state, *same) = stepped(free), stepped(plan)
    assert all(torch.equal(a.nan_to_num(9.0), b.nan_to_num(9.0)) for a, b in zip(others, same, strict=True))
    keep = 0.8 * known + 0.6 * z
    assert torch.equal(state[mask == 0], without[mask == 0])
    # Up to four roundings, of half an ulp of numbers below 4 each.
    torch.testing.assert_close(state[mask == 1], keep[mask == 1], rtol=0, atol=1e-6)
    torch.testing.assert_close(state[mask == 0.5], ((keep + without) / 2)[mask == 0.5], rtol=0, atol=1e-6)


def test_low_precision_outputs_are_widened_first():
    """bf16 outputs enter float32 arithmetic: the result equals that of the same numbers given as float32."""
    plan = fd.samplers.ddim(fd.schedules.linear(), steps=2, clip=None)
    out, x = torch.randn(3, 4).bfloat16(), torch.randn(3, 4)
    given, widened = x.clone(), x.clone()
    row = torch.zeros(3, dtype=torch.int64)
    reference.step(given, out, table(plan), plan.layout, row)
    reference.step(widened, out.float(), table(plan), plan.layout, row)
    assert torch.equal(given, widened)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_marks_what_is_not_finite(bad):
    """first_bad keeps the earliest row, 2 row for an output and 2 row + 1 for a state."""
    # x' = x, so that a bad output makes no bad state.
    plan = Plan.build("keeps", [3.0, 2.0, 1.0, 0.0], {"cx": 1.0})
    first_bad = torch.full((3,), 8)
    for row in range(4):
        x, out = torch.zeros(3, 2, 2), torch.zeros(3, 2, 2)
        if row >= 1:
            out[1, 0, 1] = bad
        if row >= 2:
            x[2, 1, 1] = bad
        reference.step(x, out, table(plan), plan.layout, torch.full((3,), row), first_bad=first_bad)
    assert first_bad.tolist() == [8, 2, 5]


@pytest.mark.parametrize("column", ["cz", "cv", "cy", "ch1", "dx", "dz", "k0", "kz", "slot"])
def test_a_column_without_its_tensor_is_refused(column):
    """A plan that uses noise, variance, anchor, history or what is known is not carried out without it."""
    plan = Plan.build("lacks", [0.0], {"cz": 1.0, column: 2.0} if column == "cv" else {column: 2.0})
    x, z = torch.zeros(1, 2), torch.zeros(1, 2)
    with pytest.raises(fd.InputError, match="was not given"):
        reference.step(x, x.clone(), table(plan), plan.layout, torch.tensor([0]), z=z if column == "cv" else None)


def test_empty_batch():
    """A batch of none is stepped without complaint."""
    plan = fd.samplers.ddpm(fd.schedules.linear(), steps=2)
    none = torch.zeros(0, 3, 4, 4)
    key = torch.zeros(2, 0, dtype=torch.int64)
    reference.step(none, none.clone(), table(plan), plan.layout, torch.zeros(0, dtype=torch.int64), key=key)
    assert none.shape == (0, 3, 4, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out": torch.zeros(1, 3)}, r"out must have the shape of x, \(2, 3\), got \(1, 3\)"),
        ({"history": torch.zeros(1, 2, 4)}, r"history\[0\] must have the shape of x"),
        ({"model_input": torch.zeros(3, 3)}, "model_input must have the shape of x"),
        ({"row": torch.tensor([0])}, "one row for each of 2 samples"),
        ({"row": torch.tensor([0, 4])}, r"rows must be in 0..3"),
        ({"row": torch.tensor([-1, 0])}, r"rows must be in 0..3"),
        ({"uncond": torch.zeros(2, 3)}, "guidance needs w"),
        ({"threshold": torch.ones(2)}, "needs a plan with the column 'clip'"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    """Tensors are never broadcast, rows never wrap, and half of a pair of inputs is not ignored."""
    plan = fd.samplers.ddim(fd.schedules.linear(), steps=4, clip=None)
    x = torch.zeros(2, 3)
    arguments = {"out": x.clone(), "row": torch.tensor([0, 3]), **change}
    with pytest.raises(fd.InputError, match=message):
        reference.step(x, table=table(plan), layout=plan.layout, **arguments)


def test_gradients_pass_through_a_step():
    """Float32 gradients of x' with respect to every input, guided and clipped, are those of float64."""
    plan = fd.samplers.ddpm(fd.schedules.linear(), steps=4, clip=1.0, variance="learned_range")
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(5, 3, 4, generator=generator)

    def gradients(dtype):
        x, out, uncond, v, z = (value.to(dtype).requires_grad_() for value in inputs)
        state, w = x * 1, torch.full((3,), 2.0, dtype=dtype)
        step = (state, out, table(plan, dtype), plan.layout, torch.tensor([0, 1, 2]), uncond, w)
        reference.step(*step, variance=v, z=z)
        return torch.autograd.grad(state.square().sum(), (x, out, uncond, v, z))

    for narrow, wide in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert wide.abs().max() > 1e-3
        # Some 20 roundings of 6e-8 on numbers of size up to 10.
        torch.testing.assert_close(narrow.double(), wide, rtol=1e-5, atol=1e-5)


def test_guidance_rescale_is_the_formula():
    """phi std(c) / std(guided) + 1 - phi: with phi = 1 the guided output gets the spread of the conditional one."""
    out, uncond = torch.randn(2, 3, 64, dtype=torch.float64).unbind()
    w = torch.tensor([0.5, 3.0, 7.5], dtype=torch.float64)
    guided = uncond + w[:, None] * (out - uncond)
    full = reference.guidance_rescale(out, uncond, w, 1.0)
    # float64 sums over 64 elements.
    torch.testing.assert_close((full[:, None] * guided).std(dim=1), out.std(dim=1), rtol=1e-12, atol=0)
    part = reference.guidance_rescale(out, uncond, w, 0.7)
    torch.testing.assert_close(part, 0.7 * full + 0.3, rtol=1e-12, atol=0)


def test_inner_products_are_the_formula():
    """<c, c>, <c, c - u> and <c - u, c - u>; the last one is right where it is 1e-12 of the first."""
    c, apart = torch.randn(2, 3, 5, 7, dtype=torch.float64).unbind()
    expected = torch.stack([(c * c).sum((1, 2)), (c * apart).sum((1, 2)), (apart * apart).sum((1, 2))])
    # float64: u and c - u are right to some 1e-16 of c, which the smaller difference sees a million times larger.
    for size, error in ((1.0, 1e-14), (1e-6, 1e-8)):
        powers = torch.tensor([[1.0], [size], [size**2]], dtype=torch.float64)
        assert_products_close(reference.inner_products(c, c - size * apart), powers * expected, rtol=error)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.995, 1.0])
def test_threshold_is_the_quantile(quantile, weighted):
    """The quantile of |x0| before clipping, of the guided and rescaled output, interpolated as NumPy does."""
    plan = fd.samplers.ddim(fd.schedules.linear(), steps=4, clip=1.0)
    x, out, uncond = torch.randn(3, 2, 57, dtype=torch.float64).unbind()
    row, w, scale = torch.tensor([0, 2]), torch.tensor([2.0, 3.0]).double(), torch.tensor([0.9, 0.8]).double()
    w_uncond = torch.tensor([-1.5, 0.5]).double() if weighted else None
    values = table(plan, torch.float64)
    got = reference.threshold(x, out, values, plan.layout, row, uncond, w, scale, w_uncond, quantile)
    rest = 1 - w if w_uncond is None else w_uncond
    guided = scale[:, None] * (w[:, None] * out + rest[:, None] * uncond)
    px, po = (torch.from_numpy(plan.column(name).copy())[row][:, None] for name in ("px", "po"))
    expected = np.quantile(np.abs((px * x + po * guided).numpy()), quantile, axis=1)
    # float64; px and po are of size 20 in the noisiest row.
    np.testing.assert_allclose(got, expected, rtol=1e-12)
